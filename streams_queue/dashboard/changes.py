"""What people change by forms: dead letters, and whether a queue is paused. Each leaves a line in the audit log."""

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from streams_queue.answers import Examined
from streams_queue.codec import Fields
from streams_queue.dashboard.board import Board
from streams_queue.dashboard.editing import amend, check_depth, restored
from streams_queue.dashboard.guard import FORM, USER
from streams_queue.dashboard.pages import filters_in, limits_of
from streams_queue.dashboard.problems import Problem, bad, unknown
from streams_queue.dashboard.reading import id_of, ref, wanted_of
from streams_queue.dashboard.views import path, see
from streams_queue.dashboard.watch import Watched
from streams_queue.errors import ConfigurationError, InvalidMessage
from streams_queue.letters import (
    DELETE,
    REQUEUE,
    AnyQueue,
    Change,
    Chosen,
    Wanted,
    carry_out,
    named,
    oldest,
    server_time,
)
from streams_queue.limits import Limits, parsed, spelt, text_of
from streams_queue.model import LETTERS, Priority
from streams_queue.redaction import printable
from streams_queue.shown import data_of, for_json

MOST = 10_000
"""Dead letters that one change takes, and that are looked at for it. For more, it is asked for again."""

CHANGES = {change.verb: change for change in (REQUEUE, DELETE)}

Tell = Callable[[list[str], list[str]], None]

audit = logging.getLogger("streams_queue.dashboard.audit")
audit.setLevel(logging.INFO)  # a handler sees it whatever level the root logger has


def record(request: Request, watched: Watched, did: str, outcome: str, *, ids: int = 0, id: str = "") -> None:
    """Write the line of a change: who did what to which queue, and how many messages. Never a payload."""
    client: Any = request.scope.get("client") or ("unknown",)
    audit.info(
        "%s by %s from %s: queue %s, %s%s: %s",
        did,
        printable(str(request.scope[USER])),
        printable(str(client[0])),
        watched.prefix,
        f"{ids} ids" if ids != 1 else "1 id",
        f" ({printable(id)[:200]})" if id else "",
        outcome,
    )


async def change_named(
    request: Request, watched: Watched, change: Change, ids: list[str], tell: Tell | None = None
) -> Counter[str]:
    """Change dead letters by their ids, and record it; `tell` hears of each batch's ids and outcomes."""
    return await _recorded(request, watched, change, named(ids), ids[0] if len(ids) == 1 else "", tell)


async def _recorded(
    request: Request,
    watched: Watched,
    change: Change,
    chosen: AsyncIterator[Chosen],
    id: str = "",
    tell: Tell | None = None,
) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    try:
        await carry_out(watched.queue, change, chosen, outcomes, tell=tell)
    finally:  # what was done before an error was done
        counts = ", ".join(f"{count} {name}" for name, count in outcomes.items()) or "none"
        record(request, watched, change.verb, counts, ids=outcomes.total(), id=id)
    return outcomes


async def set_pause(request: Request, watched: Watched, paused: bool) -> None:
    """Pause or resume a queue, and record it."""
    await watched.queue.transitions.pause(paused)
    record(request, watched, "pause" if paused else "resume", "done")
    await watched.look()


async def change_limits(request: Request, watched: Watched, changes: Mapping[str, Any]) -> Limits:
    """Change some limits of a queue, and record it; all of them as they are now.

    Raises:
        Problem: together they make no sense, or the queue's shards cannot have them.
    """
    queue = watched.queue
    before = await queue.limits()
    try:
        limits = Limits(**{**msgspec.structs.asdict(before), **changes})
        queue.check_limits(limits)
    except ConfigurationError as error:
        raise Problem(HTTPStatus.CONFLICT, str(error)) from None
    told = ", ".join(f"{spelt(name)} {text_of(value) or 'none'}" for name, value in changes.items())
    try:
        await queue.set_limits(limits)
    except BaseException:
        record(request, watched, "limits", f"failed: {printable(told)}")
        raise
    record(request, watched, "limits", printable(told) or "none changed")
    return limits


