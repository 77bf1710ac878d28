"""The core suite on each server, redis-py and Python that is promised: `make matrix`.

A cell of the grid is one of each. Without options each of the three is tried in full, beside the first of the two
others; `--all` is the whole product. `--python 3.12 3.13`, `--redis 5 6` and `--server redis-6.2` choose: what is named
is tried with the first of what is not, or with `--all` with all of it. What follows `--` goes to pytest.

Every Python and redis-py has a virtual environment, every cell a log, in `.venv/matrix`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import servers

ROOT = Path(__file__).parent.parent
PLACE = ROOT / ".venv" / "matrix"

RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CLIENTS = ("8", "7", "6", "5", "5.0.2")
"""The newest of each major version, and the floor."""

CORE = (
    "transitions",
    "compat",
    "cli/test_supervisor.py",
    *(f"test_{room}.py" for room in ("connection", "leases", "outages", "queue", "results", "worker")),
    *(f"test_{room}.py" for room in ("batches", "limits", "limits_at_work", "secured", "setups", "sharding")),
)

PASSED, FAILED, EMPTY = "passed", "FAILED", "-"


class Cell(NamedTuple):
    """One combination."""

    python: str
    client: str
    server: str

    def __str__(self) -> str:
        return f"Python {self.python}, redis-py {self.client}, {self.server}"


class Empty(Exception):
    """Why a cell cannot be tried here."""


# ---- which cells


def cells(
    pythons: Sequence[str], clients: Sequence[str], names: Sequence[str], *, all: bool, default: str = RUNNING
) -> list[Cell]:
    """The combinations that are asked for; nothing named is nothing asked."""
    axes = [(default, *(version for version in PYTHONS if version != default)), CLIENTS, servers.NAMES]
    asked = [tuple(dict.fromkeys(chosen)) for chosen in (pythons, clients, names)]
    if all or any(asked):
        tried = [chosen or (axis if all else axis[:1]) for chosen, axis in zip(asked, axes, strict=True)]
        return [Cell(*cell) for cell in itertools.product(*tried)]
    first = Cell(default, CLIENTS[0], servers.NAMES[0])
    crossed = (
        first._replace(**{field: value}) for field, axis in zip(Cell._fields, axes, strict=True) for value in axis
    )
    return list(dict.fromkeys(crossed))


# ---- what a cell needs


def interpreter(version: str, environ: dict[str, str] | os._Environ[str] = os.environ) -> Path:
    """A Python of this version: the one that runs this, one on PATH, or the newest that pyenv has.

    Raises:
        Empty: there is none.
    """
    found = [Path(sys.executable)] if version == RUNNING else []
    found += [Path(path) for path in [shutil.which(f"python{version}", path=environ.get("PATH"))] if path]
    pyenv = Path(environ.get("PYENV_ROOT") or Path(environ.get("HOME", "~")).expanduser() / ".pyenv") / "versions"
    releases = [path for path in pyenv.glob(f"{version}.*") if path.name.rpartition(".")[2].isdigit()]
    found += [path / "bin" / "python" for path in sorted(releases, key=lambda path: -int(path.name.rpartition(".")[2]))]
    for path in found:
        if _version_of(path).startswith(f"{version}."):  # pyenv's shims stand on PATH whatever they lead to
            return path
    raise Empty(f"no interpreter: python{version} is not on PATH, and pyenv has none")


def _version_of(python: Path) -> str:
    try:
        asked = subprocess.run(
            [python, "-c", "import platform; print(platform.python_version())"],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    except OSError:
        return ""
    return asked.stdout.strip()


@cache
def environment(version: str, client: str) -> Path:
    """The Python of a virtual environment with this redis-py and what the core suite needs.

    Raises:
        Empty: there is no such interpreter, or something cannot be installed for it.
    """
    base, place = interpreter(version), PLACE / f"{version}-{client}"
    python = place / "bin" / "python"
    steps: list[list[object]] = [
        [base, "-m", "venv", place],
        [python, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25.1"],
        [python, "-m", "pip", "install", "--quiet", "--upgrade", "-e.[all]", "--group=core", _pinned(client)],
    ]
    place.mkdir(parents=True, exist_ok=True)
    for step in steps:
        done = subprocess.run(
            [*map(str, step)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise Empty(f"not installable: {_last(done.stdout, 'ERROR')}")
    return python


def _pinned(client: str) -> str:
    return f"redis=={client}" if client.count(".") == 2 else f"redis=={client}.*"


@cache
def look_for(name: str, python: Path) -> None:
    """Nothing, where this environment has the server.

    Raises:
        Empty: it has not.
    """
    program = f"import servers; servers.require({name!r})"
    done = subprocess.run(
        [python, "-c", program], cwd=ROOT / "tests", capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        raise Empty(_last(done.stderr, "servers.Missing: ").removeprefix("servers.Missing: "))


def _last(output: str, begins: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(begins)]
    return (told or lines or ["it does not say why"])[-1][:200]


# ---- trying them


class Outcome(NamedTuple):
    """What became of a cell: `words` say more, or why it is empty."""

    verdict: str
    words: str = ""


def tried(cell: Cell, options: Sequence[str]) -> Outcome:
    """Run the core suite there."""
    try:
        python = environment(cell.python, cell.client)
        look_for(cell.server, python)
    except Empty as reason:
        return Outcome(EMPTY, str(reason))
    log, began = PLACE / f"{cell.python}-{cell.client}-{cell.server}.log", time.monotonic()
    command = [
        python, "-m", "pytest", "-q", "--server", cell.server,
        "--numprocesses", "auto", "--dist", "loadfile", "--no-loadscope-reorder",
        *(ROOT / "tests" / part for part in CORE), *options,
    ]  # fmt: skip
    with log.open("wb") as out:
        code = subprocess.run([*map(str, command)], cwd=ROOT, stdout=out, stderr=out, check=False).returncode
    took = f"{time.monotonic() - began:.0f} s: {_last(log.read_text(errors='replace'), '')}"
    return Outcome(PASSED, took) if code == 0 else Outcome(FAILED, f"{took}; see {log.relative_to(ROOT)}")


def grid(outcomes: dict[Cell, Outcome]) -> Iterator[str]:
    """A table for each Python, servers by redis-py, and then why cells are empty. What was not asked for is blank."""
    clients = [client for client in CLIENTS if any(cell.client == client for cell in outcomes)]
    clients += dict.fromkeys(cell.client for cell in outcomes if cell.client not in CLIENTS)
    width = max(len(name) for name in servers.NAMES)
    for version in sorted({cell.python for cell in outcomes}, key=lambda version: [*map(int, version.split("."))]):
        yield ""
        yield f"{f'Python {version}':{width}}  " + "  ".join(f"{client:>6}" for client in clients)
        for name in dict.fromkeys(cell.server for cell in outcomes if cell.python == version):
            row = (outcomes.get(Cell(version, client, name), Outcome("")).verdict for client in clients)
            yield f"{name:{width}}  {'  '.join(f'{verdict:>6}' for verdict in row)}".rstrip()
    yield ""
    yield from _reasons(outcomes)


def _reasons(outcomes: dict[Cell, Outcome]) -> Iterator[str]:
    by_reason: dict[str, list[Cell]] = {}
    for cell, outcome in outcomes.items():
        if outcome.verdict == EMPTY:
            by_reason.setdefault(outcome.words, []).append(cell)
    for reason, empty in by_reason.items():
        pythons, clients, names = ({*axis} for axis in zip(*empty, strict=True))
        common = [f"Python {version}" for version in pythons if len(pythons) == 1]
        common += [f"redis-py {client}" for client in clients if len(clients) == 1]
        common += [name for name in names if len(names) == 1]
        yield f"empty, {', '.join(common) or 'some'}: {reason}"


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """0 where something was tried, and all of that passed."""
    verdicts = {outcome.verdict for outcome in outcomes}
    return 0 if PASSED in verdicts and FAILED not in verdicts else 1


def main(arguments: Sequence[str], run: Callable[[Cell, Sequence[str]], Outcome] = tried) -> int:
    parser = argparse.ArgumentParser(
        prog="make matrix", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--python", nargs="+", default=[], choices=PYTHONS, metavar="X.Y", help=f"of {', '.join(PYTHONS)}"
    )
    parser.add_argument(
        "--redis", nargs="+", default=[], metavar="VERSION", help=f"of redis-py, as {', '.join(CLIENTS)}"
    )
    parser.add_argument(
        "--server", nargs="+", default=[], choices=servers.NAMES, metavar="NAME", help=f"of {', '.join(servers.NAMES)}"
    )
    parser.add_argument("--all", action="store_true", help="all of what is not named, not only the first")
    parser.add_argument("options", nargs="*", help="go to pytest; after --")
    asked = parser.parse_args(arguments)
    outcomes = {}
    for cell in cells(asked.python, asked.redis, asked.server, all=asked.all):
        outcomes[cell] = outcome = run(cell, asked.options)
        print(f"{cell}: {outcome.verdict if outcome.verdict != EMPTY else 'empty'}, {outcome.words}", flush=True)
    print(*grid(outcomes), sep="\n")
    return exit_code(outcomes.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
