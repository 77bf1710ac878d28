"""The same for programs: JSON, described at ``/api/openapi.json``."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from streams_queue.dashboard import reading, shapes
from streams_queue.dashboard.access import COOKIE, new_token
from streams_queue.dashboard.board import Board
from streams_queue.dashboard.changes import change_limits, change_named, change_payload, prioritise, set_pause
from streams_queue.dashboard.guard import BODY, Handler, changing, cookie_of
from streams_queue.dashboard.openapi import Operation, description
from streams_queue.dashboard.problems import Problem, bad, unknown
from streams_queue.dashboard.reading import id_of, wanted_of
from streams_queue.dashboard.views import path
from streams_queue.dashboard.watch import Watched
from streams_queue.letters import DELETE, REQUEUE, Change
from streams_queue.limits import Limits, Rate
from streams_queue.shown import json_of
from streams_queue.story import story_of

T = TypeVar("T")

PROBLEM = "application/problem+json"

_QUEUE = "/api/queues/{prefix}"
_LETTERS = f"{_QUEUE}/dead-letters"
_LIMITS = f"{_QUEUE}/limits"
_PRIORITY = f"{_QUEUE}/messages/{{id}}/priority"


class _Address(NamedTuple):
    """An operation, and who carries it out."""

    operation: Operation
    handler: Callable[[Request], Awaitable[Any]]


class Api:
    """The handlers. Each answers with a Struct; `routes` makes JSON of it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._addresses = [
            _Address(Operation("GET", "/api/queues", shapes.Queues), self.queues),
            _Address(Operation("GET", _QUEUE, shapes.QueueDetails), self.queue),
            _Address(Operation("GET", f"{_QUEUE}/load", shapes.Load), self.load),
            _Address(Operation("GET", f"{_QUEUE}/history", shapes.History), self.history),
            _Address(Operation("GET", f"{_QUEUE}/workers", shapes.Workers), self.workers),
            _Address(Operation("GET", f"{_QUEUE}/line", shapes.Line, query=shapes.LinePage), self.line),
            _Address(Operation("GET", f"{_QUEUE}/messages", shapes.UsersMessages, query=shapes.OfUser), self.of_user),
            _Address(Operation("GET", f"{_QUEUE}/messages/{{id}}", shapes.Story), self.message),
            _Address(Operation("GET", _LIMITS, shapes.Limits), self.limits),
            _Address(Operation("GET", f"{_QUEUE}/waiting-keys", shapes.WaitingKeys), self.waiting_keys),
            _Address(Operation("GET", _LETTERS, shapes.Letters, query=shapes.DeadPage), self.letters),
            _Address(Operation("POST", f"{_LETTERS}/requeue", shapes.Outcomes, body=shapes.Ids), self.requeue),
            _Address(Operation("POST", f"{_LETTERS}/delete", shapes.Outcomes, body=shapes.Ids), self.delete),
            _Address(Operation("POST", f"{_LETTERS}/amend", shapes.Amended, body=shapes.Amendment), self.amend),
            _Address(Operation("POST", _PRIORITY, shapes.Prioritised, body=shapes.Prioritise), self.prioritise),
            _Address(Operation("POST", _LIMITS, shapes.Limits, body=shapes.LimitsChange), self.change_limits),
            _Address(Operation("POST", f"{_QUEUE}/pause", shapes.Paused, body=shapes.Nothing), self.pause),
            _Address(Operation("POST", f"{_QUEUE}/resume", shapes.Paused, body=shapes.Nothing), self.resume),
        ]

    def routes(self) -> list[BaseRoute]:
        """The addresses."""
        routes: list[BaseRoute] = [
            Route("/api/openapi.json", self._describe),
            Route("/api/token", self._give_token),
        ]
        by_path: dict[str, dict[str, Handler]] = {}
        for operation, handler in self._addresses:
            answer = _as_json(handler)
            if operation.method == "POST":
                answer = changing(self._board.access, answer, api=True)
            by_path.setdefault(operation.path, {})[operation.method] = answer
        return routes + [Route(path, _by_method(answers), methods=[*answers]) for path, answers in by_path.items()]

    async def _describe(self, request: Request) -> Response:
        operations = [
            (operation, handler.__doc__ or "")
            for operation, handler in [
                _Address(Operation("GET", "/api/token", shapes.Token), self._give_token),
                *self._addresses,
            ]
        ]
        server = path(request).rstrip("/") or "/"
        queues = [watched.prefix for watched in self._board.watch.queues]
        return _json(description(operations, server, queues, with_password=bool(self._board.access.credentials)))

    async def _give_token(self, request: Request) -> Response:
        """A token for changes without a password, and its cookie."""
        known = cookie_of(request)
        response = _json(shapes.Token(known or new_token()))
        if known is None:
            token = msgspec.json.decode(response.body)["token"]
            secure = request.url.scheme == "https"
            response.set_cookie(COOKIE, token, path=path(request), secure=secure, httponly=True, samesite="strict")
        return response

    # ---- looking

    async def queues(self, _: Request) -> shapes.Queues:
        """All queues."""
        watch = self._board.watch
        return shapes.Queues([_summary(watched) for watched in watch.queues], watch.trouble)

    async def queue(self, request: Request) -> shapes.QueueDetails:
        """One queue, and its counters since it began."""
        watched = self._board.queue(request)
        await watched.look()
        stats = _seen(watched).stats
        return shapes.QueueDetails(_summary(watched), stats.counters, stats.died, stats.edits)

    async def load(self, request: Request) -> shapes.Load:
        """How loaded a queue is at this moment, for autoscalers."""
        watched = self._board.queue(request)
        stats = await watched.queue.stats()
        return shapes.Load(
            watched.prefix, max(0, stats.main - stats.processing), stats.processing, stats.retry, stats.scheduled,
            stats.dead, stats.lost, stats.oldest_waiting or 0.0, stats.workers, None, stats.paused,
        )  # fmt: skip

    async def history(self, request: Request) -> shapes.History:
        """The last hour by the minute."""
        history = self._board.queue(request).history
        return shapes.History(history.began, history.minutes())

    async def workers(self, request: Request) -> shapes.Workers:
        """Who works on a queue, since when, and on what."""
        found = await reading.workers(self._board.queue(request).queue)
        return shapes.Workers(
            [
                shapes.Worker(
                    worker.name, worker.host, worker.pid, worker.began, worker.seen.idle, worker.seen.pending,
                    [shapes.Held(held.id, held.delivery) for held in worker.seen.held],
                )
                for worker in found
            ]
        )  # fmt: skip

    async def line(self, request: Request) -> shapes.Line:
        """The line, a page at a time."""
        asked = _query(request, shapes.LinePage)
        found = await reading.line(self._board.queue(request).queue, asked.after or None, asked.limit)
        return shapes.Line(_converted(found.records, list[shapes.InLine]), found.after)

    async def of_user(self, request: Request) -> shapes.UsersMessages:
        """The unfinished messages of a user."""
        asked = _query(request, shapes.OfUser)
        found = await reading.of_user(self._board.queue(request).queue, asked.user, asked.after or None)
        return shapes.UsersMessages(found.ids, found.indexed, found.looked_at, found.after)

    async def message(self, request: Request) -> shapes.Story:
        """A message's whole story."""
        id = id_of(request.path_params["id"])
        story = await story_of(self._board.queue(request).queue, id)
        if story is None:
            raise unknown(f"nothing is known of message {id!r:.200}: never enqueued, or finished long ago")
        return _converted(story, shapes.Story)

    async def letters(self, request: Request) -> shapes.Letters:
        """Dead letters, a page at a time."""
        asked = _query(request, shapes.DeadPage)
        wanted = wanted_of({name: value for name, value in msgspec.to_builtins(asked).items() if name != "limit"})
        found = await reading.letters(self._board.queue(request).queue, wanted, asked.after or None, asked.limit)
        return shapes.Letters(_converted(found.records, list[shapes.Letter]), found.looked_at, found.after)

    async def limits(self, request: Request) -> shapes.Limits:
        """What a queue declines and holds back."""
        return _converted(msgspec.to_builtins(await self._board.queue(request).queue.limits()), shapes.Limits)

    async def waiting_keys(self, request: Request) -> shapes.WaitingKeys:
        """The keys that messages wait for, and why."""
        parked, keys = await reading.waiting_keys(self._board.queue(request).queue)
        return shapes.WaitingKeys(
            parked,
            [shapes.WaitingKey(key.value, key.messages, key.first, key.hold.reason, key.hold.until) for key in keys],
        )

    # ---- changing

    async def requeue(self, request: Request) -> shapes.Outcomes:
        """Put dead letters at the end of the line, their counts started anew."""
        return await self._change(request, REQUEUE)

    async def delete(self, request: Request) -> shapes.Outcomes:
        """Discard dead letters."""
        return await self._change(request, DELETE)

    async def _change(self, request: Request, change: Change) -> shapes.Outcomes:
        watched, asked = self._board.queue(request), _body(request, shapes.Ids)
        ids = list(dict.fromkeys(map(id_of, asked.ids)))
        told: list[dict[str, str]] = []

        def tell(ids: list[str], outcomes: list[str]) -> None:
            told.extend({"id": id, "outcome": outcome} for id, outcome in zip(ids, outcomes, strict=True))

        await change_named(request, watched, change, ids, tell)
        return _converted({"outcomes": told}, shapes.Outcomes)

    async def amend(self, request: Request) -> shapes.Amended:
        """Give a dead letter another payload, and put it back in line where that is asked for."""
        watched, asked = self._board.queue(request), _body(request, shapes.Amendment)
        id = id_of(asked.id)
        outcome = await change_payload(request, watched, id, asked.died_at, asked.data)
        if outcome == "missing":
            raise unknown(f"message {id!r:.200} is not among the dead letters any more")
        if outcome == "changed":
            raise Problem(HTTPStatus.CONFLICT, f"message {id!r:.200} died at another time: look at it anew")
        outcomes = await change_named(request, watched, REQUEUE, [id]) if asked.requeue else {}
        return shapes.Amended(id, bool(outcomes.get("requeued")))

    async def prioritise(self, request: Request) -> shapes.Prioritised:
        """Give a waiting message another priority; it takes the place of a new arrival."""
        watched, asked = self._board.queue(request), _body(request, shapes.Prioritise)
        id = id_of(request.path_params["id"])
        outcome = await prioritise(request, watched, id, asked.priority)
        return shapes.Prioritised(id, asked.priority, outcome == "changed")

    async def change_limits(self, request: Request) -> shapes.Limits:
        """Change what a queue declines and holds back, for every producer and worker of it."""
        watched, asked = self._board.queue(request), _body(request, shapes.LimitsChange)
        named = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not msgspec.UNSET}
        limits = await change_limits(request, watched, {name: _limit_of(name, named[name]) for name in named})
        return _converted(msgspec.to_builtins(limits), shapes.Limits)

    async def pause(self, request: Request) -> shapes.Paused:
        """Have workers take nothing new; what they hold they finish."""
        return await self._set_pause(request, True)

    async def resume(self, request: Request) -> shapes.Paused:
        """Have workers take messages again."""
        return await self._set_pause(request, False)

    async def _set_pause(self, request: Request, paused: bool) -> shapes.Paused:
        watched = self._board.queue(request)
        _body(request, shapes.Nothing, b"{}")
        await set_pause(request, watched, paused)
        return shapes.Paused(paused)