async def prioritise(request: Request, watched: Watched, id: str, priority: Priority) -> str:
    """Give a waiting message another priority, and record it: ``changed``, or ``same`` where it had that.

    Raises:
        Problem: it does not wait.
    """
    (outcome,) = await watched.queue.transitions.prioritise([id], priority)
    record(request, watched, "prioritise", f"{outcome}, {priority}", ids=1, id=id)
    if outcome == "missing":
        raise unknown(f"message {id!r:.200} is in no queue, or its body ran out")
    if outcome in {"processing", "dead"}:
        words = "a worker has it by now" if outcome == "processing" else "it is a dead letter"
        raise Problem(HTTPStatus.CONFLICT, f"message {id!r:.200} does not wait: {words}")
    return outcome


async def counted(queue: AnyQueue, wanted: Wanted, began: float) -> tuple[int, bool]:
    """How many dead letters one change would take of those that are meant, and whether these are all."""
    count = looked_at = 0
    async for chosen in oldest(queue, wanted, began):
        count, looked_at = count + len(chosen.ids), looked_at + chosen.looked_at
        if looked_at >= MOST:
            return min(count, MOST), False
    return count, True


async def first_of(chosen: AsyncIterator[Chosen], most: int) -> AsyncIterator[Chosen]:
    """The first that were chosen, up to so many."""
    async for ids, looked_at in chosen:
        yield Chosen(ids[:most], looked_at)
        most -= len(ids)
        if most <= 0:
            return


async def dead_letter(watched: Watched, id: str) -> tuple[float, Fields]:
    """When a dead letter died, and its hash.

    Raises:
        Problem: there is none of this id.
    """
    (found,) = await watched.queue.transitions.examine([id])
    if not _is_dead_letter(found):
        raise unknown(f"message {id!r:.200} is not among the dead letters, or its body ran out")
    return found.scores["dlq"], found.fields


def _is_dead_letter(found: Examined) -> bool:
    return "dlq" in found.scores and "main" not in found.scores and "timestamp" in found.fields


def shown_data(watched: Watched, id: str, fields: Fields) -> Any:
    """A payload as it is shown to who changes it."""
    return for_json(data_of(watched.queue.codec.decode(id, fields)))


async def change_payload(request: Request, watched: Watched, id: str, died: float | None, data: dict[str, Any]) -> str:
    """Give a dead letter another payload, hidden values as they were, and record it; what became of it."""
    check_depth(data)
    score, fields = await dead_letter(watched, id)
    original = watched.queue.codec.decode(id, fields).data
    whole = restored(data, shown_data(watched, id, fields), original)
    outcome = await amend(watched.queue, id, score if died is None else died, fields, whole)
    record(request, watched, "amend", outcome, ids=1, id=id)
    return outcome


