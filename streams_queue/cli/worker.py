"""`streams-queue worker MODULE:OBJECT`: run a worker of the application's own in this process."""

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any

import anyio
import typer

from streams_queue.cli import loop
from streams_queue.cli.target import load_worker
from streams_queue.cli.terminal import LogFormat, LogLevel, ending_signals, fail_by, log_to_stderr
from streams_queue.errors import StreamsQueueError
from streams_queue.settings import Address
from streams_queue.worker import Worker

logger = logging.getLogger(__name__)

EPILOG = """\
\b
Examples:
  streams-queue worker myapp.jobs:worker
  streams-queue worker myapp.jobs:worker --concurrency 8
  streams-queue worker myapp.jobs:worker --metrics-port 9401
  REDIS_URL=redis://cache:6379/0 streams-queue worker myapp.jobs:worker

\b
The server is the one that the queue names (`Queue("jobs", url=...)`), or else
the environment: STREAMS_QUEUE_URL, REDIS_URL, REDIS_HOST and its companions.

\b
SIGTERM, SIGINT or a closed terminal (SIGHUP): takes nothing more, finishes
what it holds within the worker's grace period, hands back the rest. A second
one: hands back now. Under nohup a closed terminal does not end it.

\b
Exit codes:
  0  stopped, or with --burst done: what it held is finished or handed back
  1  an unexpected error
  2  wrong arguments or configuration
  3  the server could not be reached at the start
"""


def worker(
    target: Annotated[
        str,
        typer.Argument(metavar="MODULE:OBJECT", help="The Worker to run, as in myapp.jobs:worker.", show_default=False),
    ],
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Handlers that run at the same time, instead of the worker's own number."
        ),
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="End when nothing is left to do now.")] = False,
    log_level: Annotated[LogLevel, typer.Option(help="How much is logged to stderr.")] = LogLevel.INFO,
    log_format: Annotated[LogFormat, typer.Option(help="A line of text a record, or a JSON object.")] = LogFormat.TEXT,
    log_payload: Annotated[
        bool, typer.Option("--log-payload", help="Lines about messages show the payload, secrets hidden.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(metavar="N", help="Serve /metrics, /load, /live and /ready on this port; 0 is any free one."),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to serve them; 0.0.0.0 is everywhere.")
    ] = "127.0.0.1",
) -> None:
    """Work on a queue's messages. Start it again, anywhere, to go faster."""
    log_to_stderr(log_level, log_format)
    try:
        loaded = load_worker(target)
        if concurrency is not None:
            loaded.concurrency = concurrency
        loaded.message_log.payload |= log_payload
        if loaded.queue.settings.address == Address("embedded"):
            logger.warning(
                "embedded:// is a server of this process alone: nobody else can send messages to this worker; "
                "name one that all can reach, for example by REDIS_URL"
            )
        with nullcontext() if metrics_port is None else monitored(loaded, metrics_host, metrics_port):
            loop.run(serve(loaded, burst=burst))
    except StreamsQueueError as error:
        fail_by(error)


@contextmanager
def monitored(worker: Worker[Any], host: str, port: int) -> Iterator[None]:
    """Serve the worker's health and numbers meanwhile.

    Raises:
        ConfigurationError: prometheus_client is not installed, or it is impossible to listen there.
    """
    from streams_queue import metrics, monitor  # noqa: PLC0415  (the extra may be absent)

    if not metrics.is_observed(worker):  # as by the application
        metrics.observe(worker)
    with monitor.Monitor(worker, host=host, port=port) as served:
        logger.info("health and metrics of the worker: http://%s", served.address)
        yield


async def serve(worker: Worker[Any], *, burst: bool) -> None:
    """Run the worker until it is done: the first signal stops it, the second cancels it."""
    received: list[int] = []

    def on_signal(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            worker.stop()
        else:
            scope.cancel()

    running = asyncio.get_running_loop()
    try:
        with anyio.CancelScope() as scope:
            for number in ending_signals():
                running.add_signal_handler(number, on_signal, number)
            await worker.run(burst=burst)
        _end_within(LINGER)
    finally:
        await worker.queue.close()


LINGER = 0.5
"""Seconds that threads of handlers have to end, once all messages are finished or handed back."""


def _end_within(seconds: float) -> None:
    """Threads cannot be cancelled, and the interpreter waits for them: what they work on may be another's by now."""

    def end() -> None:
        lingering = any(not thread.daemon and thread is not main for thread in threading.enumerate())
        if lingering:
            logger.error("threads of handlers do not end: leaving without them")
            logging.shutdown()
            os._exit(0)

    main = threading.current_thread()
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
