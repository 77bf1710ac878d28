"""The application: its addresses, and how it begins and ends."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from streams_queue.dashboard.access import Access, Identify
from streams_queue.dashboard.api import Api, problem_json
from streams_queue.dashboard.board import Board
from streams_queue.dashboard.changes import Changes
from streams_queue.dashboard.events import Events
from streams_queue.dashboard.export import Export
from streams_queue.dashboard.guard import Guard, Handler, changing
from streams_queue.dashboard.measures import metrics
from streams_queue.dashboard.pages import Pages
from streams_queue.dashboard.problems import Problem, problem_of
from streams_queue.dashboard.views import Views
from streams_queue.dashboard.watch import Watch
from streams_queue.errors import StreamsQueueError
from streams_queue.settings import Settings


class Dashboard:
    """An ASGI application that shows queues and changes them. Made by `dashboard`.

    It begins with its first request, and ends with the event loop; or use it as ``async with``, or let the server
    send it the lifespan's events.
    """

    def __init__(self, access: Access, watch: Watch) -> None:
        self.access = access
        self._watch = watch
        self._board = Board(access, watch, Views(access))
        self._events = Events(self._board)
        self._routes = Starlette(
            routes=self._addresses(),
            exception_handlers={
                Problem: self._on_problem,
                HTTPException: self._on_http,
                StreamsQueueError: self._on_error,
                Exception: self._on_fault,
            },
            lifespan=self._lifespan,
        )
        self._routes.router.redirect_slashes = False
        self._guarded = Guard(self._begun, access, self._refuse)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._guarded(scope, receive, send)

    async def open(self) -> None:
        """Connect, and begin to watch. Harmless when that is done."""
        await self._watch.begin()

    async def check(self) -> None:
        """Connect once, for who wants to know at the start.

        Raises:
            QueueUnavailable: the server does not answer.
            ConfigurationError: it refuses the credentials, or TLS fails.
            UnsupportedServer: it is too old.
        """
        await self._watch.check()

    async def close(self) -> None:
        """End live pages, stop watching, disconnect."""
        await self._watch.end()

    async def end_streams(self) -> None:
        """End live pages, which a server that stops would wait for."""
        await self._watch.announce_end()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _addresses(self) -> list[BaseRoute]:
        pages, changes, events = Pages(self._board), Changes(self._board), self._events
        queue = "/queues/{prefix}"
        return [
            Route("/", pages.overview),
            Route(queue, pages.queue),
            Route(f"{queue}/messages", pages.messages),
            Route(f"{queue}/message", pages.message),
            Route(f"{queue}/limits", pages.limits),
            Route(f"{queue}/dead", pages.dead),
            Route(f"{queue}/dead/export", Export(self._board).dead),
            Route(f"{queue}/dead/edit", changes.edit),
            self._change(f"{queue}/dead/amend", changes.amend),
            self._change(f"{queue}/dead/confirm", changes.confirm),
            self._change(f"{queue}/dead/change", changes.carry_out),
            self._change(f"{queue}/message/priority", changes.prioritise),
            self._change(f"{queue}/limits/change", changes.limits),
            self._change(f"{queue}/pause", changes.pause),
            self._change(f"{queue}/resume", changes.resume),
            Route("/events", events.overview),
            Route(f"{queue}/events", events.queue),
            Route(f"{queue}/message/events", events.message),
            Route(f"{queue}/limits/events", events.limits),
            Route(f"{queue}/dead/events", events.dead),
            Route("/metrics", metrics(self._board)),
            *Api(self._board).routes(),
            Mount("/static", StaticFiles(packages=[("streams_queue.dashboard", "static")])),
        ]

    def _change(self, address: str, handler: Handler) -> Route:
        return Route(address, changing(self.access, handler, api=False), methods=["POST"])

    async def _begun(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._watch.begin()
        await self._routes(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with self:
            yield

    # ---- what goes wrong

    def _refuse(self, request: Request, problem: Problem) -> Response:
        is_call = request.scope["path"].removeprefix(request.scope.get("root_path", "")).startswith("/api/")
        return problem_json(problem) if is_call else self._board.views.problem(request, problem)

    async def _on_problem(self, request: Request, problem: Any) -> Response:
        return self._refuse(request, problem)

    async def _on_http(self, request: Request, error: Any) -> Response:
        headers = dict(error.headers or {})
        return self._refuse(request, Problem(HTTPStatus(error.status_code), _WORDS.get(error.status_code, ""), headers))

    async def _on_error(self, request: Request, error: Any) -> Response:
        return self._refuse(request, problem_of(error))

    async def _on_fault(self, request: Request, _: Exception) -> Response:
        return self._refuse(request, Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the log of the dashboard says why"))


_WORDS = {404: "there is no such page", 405: "this address takes another method"}


def dashboard(
    *,
    url: str | None = None,
    prefixes: Sequence[str] | None = None,
    credentials: Mapping[str, str] | None = None,
    identify: Identify | None = None,
    allowed_hosts: Sequence[str] = (),
    read_only: bool = False,
) -> Dashboard:
    """The dashboard as an ASGI application, to be served or to be mounted in another one.

    Args:
        url: of the server that holds the queues; without one the environment says, as for `Queue`. Of a queue whose
            shards are on several servers all of them, with blanks between them.
        prefixes: of the queues that are shown; None for all that the database has, which reads the names of its keys
            every half minute at most.
        credentials: names and passwords that may come in, by HTTP Basic. Without them, and without `identify`, it
            answers this machine alone.
        identify: says who sends a request, given its ASGI scope, where the application around it has a login of its
            own; None where nobody is logged in.
        allowed_hosts: names and addresses under which it may be asked for, beside those of loopback.
        read_only: refuse every change.

    Raises:
        ConfigurationError: a bad prefix, URL or host, or hosts without credentials.
    """
    access = Access.of(credentials, identify, allowed_hosts, read_only=read_only)
    return Dashboard(access, Watch(Settings.resolve_all(url), prefixes))
