"""The commands and their names."""

from importlib.metadata import version
from typing import Annotated

import typer

from streams_queue.cli import (
    bench,
    change,
    dashboard,
    demo,
    dlq,
    doctor,
    exporter,
    limits,
    look,
    moving,
    resharding,
    stats,
    worker,
)

EPILOG = """\
\b
Examples:
  streams-queue demo
  streams-queue worker myapp.jobs:worker
  streams-queue stats --prefix orders --watch
  streams-queue doctor --prefix orders

\b
The server is the one that --url names, or else the environment:
STREAMS_QUEUE_URL, REDIS_URL, REDIS_HOST and its companions. The queue may
stand in STREAMS_QUEUE_PREFIX. Each command has help of its own.
"""

app = typer.Typer(
    name="streams-queue",
    epilog=EPILOG,
    help="A message queue on Redis Streams that knows each message's place in line.",
    no_args_is_help=True,
    rich_markup_mode=None,
    # Its tracebacks show local variables, and with them payloads and passwords.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"streams-queue {version('streams-queue')}")
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """What stands before the command."""


app.command(epilog=worker.EPILOG)(worker.worker)
app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=stats.EPILOG)(stats.stats)
app.command(epilog=look.PEEK_EPILOG)(look.peek)
app.command(epilog=look.POSITION_EPILOG)(look.position)
app.command(epilog=look.SHOW_EPILOG)(look.show)
app.command(epilog=change.ENQUEUE_EPILOG)(change.enqueue)
app.command(epilog=change.PRIORITY_EPILOG)(change.priority)
app.command(epilog=change.REMOVE_EPILOG)(change.remove)
app.add_typer(dlq.app, name="dlq", help="Look at dead letters, put them back in line, throw them away.")
app.add_typer(limits.app, name="limits", help="Show the limits of a queue, set them, take them away.")
app.command(epilog=change.PAUSE_EPILOG)(change.pause)
app.command(epilog=change.RESUME_EPILOG)(change.resume)
app.command(epilog=exporter.EPILOG)(exporter.exporter)
app.command(epilog=moving.MIGRATE_EPILOG)(moving.migrate)
app.command(epilog=moving.VERIFY_EPILOG)(moving.verify)
app.command("reshard", epilog=resharding.EPILOG)(resharding.reshard_command)
app.command(epilog=doctor.EPILOG)(doctor.doctor)
app.command(epilog=dashboard.EPILOG)(dashboard.dashboard)
app.command(epilog=bench.EPILOG)(bench.bench)
