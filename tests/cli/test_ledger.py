"""Whether the demo's ledger adds up: ledgers written by hand, with what each must be told."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import typer

from streams_queue.cli.demo import command
from streams_queue.cli.demo.ledger import Account, Event, Ledger, Reader, Record, Verdict, verdict

Line = tuple[Event, str]


def sent(*ids: str) -> list[Line]:
    return [line for id in ids for line in (("attempted", ""), ("accepted", id))]


def ran(id: str, how: Event = "done") -> list[Line]:
    return [("started", id), (how, id)]


def told(id: str, status: str = "completed") -> list[Line]:
    return [("reported", f"{id} {status}")]


def judged(*parts: Iterable[Line], concurrency: int = 2) -> Verdict:
    account = Account()
    for part in parts:
        for event, words in part:
            id, _, status = words.partition(" ")
            account.add(Record(event=event, id=id, status=status, pid=1))
    return verdict(account, concurrency)


GOOD = [*sent("a", "b"), *ran("a"), *told("a"), *ran("b", "failed"), *ran("b"), *told("b", "retry"), *told("b")]
KILLED: list[Line] = [("started", "a"), ("killed", "")]


def test_everything_completed():
    found = judged(GOOD)
    assert (found.accepted, found.completed, found.dead, found.lost, found.duplicates) == (2, 2, 0, 0, 0)
    assert found.faults == []


def test_a_dead_letter_counts_as_accounted_for():
    found = judged(sent("a"), ran("a", "failed"), told("a", "error"), [("dead", "a")])
    assert (found.completed, found.dead, found.faults) == (0, 1, [])


def test_a_requeued_dead_letter_that_completes_is_told_once():
    assert judged(sent("a"), ran("a", "failed"), told("a", "error"), ran("a")).faults == []


def test_the_same_request_again_joins_the_waiting_one():
    found = judged(sent("a", "a"), ran("a"), told("a"))
    assert (found.accepted, found.joined, found.faults) == (1, 1, [])


def test_what_a_killed_worker_held_may_run_again():
    found = judged(sent("a"), KILLED, ran("a"), told("a"))
    assert (found.duplicates, found.allowed, found.faults) == (1, 2, [])


def test_a_worker_killed_between_the_work_and_its_report():
    found = judged(sent("a"), ran("a"), [("killed", "")], ran("a"), told("a"))
    assert (found.duplicates, found.faults) == (1, [])


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (sent("c"), "1 accepted, but neither completed nor dead"),
        ([*sent("c"), *ran("c", "failed"), *told("c", "error")], "1 accepted, but neither completed nor dead"),
        ([("attempted", "")], "1 attempted, but not accepted"),
        ([("dead", "a")], "1 both completed and dead"),
        (ran("x"), "1 run, but never accepted"),
        ([*sent("c"), *ran("c"), *told("c", "retry")], "1 without a final status callback"),
        ([*sent("c"), *told("c"), ("dead", "c")], "1 reported as completed without a run that was"),
        (ran("a"), "1 run again without a reason"),
        ([*KILLED, *ran("a"), *ran("b"), *ran("b")], "2 run again without a reason"),
    ],
)
def test_what_does_not_add_up(lines, fault):
    found = judged(GOOD, lines)
    assert fault in found.faults, found


def test_a_half_written_line_is_left_for_later(tmp_path: Path):
    path = tmp_path / "ledger"
    ledger, reader = Ledger(path), Reader(path)
    ledger.write("accepted", id="a")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:5])
    assert reader.read()
    assert not reader.read()
    path.write_bytes(whole + whole)
    assert reader.read()
    assert reader.account.accepted == {"a": 2}


def test_runs_are_recorded_with_their_outcome(tmp_path: Path):
    ledger, reader = Ledger(tmp_path / "ledger"), Reader(tmp_path / "ledger")
    with ledger.run("a", "1"):
        reader.read()
        assert list(reader.account.running.values()) == [["a"]]
    with pytest.raises(ValueError, match="x"), ledger.run("b", "1"):
        raise ValueError("x")
    reader.read()
    assert (+reader.account.done, +reader.account.failures) == ({"a": 1}, {"b": 1})
    assert not any(reader.account.running.values())


@pytest.mark.parametrize(("lines", "code"), [(GOOD, 0), ([*GOOD, *sent("c")], 1)])
def test_the_exit_status_says_whether_it_adds_up(monkeypatch, capsys, lines, code):
    async def play(*_: object) -> tuple[Verdict, Path]:
        return judged(lines), Path("ledger")

    monkeypatch.setattr(command, "play", play)
    try:
        command.run(None)
        found = 0
    except typer.Exit as exit:
        found = exit.exit_code
    assert found == code
    assert ("It does not add up: 1 accepted, but neither" in capsys.readouterr().out) is bool(code)
