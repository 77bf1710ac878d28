"""Pages that change while somebody looks at them: parts of them, sent by server-sent events."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from streams_queue.dashboard.board import Board
from streams_queue.dashboard.pages import keys_of, overview_of, queue_of
from streams_queue.dashboard.problems import Problem
from streams_queue.dashboard.reading import id_of
from streams_queue.errors import StreamsQueueError
from streams_queue.shown import json_of
from streams_queue.story import story_of

MOST_LISTENERS = 100
"""Pages that are kept up to date at the same time, at most."""

_AGAIN = 3000
"""Milliseconds after which a browser that lost the stream asks again."""

Parts = Callable[[], Awaitable[dict[str, str]]]


class Events:
    """The streams, one an address."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._listeners = 0

    async def overview(self, request: Request) -> Response:
        """The overview's parts."""
        views = self._board.views

        async def parts() -> dict[str, str]:
            return {"queues": views.part(request, "queues", **overview_of(self._board))}

        return self._stream(parts)

    async def queue(self, request: Request) -> Response:
        """The parts of a queue's page."""
        watched, views = self._board.queue(request), self._board.views
        names = ("now", "pause", "charts", "workers", "head")

        async def parts() -> dict[str, str]:
            context = await queue_of(watched)
            return {name: views.part(request, name, **context) for name in names}

        return self._stream(parts)

    async def dead(self, request: Request) -> Response:
        """How many dead letters there are: the page of them stays as it is."""
        watched, views = self._board.queue(request), self._board.views

        async def parts() -> dict[str, str]:
            return {"total": views.part(request, "total", total=watched.sample.stats.dead)} if watched.sample else {}

        return self._stream(parts)

    async def limits(self, request: Request) -> Response:
        """The keys that messages wait for: the form beside them stays as it is."""
        watched, views = self._board.queue(request), self._board.views

        async def parts() -> dict[str, str]:
            return {"keys": views.part(request, "keys", **await keys_of(watched))}

        return self._stream(parts)

    async def message(self, request: Request) -> Response:
        """A message's story."""
        watched, views = self._board.queue(request), self._board.views
        id = id_of(request.query_params.get("id", ""))
        names = ("story", "priority", "letter")

        async def parts() -> dict[str, str]:
            story = await story_of(watched.queue, id)
            if story is None:  # forgotten: the page keeps the end of it
                return {}
            return {name: views.part(request, name, watched=watched, story=story) for name in names}

        return self._stream(parts)

    def _stream(self, parts: Parts) -> Response:
        if self._listeners >= MOST_LISTENERS:
            words = f"{MOST_LISTENERS} pages are kept up to date already"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, words, {"Retry-After": "30"})
        headers = {"X-Accel-Buffering": "no"}  # a proxy passes on what it gets
        return _Stream(self._events(parts), self._listening(), headers)

    async def _events(self, parts: Parts) -> AsyncIterator[str]:
        yield f"retry: {_AGAIN}\n\n"
        sent: dict[str, str] = {}
        seen = self._board.watch.looks - 1
        while (looks := await self._board.watch.next_look(seen)) is not None:
            seen = looks
            try:
                found = await parts()
            except StreamsQueueError:
                yield "event: away\ndata: {}\n\n"
                continue
            news = {name: html for name, html in found.items() if sent.get(name) != html}
            sent = found
            yield f"event: parts\ndata: {json_of(news)}\n\n"

    @contextmanager
    def _listening(self) -> Iterator[None]:
        self._listeners += 1
        try:
            yield
        finally:
            self._listeners -= 1


class _Stream(StreamingResponse):
    """Counts as a listener from its first moment: many that come at once find no gap after the check."""

    def __init__(
        self, events: AsyncIterator[str], listening: AbstractContextManager[None], headers: dict[str, str]
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._listening = listening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._listening:
            await super().__call__(scope, receive, send)
