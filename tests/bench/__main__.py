"""``make bench``: ours beside other queues on one server, and the tables of docs/benchmarks.md.

Without arguments everything is measured at full size, and the page is written. With any it is measured and printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from bench import page, rows
from bench.peers import PEERS, ROOT, Peer
from bench.rows import Figures, say
from bench.runs import Bench, Failed, Options, server_at

FULL = Options(messages=100_000, pairs=5, bytes=100)

Measure = Callable[[Bench, Figures], None]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--only", help=f"rows, as in finish,idle: {', '.join(_measures([]))}", default="")
    parser.add_argument("--peers", help=f"peers, as in arq,saq, or none: {', '.join(_short(p) for p in PEERS)}")
    parser.add_argument("--messages", type=int, default=FULL.messages, help="that ours gets; slower ones get a share")
    parser.add_argument("--pairs", type=int, default=FULL.pairs)
    parser.add_argument("--bytes", type=int, default=FULL.bytes, help="of text in each message")
    parser.add_argument("--url", help="an empty server for nothing else, instead of one of its own; it is flushed")
    parser.add_argument("--write", action="store_true", help="write the page all the same")
    options = parser.parse_args()
    wanted = [word for word in options.only.split(",") if word]
    measures = _measures([peer for peer in PEERS if options.peers is None or _short(peer) in options.peers.split(",")])
    if unknown := set(wanted) - set(measures):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    sizes = Options(options.messages, options.pairs, options.bytes)
    is_full = not wanted and options.peers is None and options.url is None and sizes == FULL
    with server_at(options.url) as url:
        bench = Bench(url, sizes)
        if bench.client.info("keyspace"):
            parser.error(f"{options.url} is not empty: everything on it would be flushed")
        figures, broken = _measured(bench, {name: measures[name] for name in wanted or measures})
        if (is_full or options.write) and not broken:
            page.written(bench, figures)
            say(f"written: {page.PAGE.relative_to(ROOT)}, {page.CHART.relative_to(ROOT)}")
    sys.exit(1 if broken else 0)


def _measures(peers: list[Peer]) -> dict[str, Measure]:
    return {
        "finish": lambda bench, figures: rows.beside_peers(bench, figures, peers),
        "batch": lambda bench, figures: rows.in_batches(bench, figures, peers),
        "share": rows.share,
        "processes": rows.processes,
        "reaction": rows.reaction,
        "line": rows.long_line,
        "memory": rows.memory,
        "commands": rows.commands,
        "idle": rows.idle,
    }


def _short(peer: Peer) -> str:
    return peer.name.lower().replace(" ", "-")


def _measured(bench: Bench, measures: dict[str, Measure]) -> tuple[Figures, bool]:
    figures, broken = Figures(), False
    for name, measure in measures.items():
        began = time.monotonic()
        try:
            measure(bench, figures)
        except Failed as reason:
            say(f"{name}: failed: {reason}")
            broken = True
        say(f"({name}: {time.monotonic() - began:.0f} s)")
    return figures, broken


if __name__ == "__main__":
    main()
