"""A few pages over HTTP, for programs that watch: GET and HEAD, one request a connection, no files, no cookies.

It is made for scrapers and supervisors on a trusted network. For people there is the dashboard.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from streams_queue.errors import ConfigurationError, StreamsQueueError

logger = logging.getLogger(__name__)

WITHIN = 10.0
"""Seconds that a request may take from its first byte to the last of its answer."""

AT_ONCE = 32
"""Connections that are served at the same time; more of them wait."""

LONGEST = 16 << 10
"""Bytes of a request's head."""


class Request(NamedTuple):
    """What was asked for: header names in lower case."""

    query: Mapping[str, str]
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """What a page says."""

    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"

    @property
    def ok(self) -> bool:
        """Whether it is what was asked for."""
        return self.status is HTTPStatus.OK


Page = Callable[[Request], Awaitable[Answer]]


def as_json(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """A value as a page."""
    return Answer(status, json.dumps(value).encode() + b"\n")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; with port 0 the system chooses one.

    Raises:
        ConfigurationError: there is no such address or port, it is taken, or may not be used.
    """
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"port {port} is not from 0 to 65535")
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listening = socket.create_server(address[:2], family=family, backlog=AT_ONCE)
    except (OSError, UnicodeError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigurationError(f"cannot listen on {host} port {port}: {words}. Choose another, 0 for any") from None
    listening.setblocking(False)
    return listening


def address_of(listening: socket.socket) -> str:
    """Where the socket listens, as a URL has it."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def fetch(port: int, target: str, seconds: float) -> Answer:
    """What another process of this machine serves on loopback.

    Raises:
        OSError: nobody answers there within the seconds, or nobody of ours.
    """
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
    try:
        return Answer(HTTPStatus(int(head.split(b" ", 2)[1])), body)
    except (IndexError, ValueError):
        raise ConnectionError(f"port {port} does not answer as expected") from None


async def serve(listening: socket.socket, pages: Mapping[str, Page]) -> None:
    """Answer requests for these paths until cancelled. Closes the socket."""
    room = asyncio.Semaphore(AT_ONCE)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with room, asyncio.timeout(WITHIN):
                await _answer(reader, writer, pages)
        except (OSError, TimeoutError, asyncio.LimitOverrunError, asyncio.IncompleteReadError):
            pass  # whoever asked has gone, or is no client of ours
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, sock=listening, limit=LONGEST)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        server.close()  # nobody who is still being served is waited for


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Mapping[str, Page]) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    method, answer = await _page(head, pages)
    allow = "Allow: GET, HEAD\r\n" if answer.status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    writer.write(
        f"HTTP/1.1 {answer.status} {answer.status.phrase}\r\nContent-Type: {answer.content_type}\r\n{allow}"
        f"Content-Length: {len(answer.body)}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n".encode("latin-1")
    )
    if method != "HEAD":
        writer.write(answer.body)
    await writer.drain()


async def _page(head: str, pages: Mapping[str, Page]) -> tuple[str, Answer]:
    line, *lines = head.split("\r\n")
    try:
        method, target, _ = line.split(" ")
        url = urlsplit(target)
    except ValueError:
        return "", _refusal(HTTPStatus.BAD_REQUEST)
    if method not in {"GET", "HEAD"}:
        return method, _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
    page = pages.get(url.path)
    if page is None:
        return method, _refusal(HTTPStatus.NOT_FOUND)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    try:
        return method, await page(Request(dict(parse_qsl(url.query)), headers))
    except StreamsQueueError as error:
        return method, as_json({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)
    except Exception:
        logger.exception("the page %s cannot be shown", url.path)
        return method, _refusal(HTTPStatus.INTERNAL_SERVER_ERROR)


def _refusal(status: HTTPStatus) -> Answer:
    return as_json({"error": status.phrase}, status)
