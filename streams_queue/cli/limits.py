"""`streams-queue limits`: show what a queue declines and holds back, change it, take it away."""

from typing import Annotated, Any

import msgspec
import typer

from streams_queue.cli.options import EXIT_CODES, Json, Prefix, Url, on_queue
from streams_queue.cli.output import print_facts, print_json
from streams_queue.cli.terminal import MISUSED, fail
from streams_queue.errors import ConfigurationError
from streams_queue.limits import MEANINGS, Limits, Rate, spelt, text_of
from streams_queue.queue import Queue

SHOW_EPILOG = f"""\
\b
Examples:
  streams-queue limits --prefix orders
  streams-queue limits set --prefix orders --max-length 10000 --accept 100/s
  streams-queue limits set --prefix chat --key user_id --accept-per-key 5/1m
  streams-queue limits clear --prefix orders max-length

\b
They hold for every producer and worker of the queue, from the next call on.

{EXIT_CODES}"""

SET_EPILOG = f"""\
\b
Examples:
  streams-queue limits set --prefix orders --max-length 10000 --accept 100/s
  streams-queue limits set --prefix chat --key user_id --accept-per-key 5/1m
  streams-queue limits set --prefix chat --work 30/s --concurrency-per-key 1

\b
Rates are messages in a period: 30/s, 5/10s, 100/1m. What is not named stays
as it is.

{EXIT_CODES}"""

CLEAR_EPILOG = f"""\
\b
Examples:
  streams-queue limits clear --prefix orders max-length accept
  streams-queue limits clear --prefix orders

{EXIT_CODES}"""

app = typer.Typer(rich_markup_mode=None)


def _rate(text: str) -> Rate:
    try:
        return Rate.parse(text)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from None


def _option(name: str, **options: Any) -> Any:
    return typer.Option(f"--{spelt(name)}", help=MEANINGS[name], **options)


def _accepting(name: str) -> Any:
    return _option(name, parser=_rate, metavar="N/TIME")


@app.callback(invoke_without_command=True, epilog=SHOW_EPILOG)
def show(context: typer.Context, prefix: Prefix = None, url: Url = None, as_json: Json = False) -> None:
    """Show a queue's limits; `set` and `clear` change them."""
    if context.invoked_subcommand is None:
        _print(on_queue(prefix, url, Queue.limits), as_json)
    elif any(_is_given(context, name) for name in context.params):
        name = context.invoked_subcommand
        fail(f"options belong behind the command, as in streams-queue limits {name} --prefix orders", MISUSED)


@app.command("set", epilog=SET_EPILOG)
def set_(
    prefix: Prefix = None,
    url: Url = None,
    as_json: Json = False,
    key: Annotated[str | None, _option("key", metavar="FIELD")] = None,
    max_length: Annotated[int | None, _option("max_length", metavar="N")] = None,
    accept: Annotated[Rate | None, _accepting("accept")] = None,
    accept_per_key: Annotated[Rate | None, _accepting("accept_per_key")] = None,
    work: Annotated[Rate | None, _accepting("work")] = None,
    work_per_key: Annotated[Rate | None, _accepting("work_per_key")] = None,
    concurrency_per_key: Annotated[int | None, _option("concurrency_per_key", metavar="N")] = None,
    normal_share: Annotated[float | None, _option("normal_share", metavar="X")] = None,
    low_share: Annotated[float | None, _option("low_share", metavar="X")] = None,
) -> None:
    """Set some limits; the others stay."""
    asked = {
        "key": key, "max_length": max_length, "accept": accept, "accept_per_key": accept_per_key, "work": work,
        "work_per_key": work_per_key, "concurrency_per_key": concurrency_per_key, "normal_share": normal_share,
        "low_share": low_share,
    }  # fmt: skip
    changes = {name: value for name, value in asked.items() if value is not None}
    if not changes:
        fail(f"set which? Name some of {', '.join(f'--{spelt(name)}' for name in _NAMES)}", MISUSED)
    _print(on_queue(prefix, url, lambda queue: _change(queue, changes)), as_json)


@app.command(epilog=CLEAR_EPILOG)
def clear(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="LIMIT", help="Which, as max-length; all without.", show_default=False)
    ] = None,
    prefix: Prefix = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Take limits away."""
    wanted = [name.removeprefix("--").replace("-", "_") for name in names or _NAMES]
    for name in wanted:
        if name not in _NAMES:
            fail(f"{name!r} is no limit: name some of {', '.join(map(spelt, _NAMES))}", MISUSED)
    changes = {name: getattr(Limits(), name) for name in wanted}
    _print(on_queue(prefix, url, lambda queue: _change(queue, changes)), as_json)


_NAMES = Limits.__struct_fields__


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands in the command itself, and not in the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


async def _change(queue: Queue[dict[str, Any]], changes: dict[str, Any]) -> Limits:
    limits = Limits(**{**msgspec.structs.asdict(await queue.limits()), **changes})
    await queue.set_limits(limits)
    return limits


def _print(limits: Limits, as_json: bool) -> None:
    if as_json:
        print_json(msgspec.to_builtins(limits))
        return
    print_facts([(spelt(name), text_of(getattr(limits, name)) or "none") for name in _NAMES])
