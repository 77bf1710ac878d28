"""`streams-queue dashboard`: where it listens, whom it refuses, how it ends."""

from __future__ import annotations

import base64
import re
import signal
import socket
import subprocess
from http.client import HTTPConnection

import pytest

from helpers import queue_at

PASSWORD = "canary-0123456789"


@pytest.fixture
async def queue(server, prefix):
    async with queue_at(server, prefix) as queue:
        yield queue


def address_of(process: subprocess.Popen[str]) -> tuple[str, int]:
    """Where it says that it listens."""
    assert process.stderr
    line = process.stderr.readline()
    match = re.search(r"dashboard at http://(.+):(\d+)/", line)
    assert match, line + process.stderr.read()
    return match[1].strip("[]"), int(match[2])


def ask(address: tuple[str, int], path: str = "/", **headers: str) -> tuple[int, str]:
    connection = HTTPConnection(*address, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()


async def test_it_listens_on_loopback_and_ends_when_told(start, queue, prefix):
    await queue.enqueue({})
    process = start("dashboard", "--port", "0", "--prefix", prefix)
    address = address_of(process)
    assert address[0] == "127.0.0.1"
    status, page = ask(address)
    assert (status, prefix in page) == (200, True)
    assert ask(address, Host="evil.example")[0] == 421
    # A page that somebody watches keeps no server from ending.
    with socket.create_connection(address) as watching:
        watching.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in watching.recv(15)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    _, rest = process.communicate()
    assert "Traceback" not in rest
    assert "exceeded" not in rest


async def test_ctrl_c_ends_it(terminal, queue, prefix):
    view = terminal("dashboard", "--port", "0", "--prefix", prefix)
    view.wait_for("Ctrl-C ends it")
    view.press("\x03")
    ended = view.end()
    assert "Traceback" not in ended.out
    assert ended.code == 0


async def test_its_password_comes_from_a_file_or_the_environment(start, run, queue, prefix, tmp_path, monkeypatch):
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\nnot this\n")
    monkeypatch.setenv("STREAMS_QUEUE_DASHBOARD_USER", "ops")
    process = start("dashboard", "--port", "0", "--prefix", prefix, "--password-file", str(file), "--host", "0.0.0.0")
    address = ("127.0.0.1", address_of(process)[1])
    assert ask(address)[0] == 401
    known = "Basic " + base64.b64encode(f"ops:{PASSWORD}".encode()).decode()
    assert ask(address, Authorization=known)[0] == 200
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate()
    assert PASSWORD not in log
    assert "401" in log
    monkeypatch.setenv("STREAMS_QUEUE_DASHBOARD_PASSWORD", PASSWORD)
    process = start("dashboard", "--port", "0", "--prefix", prefix)
    assert ask(address_of(process))[0] == 401


async def test_read_only(start, queue, prefix):
    process = start("dashboard", "--port", "0", "--prefix", prefix, "--read-only")
    assert "read-only" in ask(address_of(process))[1]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_it_listens_elsewhere_with_a_password_alone(run, host):
    code, out, err = run("dashboard", "--host", host, "--port", "0")
    assert (code, out) == (2, "")
    assert "STREAMS_QUEUE_DASHBOARD_PASSWORD" in err


def test_what_is_wrong_is_said(run, tmp_path, server):
    assert run("dashboard", "--port", "0", STREAMS_QUEUE_URL="redis://127.0.0.1:1").code == 3
    assert run("dashboard", "--port", "0", "--url", "embedded://").code == 2
    assert run("dashboard", "--port", "0", "--prefix", "a b").code == 2
    assert run("dashboard", "--port", "0", "--allowed-host", "example.org").code == 2
    assert run("dashboard", "--port", "0", "--password-file", str(tmp_path / "none")).code == 2
    (tmp_path / "empty").touch()
    assert run("dashboard", "--port", "0", "--password-file", str(tmp_path / "empty")).code == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run("dashboard", "--port", str(taken.getsockname()[1]))
        assert code == 1
        assert "cannot listen on 127.0.0.1" in err


def test_no_password_stands_in_the_arguments(run):
    assert "--password " not in run("dashboard", "--help").out


async def test_changes_stand_in_its_log(start, queue, prefix):
    process = start("dashboard", "--port", "0", "--prefix", prefix)
    address = address_of(process)
    connection = HTTPConnection(*address, timeout=10)
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
    token = cookie.partition("=")[2]
    headers = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", f"/queues/{prefix}/pause", f"csrf={token}", headers)
    assert connection.getresponse().status == 303
    connection.close()
    assert (await queue.stats()).paused
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate()
    assert f"pause by anybody on this machine from 127.0.0.1: queue {prefix}, 0 ids: done" in log
