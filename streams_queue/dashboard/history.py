"""What a queue did in the last hour, as the dashboard saw it. In memory, and bounded."""

from collections import deque
from typing import NamedTuple

import msgspec

from streams_queue.model import Stats

MINUTES = 60
"""Minutes that are remembered, the present one aside."""

WINDOW = 300.0
"""Seconds that estimates of waiting and running times look back."""

LATELY = 60.0
"""Seconds that rates look back."""

_COUNTED = {
    "total_messages": "enqueued",
    "completed_messages": "completed",
    "retry_count": "retried",
    "dlq_messages": "dead",
}


class Sample(NamedTuple):
    """A queue at one moment."""

    now: float
    """By the server's clock."""
    stats: Stats
    waits_since: float | None
    """Since when the message waits that has stood in line for the longest."""

    @property
    def waiting(self) -> int:
        """Messages in line that nobody works on."""
        return max(0, self.stats.main - self.stats.processing)

    @property
    def oldest_age(self) -> float | None:
        """Seconds that the oldest has stood in line."""
        return None if self.waits_since is None else max(0.0, self.now - self.waits_since)


class Minute(msgspec.Struct):
    """A minute of a queue's life: how many messages came and went, and how many waited on average."""

    start: int
    """Epoch seconds."""
    enqueued: int = 0
    completed: int = 0
    retried: int = 0
    dead: int = 0
    waiting: float = 0.0
    working: float = 0.0
    oldest_age: float = 0.0
    """The longest that the oldest had stood in line, in seconds."""
    samples: int = 0
    """How many looks this rests on."""


class Pace(msgspec.Struct, frozen=True):
    """How fast a queue moves. None where it cannot be said yet, or nothing moved."""

    enqueued: float | None = None
    """Messages a minute."""
    completed: float | None = None
    wait: float | None = None
    """Seconds in line on average, estimated by Little's law: how many wait, over how many leave."""
    run: float | None = None
    """Seconds with a worker on average, estimated the same way."""


class _Point(NamedTuple):
    now: float
    enqueued: int
    completed: int
    ended: int
    """Attempts that ended, whichever way."""
    waiting: int
    working: int


class History:
    """The last hour by the minute, and the last five minutes look by look."""

    def __init__(self) -> None:
        self.began: float | None = None
        """When the first look was taken, by the server's clock."""
        self._minutes: deque[Minute] = deque(maxlen=MINUTES + 1)
        self._points: deque[_Point] = deque()
        self._before: dict[str, int] | None = None
        self._ended = {"enqueued": 0, "completed": 0, "retried": 0, "dead": 0}

    def add(self, sample: Sample) -> None:
        """Remember a look."""
        if self.began is None:
            self.began = sample.now
        grown = self._grown(sample.stats.counters)
        for name, count in grown.items():
            self._ended[name] += count
        minute = self._minute_of(sample.now)
        for name, count in grown.items():
            setattr(minute, name, getattr(minute, name) + count)
        minute.samples += 1
        minute.waiting += (sample.waiting - minute.waiting) / minute.samples
        minute.working += (sample.stats.processing - minute.working) / minute.samples
        minute.oldest_age = max(minute.oldest_age, sample.oldest_age or 0.0)
        self._points.append(self._point(sample))
        while self._points[0].now < sample.now - WINDOW:
            self._points.popleft()

    def minutes(self) -> list[Minute]:
        """The minutes that were looked at, the oldest first; the last of them is not over."""
        return list(self._minutes)

    def pace(self) -> Pace:
        """How fast the queue moved lately."""
        if len(self._points) < 2:
            return Pace()
        last, window = self._points[-1], list(self._points)
        first = next(point for point in window if point.now >= last.now - LATELY)
        if first is last:
            first = window[-2]
        elapsed = last.now - first.now
        ended = last.ended - window[0].ended
        if elapsed <= 0:
            return Pace()
        lasted = last.now - window[0].now
        return Pace(
            enqueued=(last.enqueued - first.enqueued) / elapsed * 60,
            completed=(last.completed - first.completed) / elapsed * 60,
            wait=_mean([point.waiting for point in window]) * lasted / ended if ended else None,
            run=_mean([point.working for point in window]) * lasted / ended if ended else None,
        )

    def _grown(self, counters: dict[str, int]) -> dict[str, int]:
        found = {name: counters.get(counter, 0) for counter, name in _COUNTED.items()}
        before, self._before = self._before, found
        if before is None:
            return dict.fromkeys(found, 0)
        # A counter that went down was deleted meanwhile, and counts from nothing since.
        return {name: count - before[name] if count >= before[name] else max(0, count) for name, count in found.items()}

    def _minute_of(self, now: float) -> Minute:
        start = int(now // 60) * 60
        if not self._minutes or self._minutes[-1].start < start:
            self._minutes.append(Minute(start))
        return self._minutes[-1]

    def _point(self, sample: Sample) -> _Point:
        totals = self._ended
        return _Point(
            sample.now,
            totals["enqueued"],
            totals["completed"],
            totals["completed"] + totals["retried"] + totals["dead"],
            sample.waiting,
            sample.stats.processing,
        )


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)
