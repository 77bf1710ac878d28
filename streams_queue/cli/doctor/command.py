"""What the `doctor` command does: look at the server, then at each queue, and tell each verdict at once."""

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from streams_queue import inspection
from streams_queue.cli.doctor import queue as in_queue
from streams_queue.cli.doctor import server as on_server
from streams_queue.cli.doctor.access import look_at_access
from streams_queue.cli.doctor.check import Check, Verdict
from streams_queue.cli.doctor.roles import PASSWORD, Role, of_shards, rule
from streams_queue.cli.options import refuse_private
from streams_queue.cli.output import Listing, console, print_json, remark, say
from streams_queue.cli.terminal import FAILED, MISUSED, LogLevel, code_of, fail, fail_by, log_to_stderr
from streams_queue.connection import Connection
from streams_queue.errors import ConfigurationError, StreamsQueueError
from streams_queue.keys import Keys
from streams_queue.named import NamedQueue, shares_of
from streams_queue.queue import Queue
from streams_queue.redaction import printable
from streams_queue.settings import Settings

WARNED = 4
"""The exit code of warnings without a danger."""

_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.DANGER: "bold red", Verdict.UNKNOWN: "cyan"}
_NAMES = 13

Found = Check | Iterable[Check]


def run(prefixes: Sequence[str], url: str | None, role: Role | None, *, as_json: bool) -> None:
    """Look, tell, and end with the exit code of the worst."""
    log_to_stderr(LogLevel.ERROR)
    try:
        servers = Settings.resolve_all(url)
        refuse_private(servers[0])
        for prefix in prefixes:
            Keys(prefix)
    except StreamsQueueError as error:
        fail_by(error)
    with _Report(as_json=as_json) as report:
        code = asyncio.run(_examine_all(report, servers, prefixes, url, role))
    if code := code or report.code:
        raise typer.Exit(code)


async def _examine_all(
    report: "_Report", servers: Sequence[Settings], prefixes: Sequence[str], url: str | None, role: Role | None
) -> int:
    """Each server, with what it has of the queues."""
    failed: StreamsQueueError | None = None
    try:
        shares = await shares_of(servers, prefixes)
    except StreamsQueueError as error:
        failed, shares = error, [[] for _ in servers]
    code = 0
    for settings, share in zip(servers, shares, strict=True):
        code = await _examine(report, settings, share, url, role) or code
    if failed is None and not code:
        async for found in _of_whole_queues(servers, prefixes):
            report.tell(found)
    if failed is not None and not code:  # else the look at the server has said why
        report.tell(Check("queue", Verdict.DANGER, _sentence(failed), "see the reason"))
    return code


async def _examine(
    report: "_Report", settings: Settings, prefixes: Sequence[str], url: str | None, role: Role | None
) -> int:
    """The exit code of a server that cannot be reached or does not let us in; else 0."""
    report.tell(on_server.look_at_url(url, settings.address))
    report.tell(on_server.look_at_encryption(settings.address))
    connection = Connection(settings)
    try:
        await connection.open()
    except StreamsQueueError as error:
        report.tell(Check("connection", Verdict.DANGER, _sentence(error), _way_in(settings)))
        return code_of(error)
    try:
        async for found in _at_server(connection, prefixes[0] if prefixes else "streams-queue"):
            report.tell(found)
    finally:
        await connection.close()
    for prefix in prefixes:
        async for found in _at_queue(prefix, settings, role):
            report.tell(msgspec.structs.replace(found, queue=prefix))
    return 0


def _way_in(settings: Settings) -> str:
    places = " ".join(f"-h {host} -p {port}" for host, port in settings.address.hosts[:1]) or settings.address.path
    return (
        f"redis-cli {places} PING; the URL comes from --url, STREAMS_QUEUE_URL, REDIS_URL or REDIS_HOST, in this order"
    )


async def _at_server(connection: Connection, near: str) -> AsyncIterator[Check]:
    yield Check("connection", Verdict.OK, f"The server answers at {connection.settings.display}.")
    looks: dict[str, Callable[[], Awaitable[Found]]] = {
        "latency": lambda: on_server.look_at_latency(connection, near),
        "clock": lambda: on_server.look_at_clock(connection, near),
        "password": lambda: on_server.look_at_password(connection, near),
        "settings": lambda: _settings(connection, near),
    }
    async for check in _each(looks):
        yield check


async def _settings(connection: Connection, near: str) -> Found:
    return on_server.look_at_settings(await inspection.ask(connection, near))


