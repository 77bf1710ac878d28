"""The guide, followed word for word on a small queue."""

from __future__ import annotations

import servers
from installed import python_with, wheel_in
from migrations.rehearsal import Application, rehearse


def test_an_application_is_moved_by_the_guide_and_back(tmp_path):
    server = servers.start(servers.DEFAULT, tmp_path / "server")
    try:
        python = python_with(wheel_in(tmp_path), tmp_path / "environment")
        figures = rehearse(Application(tmp_path / "application", python, server), server, 1500, print)
    finally:
        server.stop()
    assert figures.lost == figures.doubled == []
    assert figures.ran >= figures.accepted > 1500
    assert figures.clean
    assert figures.moved["set_aside"] == {"main": 1, "retry": 1, "dlq": 1}
    assert figures.moved["kept"] == 30
    assert figures.back > 50
    assert figures.back_lost == 0
