"""The other queues: what is installed for each, what each promises, and the program that drives it.

How a peer is set up, and where its documentation says so, stands at the top of its program.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".bench"
PROGRAMS = Path(__file__).with_name("programs")

ASYNC = ("hiredis==3.5.0", "uvloop==0.23.0; sys_platform != 'win32'")
"""What makes each asyncio library faster, asked for by its documentation or not."""


class Missing(Exception):
    """This peer cannot run here; the text says why."""


class Peer(NamedTuple):
    """Another queue.

    Attributes:
        name: as people know it.
        packages: what is installed, pinned.
        program: the file that drives it.
        after: when a message counts as done for the queue: what its promise rests on.
        share: of the messages that ours gets, so that a run takes seconds with each.
        batches: whether it has a call that enqueues many.
        advised: whether its documentation says to set it up so; where it does not, it counts apart.
        settings: environment variables.
    """

    name: str
    packages: tuple[str, ...]
    program: str
    after: str
    share: float
    batches: bool = False
    advised: bool = True
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def is_python(self) -> bool:
        return not self.program.endswith(".mjs")

    @property
    def home(self) -> Path:
        """Its environment."""
        return HOME / self.program

    @property
    def version(self) -> str:
        return ", ".join(package.replace("==", " ").replace("@", " ") for package in self.packages[:2])

    def command(self) -> list[str]:
        """What starts its program, installed where it was not.

        Raises:
            Missing: it cannot be installed here.
        """
        if not self.packages:
            return [sys.executable, "-m", f"bench.programs.{self.program}"]
        home, wanted = self.home, "\n".join(self.packages)
        stamp = home / "installed"
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            self._install(home)
            stamp.write_text(wanted)
        if self.is_python:
            return [str(home / "bin" / "python"), "-m", f"bench.programs.{self.program}"]
        return [_tool("node"), str(PROGRAMS / self.program)]

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(ROOT / "tests"), "BENCH_MODULES": str(self.home), **dict(self.settings)}

    def _install(self, home: Path) -> None:
        if self.is_python:
            _run([sys.executable, "-m", "venv", str(home)])
            _run([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *self.packages])
        else:
            _tool("node")
            (home / "package.json").write_text('{"private": true}\n')
            npm = [_tool("npm"), "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
            _run([*npm, "--prefix", str(home), *self.packages])


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{' '.join(command[:4])} failed: {(done.stderr or done.stdout).strip()[-300:]}")


PEERS = (
    Peer(
        "arq", ("arq==0.28.0", "redis==5.3.1", *ASYNC), "with_arq",
        "at least once: taken off after the work", 0.05,
    ),
    Peer(
        "taskiq", ("taskiq==0.13.0", "taskiq-redis==1.2.4", "redis==8.1.0", *ASYNC), "with_taskiq",
        "at least once: acknowledged after the work", 0.1,
    ),
    Peer(
        "SAQ", ("saq==0.26.4", "redis==7.4.1", "typing_extensions==4.16.0", *ASYNC), "with_saq",
        "at least once: taken off after the work", 0.1,
    ),
    Peer(
        "dramatiq", ("dramatiq==2.2.1", "redis==8.1.0", "hiredis==3.5.0"), "with_dramatiq",
        "at least once: acknowledged after the work", 0.1,
    ),
    Peer(
        "dramatiq, 1,000 read ahead", ("dramatiq==2.2.1", "redis==8.1.0", "hiredis==3.5.0"), "with_dramatiq",
        "at least once: acknowledged after the work", 0.1, advised=False,
        settings=(("dramatiq_queue_prefetch", "1000"), ("BENCH_THREADS", "8")),
    ),
    Peer(
        "streaq", ("streaq==7.2.0", "coredis==6.9.0", *ASYNC), "with_streaq",
        "at least once: acknowledged after the work", 0.03, batches=True,
    ),
    Peer(
        "docket", ("pydocket==0.27.0", "redis==8.1.0", *ASYNC), "with_docket",
        "at least once: acknowledged after the work", 0.015,
    ),
    Peer(
        "BullMQ for Python", ("bullmq==3.4.4", "redis==8.1.0", *ASYNC), "with_bullmq",
        "at least once: lock, finished after the work", 0.05, batches=True,
    ),
    Peer(
        "BullMQ on Node", ("bullmq@6.7.0", "ioredis@6.0.0"), "with_bullmq.mjs",
        "at least once: lock, finished after the work", 0.4, batches=True,
    ),
)  # fmt: skip

OURS = Peer("streams-queue", (), "ours", "at least once: lease, finished after the work, fenced", 1.0, batches=True)
