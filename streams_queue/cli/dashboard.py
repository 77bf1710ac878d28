"""`streams-queue dashboard`: the queues in a browser, served by this process."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams_queue.cli.options import Url
from streams_queue.cli.terminal import FAILED, LogLevel, fail, fail_by, log_to_stderr
from streams_queue.errors import ConfigurationError, StreamsQueueError
from streams_queue.redaction import printable
from streams_queue.settings import Address, Settings

if TYPE_CHECKING:
    from streams_queue.dashboard import Dashboard

USER = "STREAMS_QUEUE_DASHBOARD_USER"
PASSWORD = "STREAMS_QUEUE_DASHBOARD_PASSWORD"  # noqa: S105  (its name)

EPILOG = f"""\
\b
Examples:
  streams-queue dashboard
  streams-queue dashboard --prefix orders --prefix emails --read-only
  {PASSWORD}=... \\
    streams-queue dashboard --host 0.0.0.0 --allowed-host queues.example.org

\b
It answers this machine alone unless it has a password, which stands in
{PASSWORD} or in a file. Other machines ask for
it by a name: allow it. Put TLS before it: passwords go over the wire.

\b
Exit codes:
  0  stopped
  1  it failed, or the port is taken
  2  wrong arguments or configuration
  3  the server could not be reached at the start
"""

WAIT = 2
"""Seconds that requests have to end when it is told to go."""


def dashboard(
    prefixes: Annotated[
        list[str] | None,
        typer.Option("--prefix", metavar="P", help="A queue to show; may stand several times. All without."),
    ] = None,
    url: Url = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 for any that is free.")] = 8470,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", metavar="NAME", help="A name under which browsers may ask for it."),
    ] = None,
    user: Annotated[str, typer.Option(envvar=USER, metavar="NAME", help="Who may come in.")] = "admin",
    password_file: Annotated[
        Path | None, typer.Option("--password-file", metavar="FILE", help="The file whose first line is the password.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Show everything, change nothing.")] = False,
    log_level: Annotated[LogLevel, typer.Option(help="How much is logged to stderr.")] = LogLevel.INFO,
) -> None:
    """Show queues in a browser."""
    log_to_stderr(log_level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        password = _password(password_file)
        hosts = [*(allowed_hosts or ()), *_own_names(host, password)]
        app = _application(url, prefixes, {user: password} if password else None, hosts, read_only=read_only)
        asyncio.run(_serve(app, host, port))
    except StreamsQueueError as error:
        fail_by(error)


def _password(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(PASSWORD) or None
    try:
        password = file.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"--password-file: {error}") from None
    if not password:
        raise ConfigurationError(f"--password-file: the first line of {file} is empty")
    return password


def _own_names(host: str, password: str | None) -> list[str]:
    from streams_queue.dashboard.access import is_loopback  # noqa: PLC0415  (the extra may be absent)

    if not is_loopback(host) and password is None:
        raise ConfigurationError(
            f"--host {host} is not this machine alone, and whoever reaches it could change the queues: set {PASSWORD}, "
            "or give --password-file"
        )
    return [host] if host not in {"0.0.0.0", "::", ""} else []  # noqa: S104  (that is what is looked for)


def _application(
    url: str | None,
    prefixes: Sequence[str] | None,
    credentials: dict[str, str] | None,
    hosts: Sequence[str],
    *,
    read_only: bool,
) -> "Dashboard":
    from streams_queue.dashboard import dashboard as application  # noqa: PLC0415  (the extra may be absent)

    if Settings.resolve_all(url)[0].address == Address("embedded"):
        raise ConfigurationError(
            "embedded:// is a server of this process alone, with nothing in it: name the one that holds the queues, "
            "by --url or for example by REDIS_URL"
        )
    return application(url=url, prefixes=prefixes, credentials=credentials, allowed_hosts=hosts, read_only=read_only)


async def _serve(app: "Dashboard", host: str, port: int) -> None:
    import uvicorn  # noqa: PLC0415  (the extra may be absent)

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:  # uvicorn's own raises them again when all is done
            yield

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await app.end_streams()
            await super().shutdown(sockets)

    await app.check()
    listening = _listen(host, port)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=False, ws="none", lifespan="off",
        timeout_graceful_shutdown=WAIT,
    )  # fmt: skip
    server = Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    place = f"[{host}]" if ":" in host else host
    typer.echo(printable(f"dashboard at http://{place}:{listening.getsockname()[1]}/ , Ctrl-C ends it"), err=True)
    async with app:
        await server.serve([listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        fail(f"cannot listen on {host}, port {port}: {error}", FAILED)
