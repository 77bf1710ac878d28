"""Runs `streams-queue` in processes of their own, quickly: one process has imported everything, and forks.

An interpreter takes several times as long to start as most commands need to do their work. A forked one is given its
arguments, environment and files, none of which a terminal, and ends as every interpreter does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from streams_queue.cli import main
from streams_queue.cli.app import app

SECONDS = 20


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: bytes
    err: bytes


class Commands:
    """The process that forks, seen from the tests."""

    def __init__(self) -> None:
        self._orders, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cli.commands", str(there.fileno())],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        self._process.wait()

    def run(self, arguments: Sequence[str], environ: Mapping[str, str], stdin: bytes) -> Ended:
        """Run a command to its end; AssertionError where that takes too long."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin)
            given.seek(0)
            order = json.dumps([arguments, dict(environ)]).encode()
            socket.send_fds(self._orders, [order], [file.fileno() for file in (given, out, err)])
            code = int(self._orders.recv(64))
            out.seek(0)
            err.seek(0)
            ended = Ended(code, out.read(), err.read())
        assert code != -signal.SIGALRM, f"{arguments} did not end within {SECONDS} s: {ended}"
        return ended


def _forked(orders: socket.socket) -> bool:
    """True in the process of each command, whose files, environment and arguments are in place; False at the end."""
    while True:
        order, files, _, _ = socket.recv_fds(orders, 1 << 20, 3)
        if not order:
            return False
        if not os.fork():
            break
        for file in files:
            os.close(file)
    # One that waits for the command, and answers.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if command := os.fork():
        _, status = os.waitpid(command, 0)
        orders.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    signal.alarm(SECONDS)
    orders.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    arguments, environ = json.loads(order)
    sys.argv[1:] = arguments
    os.environ.clear()
    os.environ.update(environ)
    return True


if __name__ == "__main__":
    # Parsing imports things, too: a command that ends there.
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        app(["position", "an-id", "--prefix", ""])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    if _forked(socket.socket(fileno=int(sys.argv[1]))):
        main()
