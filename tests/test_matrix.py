"""The grid of `make matrix`: which cells are chosen, why one is empty, and what is printed. No suite is run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import matrix
import servers
from matrix import CLIENTS, EMPTY, FAILED, PASSED, PYTHONS, Cell, Outcome


def test_by_default_each_is_tried_beside_the_first_of_the_others():
    crossed = matrix.cells([], [], [], all=False, default="3.12")
    assert crossed[0] == Cell("3.12", "8", "embedded")
    assert len(crossed) == len(set(crossed)) == len(PYTHONS) + len(CLIENTS) + len(servers.NAMES) - 2
    for axis, values in zip(zip(*crossed, strict=True), (PYTHONS, CLIENTS, servers.NAMES), strict=True):
        assert {*axis} == {*values}


def test_all_is_the_whole_product():
    assert len(matrix.cells([], [], [], all=True)) == len(PYTHONS) * len(CLIENTS) * len(servers.NAMES)


def test_what_is_named_is_tried_with_the_first_of_what_is_not():
    assert matrix.cells(["3.13"], ["5", "6"], [], all=False) == [
        Cell("3.13", "5", "embedded"),
        Cell("3.13", "6", "embedded"),
    ]
    assert matrix.cells([], [], ["redis-6.2"], all=False, default="3.11") == [Cell("3.11", "8", "redis-6.2")]
    assert len(matrix.cells(["3.13"], ["5"], [], all=True)) == len(servers.NAMES)


def test_the_options_choose(capsys):
    tried: list[tuple[Cell, list[str]]] = []

    def run(cell, options):
        tried.append((cell, options))
        return Outcome(PASSED, "1 s: 1 passed")

    options = ["--python", "3.11", "--redis", "8", "--server", "redis-8.2", "--", "-k", "leases"]
    assert matrix.main(options, run) == 0
    assert tried == [(Cell("3.11", "8", "redis-8.2"), ["-k", "leases"])]
    assert "Python 3.11, redis-py 8, redis-8.2: passed, 1 s: 1 passed" in capsys.readouterr().out
    for unknown in (["--server", "redis-1.0"], ["--python", "newest"]):
        with pytest.raises(SystemExit) as ended:
            matrix.main(unknown, run)
        assert ended.value.code == 2


# ---- interpreters


def python(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{f'echo {version}' if version else 'exit 127'}\n")
    path.chmod(0o755)
    return path


def test_an_interpreter_is_found_on_path(tmp_path):
    found = python(tmp_path / "bin" / "python3.99", "3.99.1")
    assert matrix.interpreter("3.99", {"PATH": str(found.parent), "HOME": str(tmp_path)}) == found


def test_a_shim_that_leads_nowhere_is_none_and_pyenv_has_the_newest(tmp_path):
    python(tmp_path / "bin" / "python3.99", "")
    for release in ("3.99.2", "3.99.10", "3.99.0rc1", "3.9.9"):
        python(tmp_path / ".pyenv" / "versions" / release / "bin" / "python", release)
    environ = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}
    newest = tmp_path / ".pyenv" / "versions" / "3.99.10" / "bin" / "python"
    assert matrix.interpreter("3.99", environ) == newest
    assert matrix.interpreter("3.99", environ | {"HOME": "/none", "PYENV_ROOT": str(tmp_path / ".pyenv")}) == newest


def test_this_interpreter_is_the_first_choice():
    assert matrix.interpreter(matrix.RUNNING, {"PATH": "/none", "HOME": "/none"}) == Path(sys.executable)


# ---- cells that stay empty


def test_a_cell_without_an_interpreter_is_empty():
    outcome = matrix.tried(Cell("3.0", "8", "embedded"), [])
    assert outcome == (EMPTY, "no interpreter: python3.0 is not on PATH, and pyenv has none")


def test_a_cell_whose_packages_cannot_be_installed_is_empty(tmp_path, monkeypatch):
    said = "WARNING: slow\nERROR: Could not find a version\nERROR: No matching distribution found for redis==9.*\nbye\n"
    pip = tmp_path / "python3.99"
    pip.write_text(f"#!/bin/sh\n[ $1 = -c ] && echo 3.99.1 && exit\ncat << EOF\n{said}EOF\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(matrix, "PLACE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    outcome = matrix.tried(Cell("3.99", "9", "embedded"), [])
    assert outcome == (EMPTY, "not installable: ERROR: No matching distribution found for redis==9.*")


def test_a_cell_without_its_server_is_empty(tmp_path, monkeypatch):
    def environment(version, client):
        return Path(sys.executable)

    monkeypatch.setattr(matrix, "environment", environment)
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = matrix.tried(Cell("3.11", "8", "redis-7.0"), [])
    assert outcome == (EMPTY, "no redis-server on PATH (Debian: apt install redis-server)")
    matrix.look_for("embedded", Path(sys.executable))


# ---- what is printed


def test_the_grid():
    def outcome(cell: Cell) -> Outcome:
        if cell.python == "3.14":
            return Outcome(EMPTY, "no interpreter")
        if cell.client == "5" and cell.server == "redis-6.2":
            return Outcome(EMPTY, "not installable")
        return Outcome(FAILED if cell.server == "valkey-8.1" else PASSED)

    asked = matrix.cells(["3.14", "3.9"], ["8", "5"], ["embedded", "redis-6.2"], all=False)
    asked.append(Cell("3.9", "8", "valkey-8.1"))
    outcomes = {cell: outcome(cell) for cell in asked}
    assert (
        "\n".join(matrix.grid(outcomes))
        == """
Python 3.9           8       5
embedded        passed  passed
redis-6.2       passed       -
valkey-8.1      FAILED

Python 3.14          8       5
embedded             -       -
redis-6.2            -       -

empty, Python 3.14: no interpreter
empty, Python 3.9, redis-py 5, redis-6.2: not installable"""
    )


def test_the_exit_code():
    passed, failed, empty = Outcome(PASSED), Outcome(FAILED), Outcome(EMPTY)
    assert matrix.exit_code([passed, empty]) == 0
    assert matrix.exit_code([passed, failed]) == 1
    assert matrix.exit_code([empty]) == 1, "nothing was tried"


def test_a_major_version_is_its_newest():
    assert matrix._pinned("5.0.2") == "redis==5.0.2"
    assert matrix._pinned("7") == "redis==7.*"


def test_the_core_is_there():
    assert all((matrix.ROOT / "tests" / part).exists() for part in matrix.CORE)
