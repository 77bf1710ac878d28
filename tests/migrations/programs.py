"""What runs in a process of its own: a migrating one that is killed, or one whose memory is measured."""

from __future__ import annotations

import asyncio
import re
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from migrations.steps import silent
from streams_queue import Queue
from streams_queue_migrations import apply, applying, marking, roll_back

MARK_LASTS = 0.3
"""Seconds that the mark of a killed one holds up the next."""


def run(step: str, url: str, prefix: str, grace: float, told: Connection | None = None) -> None:
    """Take one step; `told` hears when it begins, and when it has written its first page."""
    applying.GRACE, applying.LOOKS, marking.LASTS = grace, 2, MARK_LASTS
    asyncio.run(_run(step, url, prefix, told))


async def _run(step: str, url: str, prefix: str, told: Connection | None) -> None:
    def progress(*_: object) -> None:
        nonlocal told
        if told is not None:
            told.send("writes")
            told = None

    async with Queue(prefix, url=url) as queue:
        if told is not None:
            told.send("began")
        if step == "apply":
            assert (await apply(queue, progress, silent, watch=0)).verified.clean
        else:
            await roll_back(queue, progress)


def peak_kib() -> int:
    """The most memory this process has had."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None, "Linux says so"
    return int(match[1])


if __name__ == "__main__":
    step, url, prefix = sys.argv[1:]
    run(step, url, prefix, grace=0.2)
    print(peak_kib())
