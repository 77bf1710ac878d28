"""dramatiq. At least once: a message is acknowledged after the work; its workers are threads.

Its documentation names the number of threads, 8 by default (https://dramatiq.io/guide.html), and says that a worker
prefetches twice as many messages (https://dramatiq.io/reference.html); 32 threads are faster than 8 here. gevent, which
it suggests to try, is slower. What it does not advise, but makes it faster still, is measured apart: the variable
``dramatiq_queue_prefetch`` set to 1,000, with 8 threads. Its worker sleeps for some milliseconds whenever the messages
that it has read ahead are used up. No results are kept unless asked for.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.worker import Worker

from bench.programs.common import CALLERS, Finished, Task, main, say

THREADS = int(os.environ.get("BENCH_THREADS", "32"))


def fill(task: Task) -> None:
    broker = RedisBroker(url=task.url)
    dramatiq.set_broker(broker)
    actor = dramatiq.actor(lambda payload: None, actor_name="handle", broker=broker)
    actor.send(task.payload(0))
    numbers = iter(range(1, task.count))

    def caller() -> None:
        for number in numbers:
            actor.send(task.payload(number))

    threads = [threading.Thread(target=caller) for _ in range(CALLERS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(event="enqueued", seconds=time.perf_counter() - began)


def work(task: Task) -> None:
    finished = Finished(task.count)

    def handle(payload: dict[str, Any]) -> None:
        finished()

    broker = RedisBroker(url=task.url)
    dramatiq.set_broker(broker)
    dramatiq.actor(handle, actor_name="handle", broker=broker)
    Worker(broker, worker_threads=THREADS).start()
    threading.Event().wait()


if __name__ == "__main__":
    main(fill=fill, work=work)
