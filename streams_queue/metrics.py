"""Metrics for Prometheus: what a queue counts for all its processes, and what a worker's process alone knows.

Two families that must not be mixed. ``streams_queue_...`` describes a whole queue and comes out of Redis: take it from
one place, and never add it up over processes. ``streams_queue_worker_...`` describes the workers of one process: take
it from each of them, and add it up.

Needs prometheus_client: ``pip install "streams-queue[metrics]"``.
"""

import asyncio
import bisect
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from streams_queue.errors import ConfigurationError, StreamsQueueError
from streams_queue.model import Stats
from streams_queue.observation import Run
from streams_queue.queue import Queue
from streams_queue.worker import Worker

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, choose_encoder, generate_latest
    from prometheus_client.parser import text_string_to_metric_families
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    if error.name != "prometheus_client":
        raise
    raise ConfigurationError('metrics need prometheus_client: pip install "streams-queue[metrics]"') from None

__all__ = ["BUCKETS", "Exposition", "WorkerCollector", "exposition_of_queues", "exposition_of_registry", "observe"]

logger = logging.getLogger(__name__)

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Upper bounds of the histograms, in seconds: from a round trip to an hour in line."""

REASONS = ("error", "timeout", "rejected", "crash", "undecodable")
UNKNOWN = "unknown"
"""The reason of dead letters that were counted before reasons were, and of any that is none of ours."""

EDITS = (
    "added", "entry_lost", "taken_out", "unlocked", "locked", "two_places", "damaged", "claimed_elsewhere",
)  # fmt: skip
"""The kinds of outside edits, a bounded list: anybody may write counters of any name."""

REFUSING = ("max_length", "accept", "accept_per_key")
"""The limits that refuse messages."""


class Exposition(NamedTuple):
    """An answer to a scrape."""

    body: bytes
    content_type: str


# ---- a whole queue


async def exposition_of_queues(queues: Sequence[Queue[Any]], accept: str = "") -> Exposition:
    """What these queues count, one round trip a queue, all at the same time.

    A queue whose server does not answer has ``streams_queue_up`` 0 and nothing else.

    Args:
        queues: opened where they are not; each name once.
        accept: the scrape's ``Accept`` header: OpenMetrics, or the text format where it asks for none.
    """
    found = await asyncio.gather(*map(_stats_or_none, queues))
    names = [queue.keys.prefix for queue in queues]
    return _encoded(_Once(_families_of_queues(dict(zip(names, found, strict=True)))), accept)


async def _stats_or_none(queue: Queue[Any]) -> Stats | None:
    try:
        await queue.open()
        return await queue.stats()
    except StreamsQueueError as error:
        logger.warning("queue %s cannot be measured: %s", queue.keys.prefix, error)
        return None


def _families_of_queues(found: Mapping[str, Stats | None]) -> Iterator[Metric]:
    known = {queue: stats for queue, stats in found.items() if stats is not None}
    up = {(queue,): float(stats is not None) for queue, stats in found.items()}
    yield _gauge("up", "Whether the queue's server answered this scrape.", up)
    depth = {(queue, state): count for queue, stats in known.items() for state, count in states_of(stats).items()}
    yield _gauge("depth", "Messages by state; lost: ids whose body ran out.", depth, "state")
    words = "How long the oldest message that no worker holds has stood in line; 0 where none waits."
    yield _gauge("oldest_waiting_seconds", words, {(queue,): s.oldest_waiting or 0.0 for queue, s in known.items()})
    words = "Messages in line that were met before their key's turn."
    yield _gauge("parked", words, {(queue,): stats.parked for queue, stats in known.items()})
    lines = {
        (queue, priority): count
        for queue, stats in known.items()
        for priority, count in (
            ("high", stats.high),
            ("normal", stats.main - stats.high - stats.low),
            ("low", stats.low),
        )
    }
    yield _gauge("line", "Messages in line by priority, those being worked on included.", lines, "priority")
    words = "Workers that gave a sign within a lease."
    yield _gauge("workers", words, {(queue,): stats.workers for queue, stats in known.items()})
    words = "Whether workers take nothing new."
    yield _gauge("paused", words, {(queue,): float(stats.paused) for queue, stats in known.items()})
    for name, (counter, words) in _COUNTERS.items():
        yield _counter(name, words, {(queue,): stats.counters.get(counter, 0) for queue, stats in known.items()})
    words = "Runs that failed: retried or given up, crashes left out."
    yield _counter("messages_failed", words, {(queue,): _failures_of(stats) for queue, stats in known.items()})
    dead = {(queue, reason): count for queue, stats in known.items() for reason, count in _deaths_of(stats).items()}
    yield _counter("messages_dead", "Messages given up, by reason.", dead, "reason")
    refused = {
        (queue, limit): stats.counters.get(f"refused_{limit}", 0)
        for queue, stats in known.items()
        for limit in REFUSING
    }
    yield _counter("messages_refused", "Enqueues that a limit of the queue refused, by limit.", refused, "limit")
    edits = {(queue, kind): stats.edits.get(kind, 0) for queue, stats in known.items() for kind in EDITS}
    yield _counter("outside_edits", "Edits of the queue's keys by other programs, mended, by kind.", edits, "kind")


def states_of(stats: Stats) -> dict[str, int]:
    """How many messages are in each state."""
    return {
        "waiting": max(0, stats.main - stats.processing), "processing": stats.processing, "retry": stats.retry,
        "scheduled": stats.scheduled, "dead": stats.dead, "lost": stats.lost,
    }  # fmt: skip


_COUNTERS = {
    "messages_enqueued": ("total_messages", "Messages accepted."),
    "messages_completed": ("completed_messages", "Messages completed."),
    "messages_retried": ("retry_count", "Retries scheduled."),
    "messages_recovered": ("recovered_messages", "Messages taken back from workers that died or lost them."),
    "messages_duplicate": ("duplicate_messages", "Enqueues that found the message there already."),
    "messages_expired": ("expired_messages", "Messages whose body ran out before they were worked on."),
    "messages_removed": ("removed_messages", "Messages removed by a caller."),
    "messages_requeued": ("requeued_messages", "Dead letters put back in line."),
    "leases_lost": ("lost_leases", "Deliveries that a worker lost while it worked on them."),
}


def _failures_of(stats: Stats) -> int:
    given_up = stats.counters.get("dlq_messages", 0) - stats.died.get("crash", 0)
    return stats.counters.get("retry_count", 0) + given_up


def _deaths_of(stats: Stats) -> dict[str, int]:
    by_reason = {reason: stats.died.get(reason, 0) for reason in REASONS}
    return by_reason | {UNKNOWN: stats.counters.get("dlq_messages", 0) - sum(by_reason.values())}


# ---- the workers of this process


def observe(*workers: Worker[Any], registry: CollectorRegistry = REGISTRY) -> None:
    """Measure these workers, and show what was measured in a registry: prometheus_client's own unless told otherwise.

    Call it once, before they run, with all workers of the process; those of the same queue are added up.

    Raises:
        ConfigurationError: the registry shows other workers already.
    """
    try:
        registry.register(WorkerCollector(*workers))
    except ValueError:
        raise ConfigurationError(
            "this registry shows workers already: call observe once with all of them, or give it another registry"
        ) from None


def is_observed(worker: Worker[Any]) -> bool:
    """Whether somebody measures this worker."""
    return any(isinstance(observer, _Tally) for observer in worker.observation.observers)


def exposition_of_registry(registry: CollectorRegistry = REGISTRY, accept: str = "") -> Exposition:
    """All that a registry holds, of the application too. No round trip; may be called in any thread."""
    return _encoded(registry, accept)


class _Histogram:
    """Counts by bucket. Filled by one thread; another may read it, and then miss what is being added."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """(upper bound, how many are at or below it) for each bucket, and the sum of all."""
        bounds = [*map(str, BUCKETS), "+Inf"]
        return list(zip(bounds, map(float, itertools.accumulate(self._counts)), strict=True)), self._sum


_RESULTS = {
    "completed": "Handlers that returned.",
    "lost": "Runs whose message was lost, and whose outcome was not written.",
    "handed_back": "Runs that were interrupted, the message handed back uncharged.",
}

_TIMES = {
    "wait": "From when a message came into line until its handler began.",
    "run": "From a handler's beginning to its end.",
    "end_to_end": "From a message's enqueue to its completion.",
}


class _Tally:
    """What the workers of one queue in this process did: an `Observer`."""

    def __init__(self) -> None:
        self.workers: list[Worker[Any]] = []
        self.begun = 0
        self.results = dict.fromkeys(_RESULTS, 0)
        self.failures = dict.fromkeys(("error", "timeout", "rejected"), 0)
        self.times = {name: _Histogram() for name in _TIMES}
        self._wait, self._run, self._age = self.times.values()

    def wants(self) -> bool:
        return True

    def started(self, runs: Sequence[Run]) -> None:
        self.begun += len(runs)
        for run in runs:
            self._wait.add(run.wait)

    def ended(self, runs: Sequence[Run], kept: None) -> None:  # noqa: ARG002
        for run in runs:
            self._count_end(run)

    def _count_end(self, run: Run) -> None:
        self._run.add(run.took)
        if run.reason:
            self.failures[run.reason] += 1
            return
        self.results[run.result] += 1
        if run.result == "completed":
            self._age.add(run.age)


class WorkerCollector(Collector):
    """What the workers of this process did and do, by queue, for any registry."""

    def __init__(self, *workers: Worker[Any]) -> None:
        self._tallies: dict[str, _Tally] = {}
        for worker in workers:
            tally = self._tallies.setdefault(worker.queue.keys.prefix, _Tally())
            tally.workers.append(worker)
            worker.observation.observers.append(tally)

    def describe(self) -> Iterable[Metric]:
        """What it will show: a registry refuses a second collector of the same."""
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        """The metrics; a scrape calls it, in any thread."""
        yield _gauge("worker_slots", "Handlers that may run at the same time.", self._sums(lambda w: w.concurrency))
        yield _gauge("worker_slots_busy", "Handlers that run now.", self._sums(lambda worker: worker.busy))
        yield _gauge("worker_ready", "Workers that get messages, or could.", self._sums(lambda worker: worker.ready))
        words = "Since the last sign of the event loop, which gives three a lease."
        silences = {(queue,): max(worker.silence for worker in tally.workers) for queue, tally in self._tallies.items()}
        yield _gauge("worker_silence_seconds", words, silences)
        begun = {(queue,): tally.begun for queue, tally in self._tallies.items()}
        yield _counter("worker_messages_started", "Handlers started.", begun)
        for result, words in _RESULTS.items():
            ended = {(queue,): tally.results[result] for queue, tally in self._tallies.items()}
            yield _counter(f"worker_messages_{result}", words, ended)
        failures = {
            (queue, reason): count for queue, tally in self._tallies.items() for reason, count in tally.failures.items()
        }
        yield _counter("worker_messages_failed", "Runs that failed, by reason.", failures, "reason")
        for name, words in _TIMES.items():
            yield self._histogram(name, words)

    def _sums(self, value: Callable[[Worker[Any]], float]) -> dict[tuple[str, ...], float]:
        return {(queue,): float(sum(map(value, tally.workers))) for queue, tally in self._tallies.items()}

    def _histogram(self, name: str, words: str) -> Metric:
        family = HistogramMetricFamily(f"streams_queue_worker_{name}_seconds", words, labels=["queue"])
        for queue, tally in self._tallies.items():
            buckets, total = tally.times[name].read()
            family.add_metric([queue], buckets=buckets, sum_value=total)
        return family


# ---- several processes under one supervisor


def exposition_of_processes(pages: Mapping[int, bytes | None], starts: Mapping[int, int]) -> Exposition:
    """The pages of several processes as one in the text format, each sample with the label ``process``.

    A label of that name that the application has set becomes ``exported_process``, as in Prometheus.

    Args:
        pages: what each shows, by its number; None for one that does not answer, or is not at work.
        starts: how often each was started.
    """
    up = {(str(process),): float(page is not None) for process, page in pages.items()}
    restarts = {(str(process),): float(count - 1) for process, count in starts.items() if count}
    words = "Whether the process is at work and answered this scrape."
    families = [
        _filled(GaugeMetricFamily("streams_queue_worker_process_up", words, labels=["process"]), up),
        _filled(
            CounterMetricFamily(
                "streams_queue_worker_process_restarts", "Processes started after one that ended.", labels=["process"]
            ),
            restarts,
        ),
    ]
    known = {process: page for process, page in pages.items() if page is not None}
    return Exposition(generate_latest(_Once([*families, *_joined(known)])), CONTENT_TYPE_LATEST)


def _joined(pages: Mapping[int, bytes]) -> Iterable[Metric]:
    joined: dict[str, Metric] = {}
    for process, page in pages.items():
        for family in text_string_to_metric_families(page.decode()):
            whole = joined.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = {
                    "exported_process" if name == "process" else name: value for name, value in sample.labels.items()
                }
                whole.samples.append(sample._replace(labels={"process": str(process), **labels}))
    return joined.values()


# ---- how it is written


_Labels = TypeVar("_Labels", bound=tuple[str, ...])
"""The values of a metric's labels, the queue first."""


def _gauge(name: str, words: str, rows: Mapping[_Labels, float], *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"streams_queue_{name}", words, labels=["queue", *labels]), rows)


def _counter(name: str, words: str, rows: Mapping[_Labels, float], *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"streams_queue_{name}", words, labels=["queue", *labels]), rows)


def _filled(family: Any, rows: Mapping[_Labels, float]) -> Metric:
    for labels, value in rows.items():
        family.add_metric(labels, max(0, value))
    filled: Metric = family
    return filled


class _Once(Collector):
    """Families that were made for one scrape."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _encoded(collector: Collector, accept: str) -> Exposition:
    encode, content_type = choose_encoder(accept)
    return Exposition(encode(collector), content_type)
