"""The figures as docs/benchmarks.md has them, and its chart."""

from __future__ import annotations

import datetime as dt
import os
import platform
import statistics
import subprocess
from importlib.metadata import version
from pathlib import Path

import redis

from bench import chart
from bench.chart import Bar
from bench.peers import OURS, PEERS, ROOT, Peer
from bench.programs.common import BATCH, CALLERS
from bench.rows import Figures, Pair, ratio
from bench.runs import Bench

PAGE = ROOT / "docs" / "benchmarks.md"
END = "<!-- bench: end -->"
CHART = ROOT / "docs" / "benchmarks.svg"


def written(bench: Bench, figures: Figures) -> None:
    """Put the figures where the page has marks for them."""
    page = PAGE.read_text()
    for name, text in {
        "machine": _machine(bench),
        "targets": _targets(figures),
        "peers": _peers(figures),
        "commands": _commands(figures),
        "versions": _versions(figures, _between(page, "versions")),
    }.items():
        before, _, rest = page.partition(_mark(name))
        page = f"{before}{_mark(name)}{text}{END}{rest.partition(END)[2]}"
    PAGE.write_text(page)
    CHART.write_text(_chart(figures))


def _between(page: str, name: str) -> str:
    return page.partition(_mark(name))[2].partition(END)[0]


def _mark(name: str) -> str:
    return f"<!-- bench: {name} -->\n"


def _machine(bench: Bench) -> str:
    info = bench.client.info("server")
    server = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = {
        "machine": f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB, {platform.system()}",
        "server": f"{server}, on the same machine, one database in memory, no append-only file",
        "Python": f"{platform.python_version()}, uvloop {version('uvloop')}, hiredis {version('hiredis')}",
        "streams-queue": f"{version('streams-queue')} ({_commit()}), redis-py {redis.__version__}",
        "measured": f"{dt.datetime.now(dt.UTC).date()}, {bench.options.pairs} pairs, "
        f"{bench.options.messages:,} messages of {bench.options.bytes} bytes of text each",
    }
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in facts.items())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "no checkout"


def _targets(figures: Figures) -> str:
    verdicts = {True: "met", False: "**missed**", None: "-"}
    return "| work | target | measured | verdict |\n|---|---|---|---|\n" + "".join(
        f"| {row.work} | {row.target} | {row.measured} | {verdicts[row.met]} |\n" for row in figures.rows
    )


def _peers(figures: Figures) -> str:
    lines = [
        f"![Messages a second, ours and others']({CHART.name})",
        "",
        "| queue | version | promise | finished/s | ours | worker | server | enqueued/s | ours | in batches/s | ours |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    if OURS.name in figures.costs:
        lines.append(
            f"| {OURS.name} | this one | {OURS.after} | {_ours(figures.finish)} | - | {_cost(figures, OURS)} | "
            f"{_ours(figures.enqueue)} | - | {_ours(figures.batch)} | - |"
        )
    for peer in PEERS:
        if peer.name in figures.missing:
            lines.append(
                f"| {peer.name} | {peer.version} | not run: {_cell(figures.missing[peer.name])} | | | | | | | | |"
            )
        elif peer.name in figures.finish:
            finish, enqueue, batch = (
                _beside(pairs.get(peer.name)) for pairs in (figures.finish, figures.enqueue, figures.batch)
            )
            lines.append(
                f"| {peer.name} | {peer.version} | {peer.after} | {finish} | {_cost(figures, peer)} | {enqueue} "
                f"| {batch} |"
            )
    return "\n".join(lines) + "\n"


def _ours(by_peer: dict[str, list[Pair]]) -> str:
    rates = [pair.ours for pairs in by_peer.values() for pair in pairs]
    return f"{statistics.median(rates):,.0f}" if rates else "-"


def _beside(pairs: list[Pair] | None) -> str:
    """A peer's rate, and how many times as fast ours is."""
    if not pairs:
        return "- | -"
    return f"{statistics.median(pair.theirs for pair in pairs):,.0f} | {ratio(pairs):.2f} x"


def _cost(figures: Figures, peer: Peer) -> str:
    runs = figures.costs[peer.name]
    worker, server = (
        statistics.median(times) for times in ([run.worker for run in runs], [run.server for run in runs])
    )
    return f"{worker * 1e6:.0f} µs | {server * 1e6:.0f} µs"


def _cell(words: str) -> str:
    return " ".join(words.replace("|", "/").split())[:200]


def _commands(figures: Figures) -> str:
    inside = sorted(figures.commands.items(), key=lambda item: -item[1][1])
    return "| command | calls | µs |\n|---|---|---|\n" + "".join(
        f"| `{name.upper()}` | {calls:.2f} | {spent:.2f} |\n" for name, (calls, spent) in inside
    )


def _versions(figures: Figures, before: str) -> str:
    """A line for each version, the newest first; that of this version is replaced."""
    ours = version("streams-queue")
    kept = [
        line
        for line in before.splitlines()
        if line.startswith("| ") and not line.startswith(("| version", f"| {ours} "))
    ]
    scripts = sum(spent for name, (_, spent) in figures.commands.items() if name in ("eval", "evalsha"))
    calls = sum(calls for name, (calls, _) in figures.commands.items() if name not in ("eval", "evalsha"))
    newest = f"| {ours} | {dt.datetime.now(dt.UTC).date()} | {_commit()} | {scripts:.1f} | {calls:.1f} |"
    head = [
        "| version | day | commit | µs inside Redis for one message | commands for one message |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, newest, *kept]) + "\n"


def _chart(figures: Figures) -> str:
    panels = []
    for head, by_peer in (
        ("Finished a second, one worker process, handlers that do nothing", figures.finish),
        (f"Enqueued a second, from {CALLERS} callers", figures.enqueue),
        (f"Enqueued a second, {BATCH:,} a call", figures.batch),
    ):
        bars = [Bar(name, statistics.median(pair.theirs for pair in pairs)) for name, pairs in by_peer.items()]
        ours = [pair.ours for pairs in by_peer.values() for pair in pairs]
        if bars:
            panels.append((head, [Bar(OURS.name, statistics.median(ours)), *bars]))
    return chart.drawn("streams-queue beside other queues: messages a second", panels, OURS.name)
