"""What a worker's process shows to whoever runs it, over HTTP: ``/live``, ``/ready``, ``/load`` and ``/metrics``.

It is served by a thread with an event loop and a connection of its own, so that a handler that blocks the worker's loop
is seen from outside.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import msgspec

from streams_queue.connection import Connection
from streams_queue.endpoint import Answer, Request, address_of, as_json, listen, serve
from streams_queue.metrics import exposition_of_queues, exposition_of_registry, states_of
from streams_queue.model import Stats
from streams_queue.queue import Queue
from streams_queue.settings import Settings
from streams_queue.sharding import ShardedQueue
from streams_queue.worker import Worker

logger = logging.getLogger(__name__)

LOOK_WITHIN = 2.0
"""Seconds that one answer of the server may take; a prober gives up soon, too."""


class Monitor:
    """Serves one worker's health and numbers, as ``with Monitor(worker, port=9400):`` around its run.

    ``/metrics`` shows prometheus_client's own registry: measure the worker with `metrics.observe` to have it in there.

    Args:
        worker: whose health it is.
        host: the address to listen on; loopback unless told otherwise. Whoever reaches it may read.
        port: 0: any that is free; `port` then says which.

    Raises:
        ConfigurationError: it is impossible to listen there.
    """

    def __init__(self, worker: Worker[Any], *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._worker = worker
        self._listening = listen(host, port)
        self.address = address_of(self._listening)
        self.port: int = self._listening.getsockname()[1]
        self._queue = _twin(worker.queue)
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="streams-queue monitor", daemon=True
        )
        self._up = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._up.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LOOK_WITHIN)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        pages = {"/metrics": self._metrics, "/load": self._load, "/live": self._live, "/ready": self._ready}
        serving = asyncio.create_task(serve(self._listening, pages))
        self._up.set()
        await self._stop.wait()
        serving.cancel()
        await asyncio.wait([serving])
        await self._queue.close()

    async def _metrics(self, request: Request) -> Answer:
        return Answer(HTTPStatus.OK, *exposition_of_registry(accept=request.headers.get("accept", "")))

    async def _load(self, _: Request) -> Answer:
        await self._queue.open()
        stats, worker = await self._queue.stats(), self._worker
        mine = {"slots": worker.concurrency, "busy": worker.busy, "saturation": worker.busy / worker.concurrency}
        return as_json(load_of(worker.queue.keys.prefix, stats) | mine)

    async def _live(self, _: Request) -> Answer:
        return _verdict("live", self._worker.live, silence=round(self._worker.silence, 3))

    async def _ready(self, _: Request) -> Answer:
        return _verdict("ready", self._worker.ready)


class Exporter:
    """Serves what whole queues count: ``/metrics`` for Prometheus, ``/load`` for autoscalers. One for all processes.

    Args:
        queues: each name once.
    """

    def __init__(self, queues: Sequence[Queue[Any]]) -> None:
        self._queues = {queue.keys.prefix: queue for queue in queues}

    async def run(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Serve until cancelled.

        Raises:
            ConfigurationError: it is impossible to listen there.
        """
        listening = listen(host, port)
        logger.info("metrics of %s: http://%s/metrics", ", ".join(self._queues), address_of(listening))
        pages = {"/metrics": self._metrics, "/load": self._load, "/live": self._live, "/ready": self._ready}
        await serve(listening, pages)

    async def _metrics(self, request: Request) -> Answer:
        exposition = await exposition_of_queues([*self._queues.values()], request.headers.get("accept", ""))
        return Answer(HTTPStatus.OK, *exposition)

    async def _load(self, request: Request) -> Answer:
        name = request.query.get("queue", next(iter(self._queues)) if len(self._queues) == 1 else "")
        queue = self._queues.get(name)
        if queue is None:
            words = f"which queue? Ask for /load?queue=NAME, NAME one of {', '.join(self._queues)}"
            return as_json({"error": words}, HTTPStatus.NOT_FOUND)
        await queue.open()
        return as_json(load_of(name, await queue.stats()))

    async def _live(self, _: Request) -> Answer:
        return _verdict("live", True)

    async def _ready(self, _: Request) -> Answer:
        for queue in self._queues.values():
            await queue.open()
            await queue.stats()
        return _verdict("ready", True)


def load_of(queue: str, stats: Stats) -> dict[str, Any]:
    """What an autoscaler looks at: messages by state, seconds that the oldest has waited (0 where none), workers."""
    return {
        "queue": queue, **states_of(stats), "oldest_waiting_seconds": stats.oldest_waiting or 0.0,
        "workers": stats.workers, "paused": stats.paused,
    }  # fmt: skip


def _twin(queue: Queue[Any]) -> Queue[Any]:
    """The same queue, for a thread of its own and a prober without patience."""
    if not isinstance(queue, ShardedQueue):
        twin = Queue(queue.keys.prefix, url=queue.settings.url)
        twin.use(Connection(_impatient(queue.settings)))
        return twin
    sharded = ShardedQueue(queue.keys.prefix, shards=None, url=[settings.url for settings in queue.servers])
    sharded.servers = tuple(map(_impatient, queue.servers))
    sharded.use(Connection(sharded.servers[0]))
    return sharded


def _impatient(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, timeout=min(settings.timeout, LOOK_WITHIN))


def _verdict(name: str, verdict: bool, **more: Any) -> Answer:
    return as_json({name: verdict, **more}, HTTPStatus.OK if verdict else HTTPStatus.SERVICE_UNAVAILABLE)
