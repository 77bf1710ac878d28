"""`streams-queue exporter`: what queues count, for Prometheus and autoscalers, from one place."""

import asyncio
from typing import Annotated

import typer

from streams_queue.cli.options import EXIT_CODES, PREFIX, Url, queue_name, refuse_private
from streams_queue.cli.terminal import LogFormat, LogLevel, ending_signals, fail_by, log_to_stderr
from streams_queue.errors import StreamsQueueError
from streams_queue.named import NamedQueue

PORT = 9400

EPILOG = f"""\
\b
Examples:
  streams-queue exporter --prefix orders
  streams-queue exporter --prefix orders --prefix emails --host 0.0.0.0

\b
Pages: /metrics for Prometheus, /load?queue=NAME as JSON for autoscalers,
/live and /ready for supervisors. One exporter is enough, however many workers
run.

{EXIT_CODES}"""


def exporter(
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            "--prefix", metavar="P", envvar=PREFIX, help="A queue: what its keys begin with. May be repeated."
        ),
    ] = None,
    url: Url = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="The port; 0 is any free one.")] = PORT,
    log_format: Annotated[LogFormat, typer.Option(help="A line of text a record, or a JSON object.")] = LogFormat.TEXT,
) -> None:
    """Serve what whole queues count, for Prometheus and autoscalers."""
    log_to_stderr(LogLevel.INFO, log_format)
    names = [queue_name(name) for name in dict.fromkeys(prefix or [""])]
    try:
        asyncio.run(_serve(names, url, host, port))
    except StreamsQueueError as error:
        fail_by(error)


async def _serve(names: list[str], url: str | None, host: str, port: int) -> None:
    from streams_queue.monitor import Exporter  # noqa: PLC0415  (the extra may be absent)

    queues = [NamedQueue(name, url=url) for name in names]
    refuse_private(queues[0].settings)
    serving = asyncio.create_task(Exporter(queues).run(host, port))
    for number in ending_signals():
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        await asyncio.wait([serving])
        if not serving.cancelled():
            serving.result()
    finally:
        for queue in queues:
            await queue.close()
