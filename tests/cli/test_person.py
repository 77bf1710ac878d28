"""The command line as a person drives it: help, completion, questions, terminals of all widths, pipes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from rich.cells import cell_len

from helpers import queue_at, work
from streams_queue import Reject
from streams_queue.cli.app import app

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command, and the words that it is called by."""
    for name, below in getattr(command, "commands", {}).items():
        yield from leaves(below, (*words, name))
    if not hasattr(command, "commands"):
        yield words, command


ROOT = typer.main.get_command(app)
LEAVES = dict(leaves(ROOT))
GROUPS: list[tuple[str, ...]] = [(), ("dlq",)]
SHOWING = (
    ["stats"], ["peek"], ["position", "o1"], ["show", "o1"], ["show", "d1"], ["dlq", "list"], ["dlq", "show", "d1"],
    ["dlq", "requeue", "--all", "--dry-run"], ["verify"], ["doctor"], ["doctor", "--acl", "worker", "--user", "u"],
    ["dlq", "requeue", "d1", "--dry-run"],
)  # fmt: skip
"""Commands that show something, none of which changes anything."""


@pytest.fixture
async def queue(server, prefix):
    """One message waits, and one is a dead letter; their texts are long, and wide."""
    async with queue_at(server, prefix) as queue:

        async def handle(message):
            raise Reject("名前 " * 60)

        await queue.enqueue({"long": "y" * 300}, id="d1")
        await work(queue, handle)
        await queue.enqueue({"wide": "名前" * 100}, id="o1")
        yield queue


# ---- help


@pytest.mark.parametrize("words", [*GROUPS, *LEAVES], ids=" ".join)
def test_help_has_examples_and_exit_codes_and_fits(run, words):
    code, out, err = run(*words, "--help", COLUMNS="80")
    assert (code, err) == (0, "")
    assert re.search(r"^ *Examples?:\n +\S", out, re.MULTILINE)
    assert "Exit codes:" in out or words in GROUPS
    assert max(map(len, out.splitlines())) <= 80
    assert run(*words, "-h", COLUMNS="80").out == out


def examples() -> list[str]:
    """Every line of every help that is to be typed."""
    texts = [command.epilog or "" for command in (*LEAVES.values(), ROOT, ROOT.commands["dlq"])]  # type: ignore[attr-defined]
    return re.findall(r"^ {2,4}((?:\w+=\S+ )?streams-queue .*)$", "\n".join(texts), re.MULTILINE)


@pytest.mark.parametrize("line", examples())
def test_what_help_has_one_type_is_understood(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.jsonl").touch()
    command, *_ = re.split(r" [|<] ", line)
    words = shlex.split(command)
    words = words[words.index("streams-queue") + 1 :]
    found, context = ROOT, typer.Context(ROOT, info_name="streams-queue")
    while hasattr(found, "commands"):
        found = found.commands[words.pop(0)]
    found.make_context(found.name, words, parent=context)


# ---- completion


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("streams-queue d", {"demo", "dlq", "doctor", "dashboard"}),
        ("streams-queue dlq ", {"list", "show", "requeue", "delete"}),
        ("streams-queue dlq list --rea", {"--reason"}),
        ("streams-queue dlq list --reason t", {"timeout"}),
        ("streams-queue doctor --acl ", {"producer", "worker", "maintainer", "viewer"}),
        ("streams-queue enqueue x --priority ", {"high", "normal", "low"}),
    ],
)
def test_completion(run, typed, offered):
    words = typed.split(" ")
    answer = run(_STREAMS_QUEUE_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1))
    assert set(answer.out.split()) >= offered
    assert all(word.startswith(words[-1]) for word in answer.out.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_is_told_how_to_complete(run, shell):
    script = run(_STREAMS_QUEUE_COMPLETE=f"source_{shell}").out
    assert "streams-queue" in script and f"complete_{shell}" in script


# ---- questions


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (["remove", "o1"], "\x04"),
        (["dlq", "delete", "d1"], "\x03"),
        (["dlq", "delete", "--all"], "n\r"),
        (["dlq", "delete", "--all"], "what?\r\r"),
    ],
    ids=["^D", "^C", "no", "other"],
)
@pytest.mark.usefixtures("queue")
async def test_what_is_not_a_yes_is_a_no(terminal, queue, command, keys):
    asking = terminal(*command)
    asking.wait_for_question("[y/N]")
    asking.press(keys)
    answer = asking.end()
    assert answer.code == 1
    assert "Traceback" not in answer.out
    assert (await queue.stats()).dead == 1 and await queue.position("o1") == 1


async def test_a_yes_is_a_yes(terminal, queue):
    asking = terminal("dlq", "delete", "d1")
    asking.wait_for_question("Really delete 1 dead letter")
    asking.press("Y\r")
    assert asking.end().code == 0
    assert (await queue.stats()).dead == 0


# ---- terminals and pipes


@pytest.mark.parametrize("command", SHOWING, ids=" ".join)
@pytest.mark.usefixtures("queue")
async def test_a_terminal_of_60_columns(terminal, command):
    answer = terminal(*command, columns=60).end()
    lines = ESCAPES.sub("", answer.out).replace("\r", "\n").split("\n")
    assert answer.code in {0, 1, 4}
    assert len(lines) > 1
    # What is to be pasted is one line, however long: a terminal wraps it, and copies it whole. `verify` writes prose.
    assert {"--acl", "verify"} & {*command} or max(cell_len(line) for line in lines) <= 60, lines


@pytest.mark.parametrize("command", SHOWING, ids=" ".join)
@pytest.mark.usefixtures("queue")
async def test_a_pipe_gets_text_alone(run, command):
    assert "\x1b" not in run(*command).out


@pytest.mark.parametrize("command", [["show", "o1"], ["dlq", "list"], ["doctor"], ["stats"]], ids=" ".join)
@pytest.mark.usefixtures("queue")
async def test_no_color(terminal, command):
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", terminal(*command, NO_COLOR="1").end().out)


async def test_a_terminal_that_is_resized(terminal, queue):
    view = terminal("stats", "--watch", "0.1", columns=100)
    view.wait_for("total_messages")
    view.resize(30)
    for _ in range(3):  # one picture may have been under way
        view.wait_for("total_messages")
    before = len(view.shown)
    for _ in range(2):
        view.wait_for("total_messages")
    view.press("\x03")
    assert view.end().code == 0
    lines = ESCAPES.sub("", view.shown[before:]).replace("\r", "\n").split("\n")
    assert max(cell_len(line) for line in lines) <= 30, lines


async def test_a_reader_that_has_seen_enough(start, queue):
    process = start("peek", "--limit", "1", "--json")
    process.stdout.close()
    assert process.wait(20) in {0, 1}
    assert "Traceback" not in process.stderr.read()