async def _at_queue(prefix: str, settings: Settings, role: Role | None) -> AsyncIterator[Check]:
    try:
        queue = Queue(prefix, url=settings.url)
        await queue.open()
    except ConfigurationError as error:  # no hash tag on a Cluster, or a newer engine's queue
        yield Check("queue", Verdict.DANGER, _sentence(error), "see the reason")
        return
    except StreamsQueueError as error:
        yield Check("queue", Verdict.UNKNOWN, _sentence(error))
        return
    try:
        readable = True
        async for check in _each({"queue": lambda: in_queue.look_at_keys(queue)}):
            readable = False
            yield check
        if not readable:
            return
        looks: dict[str, Callable[[], Awaitable[Found]]] = {
            "workers": lambda: in_queue.look_at_workers(queue),
            "confirmations": lambda: in_queue.look_at_confirmations(queue),
            "agreement": lambda: in_queue.look_at_agreement(queue),
            "growth": lambda: in_queue.look_at_growth(queue),
            "access": lambda: look_at_access(queue.connection, prefix, role),
        }
        async for check in _each(looks):
            yield check
    finally:
        await queue.close()


async def _of_whole_queues(servers: Sequence[Settings], prefixes: Sequence[str]) -> AsyncIterator[Check]:
    """What concerns all shards of a queue."""
    for prefix in prefixes:
        async with NamedQueue(prefix, url=[settings.url for settings in servers]) as queue:
            if queue.shards:
                async for check in _each({"shards": partial(in_queue.look_at_shards, queue)}):
                    yield msgspec.structs.replace(check, queue=prefix)


async def _each(looks: dict[str, Callable[[], Awaitable[Found]]]) -> AsyncIterator[Check]:
    """What each look finds; where one cannot be taken, the reason."""
    for name, look in looks.items():
        try:
            found = await look()
        except StreamsQueueError as error:
            yield Check(name, Verdict.UNKNOWN, _sentence(error))
        else:
            for check in [found] if isinstance(found, Check) else found:
                yield check


def _sentence(error: StreamsQueueError) -> str:
    return f"{str(error).rstrip('.')}."


class _Report:
    """Tells checks as they come. Used as a context; with `as_json` it is one array."""

    def __init__(self, *, as_json: bool) -> None:
        self._listing = Listing((), as_json=True) if as_json else None
        self._told: set[Verdict] = set()
        self._queue: str | None = None

    def __enter__(self) -> Self:
        if self._listing is not None:
            self._listing.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._listing is not None:
            self._listing.__exit__(kind, error, at)

    @property
    def code(self) -> int:
        """The exit code of the worst verdict."""
        return FAILED if Verdict.DANGER in self._told else WARNED if Verdict.WARNING in self._told else 0

    def tell(self, check: Check) -> None:
        """One more."""
        self._told.add(check.verdict)
        if self._listing is not None:
            self._listing.add([msgspec.to_builtins(check)])
        elif sys.stdout.isatty():
            self._draw(check)
        else:
            remedy = f"  Remedy: {check.remedy}" if check.remedy else ""
            say(f"{check.verdict:8} {check.check:{_NAMES}} {check.queue or '-'}  {check.reason}{remedy}")

    def _draw(self, check: Check) -> None:
        if check.queue != self._queue:
            self._queue = check.queue
            console().print(Text(f"\nqueue {printable(str(check.queue))}", style="bold"))
        table = Table.grid(padding=(0, 1))
        table.add_column(width=8)
        table.add_column(width=_NAMES)
        table.add_column(overflow="fold")
        reason = Text(printable(check.reason))
        if check.remedy:
            reason.append(f"\n{printable(check.remedy)}", style="bold")
        table.add_row(Text(check.verdict, style=_STYLES[check.verdict]), Text(check.check), reason)
        console().print(table)


def print_rule(
    role: Role, user: str | None, prefixes: Sequence[str], url: str | None, *, sharded: bool, as_json: bool
) -> None:
    """Print the command that makes such a user."""
    if not user or any(char.isspace() or not char.isprintable() for char in user):
        fail("whose rights? Name the user without blanks, as in --user orders", MISUSED)
    if not prefixes:
        fail("rights to which queue? Name it, as in --prefix orders", MISUSED)
    try:
        settings = Settings.resolve(url)
        if sharded:
            names = [pattern for name in prefixes for pattern in of_shards(_name_of_sharded(name))]
        else:
            names = [Keys(settings.prefix(name)).prefix for name in prefixes]
        words = rule(role, user, names, on_cluster=settings.address.kind == "cluster")
    except ConfigurationError as error:
        fail_by(error)
    if as_json:
        document: dict[str, Any] = {"role": role.value, "user": user, "command": words}
        print_json(document)
        return
    say(shlex.join(words))
    remark(f"write >PASSWORD in quotes for {PASSWORD}, or # and the password's SHA-256; as it stands it is refused")


def _name_of_sharded(name: str) -> str:
    if "{" in name or "}" in name:
        raise ConfigurationError(f"{name!r} has braces: with --sharded name the whole queue, as in --prefix chat")
    return Keys(name).prefix
