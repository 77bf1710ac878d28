"""Failpoints: nothing when off, and what was asked for when on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import streams_queue
import streams_queue_migrations
from streams_queue import failpoints

SOURCES = Path(streams_queue.__file__).parent


def test_they_cost_nothing_when_off():
    assert failpoints.hit is failpoints._nothing
    assert failpoints._nothing.__code__.co_names == (), "it calls nothing and looks nothing up"
    assert failpoints.switched({}) is None


def test_each_stands_in_the_engine():
    files = [*SOURCES.glob("*.py"), *Path(streams_queue_migrations.__file__).parent.glob("*.py")]
    calls = "".join(path.read_text() for path in files if path.name != "failpoints.py")
    assert set(re.findall(r'failpoints\.hit\("(\w+)"\)', calls)) == set(failpoints.NAMES) - {"mid_handler"}


@pytest.mark.parametrize("text", ["nowhere:kill", "after_read", "after_read:maim", "after_read:kill@often"])
def test_a_mistake_is_said(text):
    with pytest.raises(ValueError):
        failpoints.Armed(text)


def test_what_is_not_armed_passes():
    armed = failpoints.switched({failpoints.VARIABLE: "after_read:kill, before_finish:stop@0.0"})
    assert armed is not None
    armed("mid_sweep")
    armed("before_finish")


@pytest.mark.parametrize("text", ["after_read:kill", "mid_sweep:stop,after_read:kill@1"])
def test_an_armed_one_kills(text):
    script = 'from streams_queue import failpoints; failpoints.hit("after_read"); print("alive")'
    ran = subprocess.run([sys.executable, "-c", script], env={**os.environ, failpoints.VARIABLE: text}, check=False)
    assert ran.returncode == -signal.SIGKILL
