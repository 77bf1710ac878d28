"""For `streams-queue worker bench.programs.several:worker`: its handler computes for as long as it is told."""

from __future__ import annotations

import os
import time
from typing import Any

from bench.programs.ours import CONCURRENCY, PREFIX
from streams_queue import Queue, Worker

COMPUTE = float(os.environ["BENCH_COMPUTE"])
"""Seconds of processor time."""

queue: Queue[Any] = Queue(PREFIX)
worker = Worker(queue, concurrency=CONCURRENCY, poll_interval=0.05)


@worker.handler
async def handle(message: Any) -> None:
    until = time.thread_time() + COMPUTE
    while time.thread_time() < until:
        pass
