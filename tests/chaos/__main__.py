"""``python -m chaos``: every fault at full size, and the table of docs/reliability.md."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import subprocess
import sys
import tempfile
from pathlib import Path

import redis

import servers
import setups
from chaos import scenario
from chaos.faults import FAULTS
from chaos.scenario import Row

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"

HEAD = """\
| fault | what | runs | accepted | lost | forgotten by the server (at risk) | duplicates (allowed) | longest recovery \
| verdict | measured |
|---|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make chaos ARGS=...", description=__doc__)
    parser.add_argument("--only", help="faults, as in 1,2,20b, or parts of scenarios' names", default="")
    parser.add_argument("--smoke", action="store_true", help="a few repeats, as in the test suite; nothing is written")
    parser.add_argument("--server", choices=(*servers.NAMES[:-1], *setups.NAMES), default=servers.DEFAULT)
    options = parser.parse_args()
    wanted = [word for word in options.only.split(",") if word]
    possible = [fault for fault in FAULTS if fault.is_for(options.server)]
    chosen = [f for f in possible if not wanted or any(word == f.number or word in f.name for word in wanted)]
    place = options.server if options.server in setups.NAMES else ""
    lines, failing = _lines(place), 0
    mark = _measured(options.server)
    for fault in chosen:
        with scenario.environment():
            row = asyncio.run(scenario.run(fault, options.server, full=not options.smoke))
        failing += bool(row.broken)
        line = _line(row, mark)
        print(f"{line}   {row.seconds:.0f} s", flush=True)
        if not options.smoke:
            lines[fault.name] = line
            _write(place, lines)
    print(f"{len(chosen) - failing} of {len(chosen)} hold")
    sys.exit(1 if failing else 0)


def _measured(server: str) -> str:
    """When, at which commit, and on what."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as directory:
        running = setups.start_any(server, Path(directory))
        with running.sync_client() as client:
            info = client.info("server")
        running.stop()
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    day = dt.datetime.now(dt.UTC).date()
    return f"{day}, {commit}, {name}, redis-py {redis.__version__}"


def _line(row: Row, measured: str) -> str:
    verdict = "**fails**: " + "; ".join(_cell(reason) for reason in row.broken) if row.broken else "holds"
    recovery = f"{row.recovery:.1f} s" if row.recovery else "-"
    forgotten = f"{row.forgotten:,} ({row.at_risk:,})" if row.at_risk else "-"
    fault = row.scenario
    cells = [
        fault.number, f"{_cell(fault.what)} <!-- {fault.name} -->", f"{row.runs:,}", f"{row.accepted:,}",
        f"{row.lost:,}", forgotten, f"{row.duplicates:,} ({row.allowed:,})", recovery, verdict, measured,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _cell(words: str) -> str:
    return " ".join(words.replace("|", "/").split())[:300]


def _lines(place: str) -> dict[str, str]:
    """The rows that stand on the page, by scenario: one that is not run now is kept."""
    found: dict[str, str] = {}
    inside = PAGE.read_text().partition(_mark("begin", place))[2].partition(_mark("end", place))[0]
    for line in inside.splitlines():
        name = line.partition("<!-- ")[2].partition(" -->")[0]
        if name:
            found[name] = line
    return found


def _mark(word: str, place: str) -> str:
    return f"<!-- chaos{' ' if place else ''}{place}: {word} -->"


def _write(place: str, lines: dict[str, str]) -> None:
    begin, end = _mark("begin", place), _mark("end", place)
    before, _, rest = PAGE.read_text().partition(begin)
    after = rest.partition(end)[2]
    rows = "".join(f"{lines[fault.name]}\n" for fault in FAULTS if fault.name in lines)
    PAGE.write_text(f"{before}{begin}\n{HEAD}{rows}{end}{after}")


if __name__ == "__main__":
    main()
