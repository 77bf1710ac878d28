"""`streams-queue worker MODULE:OBJECT`: run a worker of the application's own in this process."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Annotated, Any

import anyio
import typer

from streams_queue.cli import loop
from streams_queue.cli.line import Line, Order, Report
from streams_queue.cli.supervisor import supervise
from streams_queue.cli.target import load_worker
from streams_queue.cli.terminal import LogFormat, LogLevel, ending_signals, fail_by, log_to_stderr
from streams_queue.errors import ConfigurationError, StreamsQueueError
from streams_queue.settings import Address
from streams_queue.worker import Worker

logger = logging.getLogger(__name__)

EPILOG = """\
\b
Examples:
  streams-queue worker myapp.jobs:worker
  streams-queue worker myapp.jobs:worker --concurrency 8
  streams-queue worker myapp.jobs:worker --processes 4
  streams-queue worker myapp.jobs:worker --metrics-port 9401
  REDIS_URL=redis://cache:6379/0 streams-queue worker myapp.jobs:worker

\b
The server is the one that the queue names (`Queue("jobs", url=...)`), or else
the environment: STREAMS_QUEUE_URL, REDIS_URL, REDIS_HOST and its companions.

\b
One process uses one core of Python. With --processes so many work side by
side, each with --concurrency handlers at a time. One that dies is started
again: after 0.5 s, then twice as long each time up to 30 s, and after 60 s at
work it is all forgotten.

\b
SIGTERM, SIGINT or a closed terminal (SIGHUP): takes nothing more, finishes
what it holds within the worker's grace period, hands back the rest. A second
one: hands back now. Under nohup a closed terminal does not end it.

\b
Exit codes:
  0  stopped, or with --burst done: what it held is finished or handed back
  1  an unexpected error; with --processes also one that had to be killed
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
            min=1, metavar="N", help="Handlers that run at the same time in a process, instead of the worker's number."
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Work in so many processes, and start again what dies."),
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
    process: Annotated[int | None, typer.Option(hidden=True)] = None,
    line: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Work on a queue's messages. Start it again, anywhere, to go faster."""
    log_to_stderr(log_level, log_format, process)
    try:
        if processes is not None and line is None:
            options = [f"--log-level={log_level}", f"--log-format={log_format}"]
            options += [f"--concurrency={concurrency}"] if concurrency is not None else []
            options += [name for name, given in (("--burst", burst), ("--log-payload", log_payload)) if given]
            options += ["--metrics-port=0"] if metrics_port is not None else []

            def command(number: int, descriptor: int) -> list[str]:
                among = [f"--processes={processes}", f"--process={number}", f"--line={descriptor}"]
                return ["worker", *options, *among, "--", target]

            asked = supervise(processes, command, burst=burst, host=metrics_host, port=metrics_port)
            raise typer.Exit(asyncio.run(asked))
        supervisor = None if line is None else Line(line)
        loaded = load_worker(target)
        if concurrency is not None:
            loaded.concurrency = concurrency
        loaded.message_log.payload |= log_payload
        look_at_server(loaded, supervised=supervisor is not None)
        with nullcontext() if metrics_port is None else monitored(loaded, metrics_host, metrics_port) as port:
            loop.run(serve(loaded, burst=burst, supervisor=supervisor, port=port))
    except StreamsQueueError as error:
        fail_by(error)


def look_at_server(worker: Worker[Any], *, supervised: bool) -> None:
    """Say so where nobody else can reach the worker's server.

    Raises:
        ConfigurationError: and it is one of several processes.
    """
    address = worker.queue.settings.address
    if supervised and address.kind == "embedded":
        raise ConfigurationError(
            "embedded:// is a server of one process alone, so several cannot share its queue: name one that all can "
            "reach, for example by REDIS_URL, or leave out --processes"
        )
    if address == Address("embedded"):
        logger.warning(
            "embedded:// is a server of this process alone: nobody else can send messages to this worker; "
            "name one that all can reach, for example by REDIS_URL"
        )


@contextmanager
def monitored(worker: Worker[Any], host: str, port: int) -> Iterator[int]:
    """Serve the worker's health and numbers meanwhile; on which port is yielded.

    Raises:
        ConfigurationError: prometheus_client is not installed, or it is impossible to listen there.
    """
    from streams_queue import metrics, monitor  # noqa: PLC0415  (the extra may be absent)

    if not metrics.is_observed(worker):  # as by the application
        metrics.observe(worker)
    with monitor.Monitor(worker, host=host, port=port) as served:
        logger.info("health and metrics of the worker: http://%s", served.address)
        yield served.port


async def serve(worker: Worker[Any], *, burst: bool, supervisor: Line | None = None, port: int | None = None) -> None:
    """Run the worker until it is done: the first signal stops it, the second cancels it; so do a supervisor's orders.

    Args:
        worker: closed at the end.
        burst: done is when nothing is left to do now.
        supervisor: who is told when the worker is at work.
        port: where its health is served.
    """
    received: list[int] = []

    def obey(order: Order) -> None:
        match order:
            case Order.STOP:
                worker.stop()
            case Order.HURRY:
                scope.cancel()

    def on_signal(number: int) -> None:
        received.append(number)
        obey(Order.STOP if len(received) == 1 else Order.HURRY)

    def on_order(order: Order) -> None:
        with suppress(RuntimeError):  # the loop is closed: the worker has ended
            running.call_soon_threadsafe(obey, order)

    running = asyncio.get_running_loop()
    try:
        with anyio.CancelScope() as scope:
            for number in ending_signals():
                running.add_signal_handler(number, on_signal, number)
            if supervisor is not None:
                supervisor.attach(on_order)
                threading.Thread(target=_report, args=(worker, supervisor, port), daemon=True).start()
            await worker.run(burst=burst)
        _end_within(LINGER)
    finally:
        await worker.queue.close()


def _report(worker: Worker[Any], supervisor: Line, port: int | None) -> None:
    """Tell the supervisor, by a thread of its own: the first message may block the event loop."""
    while not worker.ready:
        time.sleep(0.02)
    supervisor.report(Report(worker._grace, port))


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
