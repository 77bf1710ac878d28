"""Bars as an SVG, in plain text: readable in light and in dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

STYLE = """\
  <style>
    svg { --ink: #1f2328; --soft: #59636e; --paper: #ffffff; --ours: #0969da; --theirs: #afb8c1;
          background: var(--paper); font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
    @media (prefers-color-scheme: dark) {
      svg { --ink: #f0f6fc; --soft: #9198a1; --paper: #0d1117; --ours: #4493f8; --theirs: #3d444d }
    }
    text { fill: var(--ink) }
    .head { font-weight: 600; font-size: 15px }
    .name { text-anchor: end } .rate { fill: var(--soft); font-size: 13px }
    .ours { fill: var(--ours) } .theirs { fill: var(--theirs) }
  </style>
"""

WIDTH, NAMES, BAR, STEP, TOP = 760, 150, 500, 26, 44


class Bar(NamedTuple):
    """One bar: messages a second."""

    name: str
    rate: float


def drawn(title: str, panels: Sequence[tuple[str, Sequence[Bar]]], ours: str) -> str:
    """The picture: panels below each other, the longest bar first; `ours` is the one that stands out."""
    parts, y = [], 0
    for head, bars in panels:
        y += TOP
        parts.append(f'  <text class="head" x="16" y="{y - 14}">{escape(head)}</text>')
        most = max(bar.rate for bar in bars)
        for bar in sorted(bars, key=lambda bar: -bar.rate):
            width = max(1, round(BAR * bar.rate / most))
            kind = "ours" if bar.name == ours else "theirs"
            parts += [
                f'  <text class="name" x="{NAMES}" y="{y + 14}">{escape(bar.name)}</text>',
                f'  <rect class="{kind}" x="{NAMES + 10}" y="{y}" width="{width}" height="18" rx="3"/>',
                f'  <text class="rate" x="{NAMES + 16 + width}" y="{y + 14}">{bar.rate:,.0f}</text>',
            ]
            y += STEP
    words = "; ".join(
        f"{head}: " + ", ".join(f"{bar.name} {bar.rate:,.0f}" for bar in sorted(bars, key=lambda bar: -bar.rate))
        for head, bars in panels
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 12}" role="img" '
        f'aria-labelledby="title desc">\n'
        f'  <title id="title">{escape(title)}</title>\n  <desc id="desc">{escape(words)}</desc>\n{STYLE}'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
