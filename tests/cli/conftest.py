"""The command line as people use it: processes of their own, some of them in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import canary
import servers
from cli.commands import Commands, Ended

PROGRAM = [sys.executable, "-c", "from streams_queue.cli import main; main()"]
SECONDS = 20.0

IN_ITS_TERMINAL = """
import fcntl, signal, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
"""Makes the terminal the controlling one: Ctrl-C pressed there is a signal, also where this run ignores it."""

UNDER_NOHUP = f"{IN_ITS_TERMINAL}signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"


class Answer(NamedTuple):
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


Run = Callable[..., Answer]


def environment(server: servers.AnyServer, prefix: str, **more: str) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    return bare | {"STREAMS_QUEUE_URL": server.url, "STREAMS_QUEUE_PREFIX": prefix, "TERM": "xterm-256color", **more}


def run_afresh(arguments: Sequence[str], environ: Mapping[str, str], stdin: bytes) -> Ended:
    done = subprocess.run(
        [*PROGRAM, *arguments], input=stdin, env=environ, capture_output=True, timeout=SECONDS, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    with Commands() as commands:
        yield commands


@pytest.fixture
def run(server: servers.AnyServer, prefix: str, commands: Commands) -> Run:
    """Runs `streams-queue` with these arguments and waits for its end; no terminal anywhere."""

    def run(*arguments: str, stdin: str | bytes = "", **more: str) -> Answer:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        environ = environment(server, prefix, **more)
        # What an interpreter reads at its start takes one of its own.
        fresh = any(name.startswith("PYTHON") for name in more)
        code, out, err = (run_afresh if fresh else commands.run)(arguments, environ, given)
        canary.check(out + err, arguments)
        return Answer(code, out.decode(), err.decode())

    return run


@pytest.fixture
def start(server: servers.AnyServer, prefix: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `streams-queue` with these arguments, its output in pipes."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*PROGRAM, *arguments],
                env=environment(server, prefix),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


class Terminal:
    """A command in a terminal of its own: what it shows, and keys to press."""

    def __init__(self, arguments: tuple[str, ...], environ: dict[str, str], columns: int, before: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            [*PROGRAM[:2], before + PROGRAM[2], *arguments],
            stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def wait_for(self, words: str) -> None:
        """Read until these words are shown, from here on."""
        self.shown, before, deadline = "", self.shown, time.monotonic() + SECONDS
        while words not in self.shown:
            assert time.monotonic() < deadline, f"{words!r} is not shown:\n{self.shown[-2000:]}"
            assert self._read(), f"the command ended without {words!r}:\n{self.shown}"
        self.shown = before + self.shown

    def wait_for_question(self, words: str) -> None:
        """As `wait_for`, until the answer is read: Python's `input` does not notice a Ctrl-C that comes before."""
        self.wait_for(words)
        stat = Path(f"/proc/{self.process.pid}/stat")
        if stat.exists():
            servers.wait_until(lambda: stat.read_text().rpartition(") ")[2].startswith("S"), SECONDS, "a read")

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))

    def hang_up(self) -> None:
        """Close the terminal under the command."""
        os.close(self.master)
        self.master = -1

    def end(self) -> Answer:
        """Read to the end; stdout and stderr are one in a terminal."""
        deadline = time.monotonic() + SECONDS
        while self._read():
            assert time.monotonic() < deadline, f"it does not end:\n{self.shown[-2000:]}"
        canary.check(self.shown)
        return Answer(self.process.wait(SECONDS), self.shown.replace("\r\n", "\n"), "")

    def _read(self) -> bool:
        ready, _, _ = select.select([self.master], [], [], SECONDS)
        assert ready, f"nothing more is shown for {SECONDS} s:\n{self.shown}"
        try:
            read = os.read(self.master, 65536)
        except OSError:  # the other side is closed
            return False
        self.shown += read.decode(errors="replace")
        return bool(read)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        if self.master >= 0:
            os.close(self.master)


@pytest.fixture
def terminal(server: servers.AnyServer, prefix: str) -> Iterator[Callable[..., Terminal]]:
    """Starts `streams-queue` with these arguments in a terminal."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, columns: int = 100, before: str = IN_ITS_TERMINAL, **more: str) -> Terminal:
            started = Terminal(arguments, environment(server, prefix, **more), columns, before)
            stack.callback(started.close)
            return started

        yield start