class Changes:
    """The handlers of forms, one an address. `guard.changing` stands before each."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def pause(self, request: Request) -> Response:
        """Pause a queue."""
        return await self._set_pause(request, True)

    async def resume(self, request: Request) -> Response:
        """Resume it."""
        return await self._set_pause(request, False)

    async def _set_pause(self, request: Request, paused: bool) -> Response:
        watched = self._board.queue(request)
        await set_pause(request, watched, paused)
        return see(path(request, "queues", watched.prefix))

    async def prioritise(self, request: Request) -> Response:
        """Give a waiting message another priority."""
        watched, form = self._board.queue(request), _Form(request)
        id = form.id()
        outcome = await prioritise(request, watched, id, form.priority())
        told = "prioritised" if outcome == "changed" else "as_it_was"
        return see(path(request, "queues", watched.prefix, "message", id=ref(id), **{told: "1"}))

    async def limits(self, request: Request) -> Response:
        """Change those of a queue's limits that were written differently from how they were shown."""
        watched, form = self._board.queue(request), _Form(request)
        written = {
            name: form.text(name)
            for name in Limits.__struct_fields__
            if form.text(name).strip() != form.text(f"shown_{name}")
        }
        try:
            changes = {name: parsed(name, text) for name, text in written.items()}
            await change_limits(request, watched, changes)
        except ConfigurationError as error:
            problem = str(error)
        except Problem as error:
            if error.status is not HTTPStatus.CONFLICT:
                raise
            problem = str(error)
        else:
            return see(path(request, "queues", watched.prefix, "limits", limits_changed=str(len(changes))))
        context = await limits_of(watched, written)
        return self._board.views.page(request, "limits", 422, **context, problem=problem, outcomes=[])

    async def confirm(self, request: Request) -> Response:
        """Ask before dead letters are changed, and say how many. Changes nothing."""
        watched, form = self._board.queue(request), _Form(request)
        (verb, scope), ids, filters = form.choice(), form.ids(), form.filters()
        began = await server_time(watched.queue)
        if scope == "selected":
            if not ids:
                raise bad("no dead letter is selected: mark some first")
            count, complete = len(ids), True
        else:
            count, complete = await counted(watched.queue, wanted_of(filters), began)
        return self._board.views.page(
            request, "confirm", watched=watched, verb=verb, scope=scope, ids=list(map(ref, ids)),
            filters=filters, began=repr(began), count=count, complete=complete,
        )  # fmt: skip

    async def carry_out(self, request: Request) -> Response:
        """Change the dead letters that were confirmed."""
        watched, form = self._board.queue(request), _Form(request)
        (verb, scope), filters = form.choice(), form.filters()
        change = CHANGES[verb]
        if scope == "selected":
            outcomes = await change_named(request, watched, change, form.ids())
        else:
            chosen = oldest(watched.queue, wanted_of(filters), form.number("began"))
            count = min(MOST, int(form.number("count")))
            outcomes = await _recorded(request, watched, change, first_of(chosen, count))
        told = {name: str(count) for name, count in outcomes.items()}
        return see(path(request, "queues", watched.prefix, "dead", **{**filters, **told}))

    async def edit(self, request: Request) -> Response:
        """The payload of a dead letter, to be changed. Changes nothing."""
        watched = self._board.queue(request)
        id = id_of(request.query_params.get("id", ""))
        died, fields = await dead_letter(watched, id)
        data = shown_data(watched, id, fields)
        return self._edit(request, watched, id, died, data)

    def _edit(
        self, request: Request, watched: Watched, id: str, died: float, data: Any, problem: str | None = None
    ) -> Response:
        status = 200 if problem is None else 422
        return self._board.views.page(
            request, "edit", status, watched=watched, id=id, died=repr(died), data=data, problem=problem
        )

    async def amend(self, request: Request) -> Response:
        """Change a dead letter's payload, and put it back in line where that was asked for."""
        watched, form = self._board.queue(request), _Form(request)
        id, died = form.id(), form.number("died")
        try:
            data = _object(form.text("data"))
            outcome = await change_payload(request, watched, id, died, data)
        except (Problem, InvalidMessage) as error:
            if isinstance(error, Problem) and error.status.value != 422:
                raise
            return self._edit(request, watched, id, died, form.text("data"), str(error))
        if outcome == "changed":
            raise bad(f"message {id!r:.200} was requeued and died again meanwhile: look at it anew")
        if outcome == "missing":
            raise unknown(f"message {id!r:.200} is not among the dead letters any more")
        if form.text("then") == "requeue":
            outcomes = await change_named(request, watched, REQUEUE, [id])
            told = {name: str(count) for name, count in outcomes.items()}
            return see(path(request, "queues", watched.prefix, "message", id=ref(id), **told))
        return see(path(request, "queues", watched.prefix, "message", id=ref(id), amended="1"))


class _Form:
    """A form's values, each checked as it is asked for."""

    def __init__(self, request: Request) -> None:
        self._values: dict[str, list[str]] = request.scope[FORM]

    def text(self, name: str) -> str:
        return self._values.get(name, [""])[-1]

    def choice(self) -> tuple[str, str]:
        """What is to be done, and to which: ``requeue selected``."""
        choice = self._one_of("choice", [f"{verb} {scope}" for verb in CHANGES for scope in ("selected", "all")])
        verb, _, scope = choice.partition(" ")
        return verb, scope

    def id(self) -> str:
        return id_of(self.text("id"))

    def priority(self) -> Priority:
        return self._one_of("priority", LETTERS)  # type: ignore[return-value]  # checked

    def ids(self) -> list[str]:
        return list(dict.fromkeys(map(id_of, self._values.get("id", []))))

    def filters(self) -> dict[str, str]:
        return filters_in({name: values[-1] for name, values in self._values.items()})

    def number(self, name: str) -> float:
        with suppress(ValueError):
            value = float(self.text(name))
            if math.isfinite(value):
                return value
        raise bad(f"{name}: {self.text(name)!r:.80} is no number")

    def _one_of(self, name: str, known: Iterable[str]) -> str:
        if self.text(name) not in known:
            raise bad(f"{name}: {self.text(name)!r:.80} is none of {', '.join(known)}")
        return self.text(name)


def _object(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise bad(f"this is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise bad('a payload is a JSON object, as in {"sku": "A-1"}')
    return found