def problem_json(problem: Problem) -> Response:
    """A problem, for programs."""
    return Response(
        json_of(msgspec.to_builtins(problem.details)), problem.status.value, problem.headers, media_type=PROBLEM
    )


def _limit_of(name: str, value: Any) -> Any:
    """A limit, as `Limits` has it."""
    if isinstance(value, shapes.NewRate):
        return Rate(int(value.count), value.per)
    if value is None:
        return getattr(Limits(), name)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _by_method(answers: Mapping[str, Handler]) -> Handler:
    async def answer(request: Request) -> Response:
        return await answers["GET" if request.method == "HEAD" else request.method](request)

    return answer


def _as_json(handler: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return _json(await handler(request))

    return answer


def _json(value: Any) -> Response:
    return Response(json_of(msgspec.to_builtins(value)), media_type="application/json")


def _query(request: Request, shape: type[T]) -> T:
    asked: Mapping[str, str] = dict(request.query_params)
    if len(asked) != len(request.query_params.multi_items()):
        raise bad("a parameter stands in the address more than once")
    return _converted(asked, shape, strict=False)


def _body(request: Request, shape: type[T], otherwise: bytes = b"") -> T:
    try:
        return msgspec.json.decode(request.scope[BODY] or otherwise, type=shape)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise bad(f"the request's body: {error}") from None


def _converted(value: Any, shape: type[T], *, strict: bool = True) -> T:
    try:
        return msgspec.convert(value, shape, strict=strict)
    except msgspec.ValidationError as error:
        if strict:
            raise  # what we made ourselves: a fault of ours
        raise bad(str(error)) from None


def _seen(watched: Watched) -> Any:
    if watched.sample is None or watched.trouble is not None:
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, watched.trouble or "not looked at yet", {"Retry-After": "5"})
    return watched.sample


def _summary(watched: Watched) -> shapes.Queue:
    sample = watched.sample
    stats = sample.stats if sample else None
    return shapes.Queue(
        queue=watched.prefix,
        trouble=watched.trouble,
        seen_at=sample and sample.now,
        counts=None
        if sample is None
        else shapes.Counts(
            sample.waiting, sample.stats.processing, sample.stats.retry, sample.stats.scheduled, sample.stats.dead,
            sample.stats.lost, sample.stats.parked,
        ),
        oldest_waiting_seconds=sample and sample.oldest_age,
        paused=stats.paused if stats else None,
        workers=stats.workers if stats else None,
        pace=watched.history.pace(),
    )  # fmt: skip
