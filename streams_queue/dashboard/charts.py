"""The last hour as pictures: SVG made here, its colours in the style sheet, its words in the page."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from streams_queue.dashboard.history import MINUTES, Minute

WIDTH, HEIGHT = 600, 100
_STEP = WIDTH / (MINUTES + 1)
_GAP = 1.5


class Series(NamedTuple):
    """What is drawn of each minute: `kind` is ``bar``, stacked on those before, ``line`` or ``area``."""

    name: str
    kind: str
    style: str
    value: Callable[[Minute], float]


class Chart(NamedTuple):
    """A picture, what its highest point stands for, and the series that it shows."""

    svg: Markup
    top: float
    series: Sequence[Series]


FLOW = (
    Series("completed", "bar", "main", lambda minute: minute.completed),
    Series("enqueued", "line", "other", lambda minute: minute.enqueued),
)
LINE = (
    Series("waiting", "area", "main", lambda minute: minute.waiting),
    Series("being worked on", "line", "other", lambda minute: minute.working),
)
FAILURES = (
    Series("retried", "bar", "other", lambda minute: minute.retried),
    Series("dead", "bar", "bad", lambda minute: minute.dead),
)
AGE = (Series("age of the oldest", "area", "main", lambda minute: minute.oldest_age),)


def chart(minutes: Sequence[Minute], series: Sequence[Series], label: str, *, until: float) -> Chart:
    """Draw an hour that ends at `until`, by the server's clock. Minutes that were not looked at stay empty."""
    last = int(until // 60) * 60
    places = [(MINUTES - (last - minute.start) // 60, minute) for minute in minutes]
    seen = [(place, minute) for place, minute in places if place >= 0]
    bars = [one for one in series if one.kind == "bar"]
    tops = [sum(one.value(minute) for one in bars) for _, minute in seen]
    tops += [one.value(minute) for one in series if one.kind != "bar" for _, minute in seen]
    top = max([*tops, 0.0])
    drawn = [*_bars(seen, bars, top), *(_path(seen, one, top) for one in series if one.kind != "bar")]
    grid = f'<path class="grid" d="M0 {HEIGHT / 2:g}H{WIDTH}M0 {HEIGHT}H{WIDTH}"/>'
    svg = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        'aria-label="{}">' + grid + "".join(drawn) + "</svg>"
    )
    return Chart(Markup(svg).format(label), top, series)  # noqa: S704  (made of numbers and of names in this file)


_Seen = Sequence[tuple[int, Minute]]


def _height(value: float, top: float) -> float:
    return (HEIGHT - 4) * value / top if top else 0.0


def _bars(seen: _Seen, series: Sequence[Series], top: float) -> list[str]:
    drawn: list[str] = []
    for place, minute in seen:
        floor = float(HEIGHT)
        for one in series:
            height = _height(one.value(minute), top)
            floor -= height
            if height:
                drawn.append(
                    f'<rect class="{one.style}" x="{place * _STEP + _GAP / 2:.1f}" y="{floor:.1f}" '
                    f'width="{_STEP - _GAP:.1f}" height="{height:.1f}"/>'
                )
    return drawn


def _path(seen: _Seen, series: Series, top: float) -> str:
    paths = []
    for run in _runs(seen):
        points = [(place * _STEP + _STEP / 2, HEIGHT - _height(series.value(minute), top)) for place, minute in run]
        if len(points) == 1:  # a minute alone is a short line
            (x, y), half = points[0], _STEP / 2
            points = [(x - half, y), (x + half, y)]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        if series.kind == "area":
            paths.append(f'<path class="area {series.style}" d="M{points[0][0]:.1f} {HEIGHT}L{line}V{HEIGHT}Z"/>')
        paths.append(f'<path class="line {series.style}" d="M{line}"/>')
    return "".join(paths)


def _runs(seen: _Seen) -> list[list[tuple[int, Minute]]]:
    runs: list[list[tuple[int, Minute]]] = []
    for place, minute in seen:
        if runs and runs[-1][-1][0] == place - 1:
            runs[-1].append((place, minute))
        else:
            runs.append([(place, minute)])
    return runs
