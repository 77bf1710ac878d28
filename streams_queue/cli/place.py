"""A place among a supervisor's processes, and whichever process has it at the moment."""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from streams_queue.cli.line import Order, Report

logger = logging.getLogger(__name__)

Command = Callable[[int, int], Sequence[str]]
"""The arguments of `streams-queue` for a process of this number, whose end of the line has this descriptor."""


class Place:
    """One of the processes, whichever it is at the moment: a dead one's successor has its place and number."""

    def __init__(self, number: int, command: Command) -> None:
        self.number = number
        self.report: Report | None = None
        """What the process that is at work said of itself."""
        self.starts = 0
        self.deaths = 0
        """In a row."""
        self.code: int | None = None
        """How the last process ended: an exit code, or minus the signal that killed it."""
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def name(self) -> str:
        """For log lines."""
        return f"process {self.number} (pid {self._process.pid})" if self._process else f"process {self.number}"

    @property
    def runs(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> asyncio.StreamReader:
        """Start a process, a fresh interpreter; returns what it says."""
        self.report = self.code = None
        self.starts += 1
        ours, theirs = socket.socketpair()
        with theirs:
            program = [sys.executable, "-P", "-m", "streams_queue.cli", *self._command(self.number, theirs.fileno())]
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *program, stdin=asyncio.subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
            except BaseException:
                ours.close()
                raise
        reader, self._writer = await asyncio.open_connection(sock=ours)
        return reader

    async def ended(self) -> int:
        """How the process ended, when it has."""
        assert self._process is not None
        assert self._writer is not None
        self.code = await self._process.wait()
        self._writer.close()
        return self.code

    def tell(self, order: Order) -> None:
        """Give the process an order, if there is one."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(f"{order}\n".encode())

    def kill_after(self, seconds: float) -> None:
        """End the process as kill -9 does, if it is still there by then."""
        asyncio.get_running_loop().call_later(seconds, self._kill)

    def _kill(self) -> None:
        if self._process is not None and self.runs:
            logger.error("%s does not end: it is killed", self.name)
            with suppress(ProcessLookupError):
                self._process.kill()
