"""A TCP proxy with faults: it stands between a client and the server, and does what a bad network does."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from enum import StrEnum
from typing import Self

_CHUNK = 1 << 16


class Mode(StrEnum):
    PASS = "pass"
    DELAY = "delay"
    """Each chunk waits up to `Proxy.delay` seconds."""
    TRICKLE = "trickle"
    """Byte by byte, each in a packet of its own."""
    BLACKHOLE = "blackhole"
    """Connections stay and are accepted, nothing goes through."""
    DROP_REPLIES = "drop replies only"
    """Requests reach the server, its replies reach nobody."""
    RESET = "reset"
    """Connections are reset."""


class Proxy:
    """Listens on a loopback port and passes on to `port`; `mode` counts for open connections too.

    `hold_after` names bytes: a connection whose request holds them gets no reply from then on, and `held` is set. So
    "the server has it, the client does not know" can be waited for.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._target = port
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._mode = Mode.PASS
        self._changed = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()
        self.delay = 0.5
        self.hold_after: bytes | None = None
        self.held = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def mode(self) -> Mode:
        return self._mode

    async def set(self, mode: Mode) -> None:
        """Change the network."""
        async with self._changed:
            self._mode = mode
            self._changed.notify_all()
        if mode is Mode.RESET:
            for writer in list(self._writers):
                writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode is Mode.RESET:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._writers |= ends
        holding = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, far_writer, holding, replies=False))
                both.create_task(self._pump(far_reader, writer, holding, replies=True))
        except* (_Over, OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, holding: asyncio.Event, *, replies: bool
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            if not replies and self.hold_after is not None and self.hold_after in chunk:
                holding.set()
            await self._pass_on(chunk, writer, replies, holding)
            if not replies and holding.is_set():
                self.held.set()
        raise _Over

    async def _pass_on(self, chunk: bytes, writer: asyncio.StreamWriter, replies: bool, holding: asyncio.Event) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._mode is not Mode.BLACKHOLE)
        if replies and self._mode is Mode.DROP_REPLIES:
            holding.set()  # for good: what comes later must not be taken for the reply that was lost
        if replies and holding.is_set():
            return
        if self._mode is Mode.DELAY:
            await asyncio.sleep(random.uniform(0, self.delay))
        parts = [chunk[i : i + 1] for i in range(len(chunk))] if self._mode is Mode.TRICKLE else [chunk]
        for part in parts:
            writer.write(part)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            if len(parts) > 1:
                await asyncio.sleep(0)


class _Over(Exception):
    """One side hung up."""
