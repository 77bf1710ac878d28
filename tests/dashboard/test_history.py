"""The last hour, as it is remembered and drawn: no server, no browser."""

from __future__ import annotations

import re
from typing import Any

import pytest

from streams_queue.dashboard.charts import FAILURES, FLOW, LINE, WIDTH, chart
from streams_queue.dashboard.history import MINUTES, WINDOW, History, Minute, Sample
from streams_queue.model import Stats

START = 6_000_000.0


def sample(now: float, *, main=0, processing=0, since: float | None = None, **counters: int) -> Sample:
    stats = Stats(
        main=main, processing=processing, retry=0, scheduled=0, dead=0, lost=0, parked=0, high=0, low=0, paused=False,
        oldest_waiting=None, workers=0, counters=counters, died={}, edits={},
    )  # fmt: skip
    return Sample(now, stats, since)


def seen(*samples: Sample) -> History:
    history = History()
    for one in samples:
        history.add(one)
    return history


def test_what_was_counted_before_the_first_look_is_no_news():
    history = seen(sample(START, total_messages=1000, completed_messages=900))
    (minute,) = history.minutes()
    assert (minute.enqueued, minute.completed, history.began) == (0, 0, START)
    assert history.pace().enqueued is None


def test_growth_counts_in_the_minute_that_sees_it():
    history = seen(
        sample(START, total_messages=10),
        sample(START + 2, total_messages=13, completed_messages=2),
        sample(START + 60, total_messages=14, completed_messages=2, retry_count=1, dlq_messages=3),
    )
    first, second = history.minutes()
    assert (first.enqueued, first.completed) == (3, 2)
    assert (second.enqueued, second.retried, second.dead) == (1, 1, 3)


def test_counters_that_were_deleted_count_from_nothing():
    history = seen(sample(START, total_messages=1000), sample(START + 2, total_messages=5))
    assert history.minutes()[0].enqueued == 5


def test_waiting_is_a_mean_and_the_age_a_maximum():
    history = seen(
        sample(START, main=10, processing=4, since=START - 5),
        sample(START + 2, main=20, processing=2, since=START - 50),
    )
    (minute,) = history.minutes()
    assert (minute.waiting, minute.working, minute.oldest_age, minute.samples) == (12, 3, 52, 2)


def test_an_hour_is_remembered_and_no_more():
    history = History()
    for second in range(0, 3 * 3600, 2):
        history.add(sample(START + second, total_messages=second))
    minutes = history.minutes()
    assert len(minutes) == MINUTES + 1
    assert minutes[-1].start - minutes[0].start == MINUTES * 60
    assert len(history._points) <= WINDOW / 2 + 1
    assert history.began == START


def test_rates_look_at_the_last_minute():
    history = History()
    for second in range(0, 240, 2):
        fast = max(0, second - 120)
        history.add(sample(START + second, total_messages=second + 10 * fast, completed_messages=second))
    pace = history.pace()
    assert pace.enqueued == pytest.approx(11 * 60)
    assert pace.completed == pytest.approx(60)


def test_waiting_and_running_times_by_littles_law():
    history = History()
    for second in range(0, 300, 2):  # 5 attempts end each second, 100 wait, 10 are worked on
        ended = {"completed_messages": 3 * second, "retry_count": second, "dlq_messages": second}
        history.add(sample(START + second, main=110, processing=10, **ended))
    pace = history.pace()
    assert pace.wait == pytest.approx(20)
    assert pace.run == pytest.approx(2)


def test_nothing_is_made_up_where_nothing_moves():
    pace = seen(sample(START, main=100), sample(START + 2, main=100)).pace()
    assert (pace.enqueued, pace.completed, pace.wait, pace.run) == (0, 0, None, None)
    assert seen(sample(START), sample(START)).pace().enqueued is None


# ---- charts


def minutes_of(*values: tuple[int, dict[str, Any]]) -> list[Minute]:
    return [Minute(int(START) // 60 * 60 + 60 * place, **named) for place, named in values]


def test_bars_are_stacked_on_their_minutes():
    drawn = chart(minutes_of((0, {"retried": 4, "dead": 4}), (60, {"dead": 2})), FAILURES, "x", until=START + 3600)
    bars = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', str(drawn.svg))
    assert drawn.top == 8
    first, stacked, last = [(style, *map(float, numbers)) for style, *numbers in bars]
    assert (first[0], stacked[0], last[0]) == ("other", "bad", "bad")
    assert (first[1], first[2], first[3]) == (stacked[1], 52, 48)
    assert (stacked[2], stacked[3]) == (4, 48)
    assert last[1] > WIDTH * 59 / 61
    assert last[3] == 24


def test_a_gap_is_no_line():
    drawn = str(chart(minutes_of((5, {}), (6, {}), (30, {}), (31, {})), LINE, "x", until=START + 3600).svg)
    assert drawn.count('class="line main"') == 2
    assert drawn.count('class="area main"') == 2


def test_what_is_older_than_an_hour_is_not_drawn():
    drawn = str(chart(minutes_of((0, {"completed": 5}), (61, {"completed": 5})), FLOW, "x", until=START + 3660).svg)
    assert drawn.count("<rect") == 1


def test_an_empty_chart_is_a_chart():
    drawn = chart([], FLOW, 'of "orders" & more', until=START)
    assert drawn.top == 0
    assert 'aria-label="of &#34;orders&#34; &amp; more"' in drawn.svg


def test_a_chart_has_no_style_of_its_own():
    drawn = str(chart(minutes_of((5, {"waiting": 3.0})), LINE, "x", until=START + 3600).svg)
    assert not re.search(r"style=|<style|<script|on\w+=", drawn)
