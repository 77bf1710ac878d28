"""The pages that show something. None of them changes anything."""

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from streams_queue.dashboard import reading
from streams_queue.dashboard.board import Board
from streams_queue.dashboard.charts import AGE, FAILURES, FLOW, LINE, chart
from streams_queue.dashboard.problems import bad, unknown
from streams_queue.dashboard.reading import LETTERS, id_of, ref, wanted_of
from streams_queue.dashboard.views import path, see
from streams_queue.dashboard.watch import Watched
from streams_queue.errors import QueueUnavailable
from streams_queue.letters import Reason
from streams_queue.limits import MEANINGS, text_of
from streams_queue.story import story_of

HEAD = 10
"""Messages from the head of the line on a queue's page."""

FILTERS = ("reason", "older_than", "newer_than", "text")

_OUTCOMES = (
    "requeued", "deleted", "missing", "expired", "amended", "removed", "prioritised", "as_it_was", "limits_changed",
)  # fmt: skip


def filters_in(values: Mapping[str, str]) -> dict[str, str]:
    """The filters of a page, as they stand in its address and go on into its forms: all that shows can be sent."""
    filters = {name: values.get(name, "") for name in FILTERS}
    if not all(value.isprintable() for value in filters.values()):
        raise bad("a filter has signs in it that cannot be shown")
    return filters


class Pages:
    """The handlers, one an address."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def overview(self, request: Request) -> Response:
        """All queues."""
        return self._board.views.page(request, "overview", **overview_of(self._board))

    async def queue(self, request: Request) -> Response:
        """One queue: its workers, its line, its last hour."""
        watched = self._board.queue(request)
        return self._board.views.page(request, "queue", **await queue_of(watched))

    async def messages(self, request: Request) -> Response:
        """The line, and a search for messages by id or by user."""
        watched, asked = self._board.queue(request), request.query_params
        context: dict[str, Any] = {"watched": watched, "asked": asked, "found": None, "line": None, "missing": None}
        if id := asked.get("id", "").strip():
            if await story_of(watched.queue, id_of(id)):
                return see(path(request, "queues", watched.prefix, "message", id=ref(id_of(id))))
            context["missing"] = id
        elif user := asked.get("user", "").strip():
            context["found"] = await reading.of_user(watched.queue, user, asked.get("after"))
        else:
            context["line"] = await reading.line(watched.queue, asked.get("after"), LETTERS)
        return self._board.views.page(request, "messages", **context)

    async def message(self, request: Request) -> Response:
        """A message's whole story."""
        watched = self._board.queue(request)
        id = id_of(request.query_params.get("id", ""))
        story = await story_of(watched.queue, id)
        if story is None:
            raise unknown(f"nothing is known of message {id!r:.200}: never enqueued, or finished long ago")
        return self._board.views.page(request, "message", watched=watched, story=story, outcomes=outcomes_in(request))

    async def limits(self, request: Request) -> Response:
        """A queue's limits, and the keys that messages wait for."""
        context = await limits_of(self._board.queue(request))
        return self._board.views.page(request, "limits", **context, problem=None, outcomes=outcomes_in(request))

    async def dead(self, request: Request) -> Response:
        """Dead letters, those that are asked for, a page of them."""
        watched, asked = self._board.queue(request), request.query_params
        filters = filters_in(asked)
        found = await reading.letters(watched.queue, wanted_of(filters), asked.get("after"), LETTERS)
        return self._board.views.page(
            request, "dead", watched=watched, found=found, filters=filters, reasons=list(Reason),
            total=(await watched.queue.stats()).dead, first=not asked.get("after"), outcomes=outcomes_in(request),
        )  # fmt: skip


def overview_of(board: Board) -> dict[str, Any]:
    """What the overview shows."""
    cards = [{"watched": watched, **_summary(watched, [LINE])} for watched in board.watch.queues]
    return {"cards": cards, "trouble": board.watch.trouble}


async def queue_of(watched: Watched) -> dict[str, Any]:
    """What a queue's page shows; of one that cannot be read now, what was seen before."""
    workers = line = None
    try:
        workers, line = await reading.workers(watched.queue), await reading.line(watched.queue, None, HEAD)
    except QueueUnavailable as error:
        watched.trouble = str(error)
    return {
        "watched": watched,
        **_summary(watched, [FLOW, LINE, FAILURES, AGE]),
        "minutes": watched.history.minutes()[::-1],
        "workers": workers,
        "line": line,
    }


async def limits_of(watched: Watched, written: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the page of a queue's limits shows; `written` is what somebody would have some of them be."""
    limits = await watched.queue.limits()
    shown = {name: text_of(getattr(limits, name)) for name in MEANINGS}
    return {
        "watched": watched, "meanings": MEANINGS, "in_force": shown, "written": {**shown, **(written or {})},
        **await keys_of(watched),
    }  # fmt: skip


async def keys_of(watched: Watched) -> dict[str, Any]:
    """The keys that messages wait for."""
    now = await watched.queue.transitions.time()
    parked, keys = await reading.waiting_keys(watched.queue)
    return {"watched": watched, "parked": parked, "keys": keys, "now": now}


def _summary(watched: Watched, kinds: list[Any]) -> dict[str, Any]:
    sample, minutes = watched.sample, watched.history.minutes()
    pictures = []
    if sample is not None:
        for kind in kinds:
            label = f"{' and '.join(series.name for series in kind)}, by the minute, in the last hour"
            pictures.append(chart(minutes, kind, label, until=sample.now))
    return {"sample": sample, "pace": watched.history.pace(), "charts": pictures}


def outcomes_in(request: Request) -> list[tuple[str, int]]:
    """What the change before this page did, as its address tells."""
    found = request.query_params
    return [(name, int(found[name])) for name in _OUTCOMES if re.fullmatch(r"\d{1,9}", found.get(name, ""))]
