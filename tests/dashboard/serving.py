"""The dashboard in a process of its own, as `streams-queue dashboard` starts it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import canary
import servers
from cli.conftest import PROGRAM, environment

PREFIX = "orders"


class Board:
    """A dashboard at work: where it answers, and what it has printed."""

    def __init__(self, address: str, log: Path | None = None) -> None:
        self.address = address
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log else ""

    def __truediv__(self, path: str) -> str:
        return f"{self.address}/{path}"


@contextmanager
def serving(server: servers.AnyServer, *arguments: str, **environ: str) -> Iterator[Board]:
    """Run `streams-queue dashboard` until the block ends."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*PROGRAM, "dashboard", "--port", "0", "--prefix", PREFIX, *arguments],
                env=environment(server, PREFIX, **environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            servers.wait_until(lambda: _address(log), 60, "the dashboard's start")
            yield Board(_address(log), log)
        finally:
            process.terminate()
            process.wait(20)
        canary.check(log.read_bytes(), "the dashboard's log")


def _address(log: Path) -> str:
    found = re.search(r"dashboard at (http://\S+)/ ", log.read_text())
    return found[1] if found else ""
