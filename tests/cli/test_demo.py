"""`streams-queue demo`, played for real with few messages."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from streams_queue import ConfigurationError
from streams_queue.cli.demo import messages, plan, processes
from streams_queue.cli.demo.ledger import Reader
from streams_queue.cli.demo.view import Counts, Sample, Screen, WorkerLine

SECRET = "bot-secret-4711"


def start(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    tmp_path.mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "STREAMS_QUEUE_URL")}
    return subprocess.Popen(
        [sys.executable, "-c", "from streams_queue.cli import main; main()", "demo", *arguments],
        env=clean | {"TMPDIR": str(tmp_path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def own_messages(path: Path, count: int) -> Path:
    lines = [json.dumps({"message": f"Hi {n}", "user_id": n, "response_token": SECRET}) for n in range(count)]
    path.write_text("\n".join([*lines, lines[-1], "", ""]))
    return path


def check(process: subprocess.Popen[str], directory: Path, count: int) -> None:
    """The ledger adds up, by its own words and when read again; the course was the whole one; nothing leaked."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert err == ""
    for words in ("kill -9 of worker", "have taken over", "requeued by the documented script", "It adds up"):
        assert words in out
    (ledger,) = directory.glob("streams-queue-demo-*/ledger.jsonl")
    reader = Reader(ledger)
    reader.read()
    account = reader.account
    assert account.attempted == count
    assert len(account.killed) == 1
    assert len(account.finished) == 3  # processes
    assert account.failures.total() > 0
    assert set(account.accepted) == set(+account.done) | account.dead
    for text in (out, *(log.read_text() for log in ledger.parent.glob("worker-*.log"))):
        assert SECRET not in text


async def test_it_adds_up_on_any_server(server, redis, tmp_path):
    file = own_messages(tmp_path / "own.jsonl", 24)
    embedded = start(tmp_path / "embedded", "--input", str(file))
    given = start(tmp_path / "given", "--input", str(file), REDIS_URL=server.url)
    with embedded, given:
        try:
            check(given, tmp_path / "given", 25)
            check(embedded, tmp_path / "embedded", 25)
        finally:
            embedded.kill()
            given.kill()
    assert await redis.keys("*") == []  # its own prefix, and nothing of it left


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_leaves_nothing_behind(server, redis, tmp_path, number, background):
    """Also where a shell started it in the background, and so with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler)
    try:
        demo = start(tmp_path, REDIS_URL=server.url)
    finally:
        signal.signal(signal.SIGINT, before)
    with demo as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "kill -9 of worker" in line)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert await redis.keys("*") == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"message": "x"}\n{"user_id": "u"}', "line 2: Object missing required field `message`"),
        ('{"message": "x"}\n\n{oops}', "line 3: JSON is malformed"),
        ('{"message": 3}', "line 1: Expected `str`, got `int` - at `$.message`"),
        ('{"message": ""}', "line 1: Expected `str` of length >= 1 - at `$.message`"),
        ('{"message": "x", "user_id": []}', "line 1: Expected `int | str`, got `array` - at `$.user_id`"),
        ("[]", "line 1: Expected `object`, got `array`"),
        ('{"message": "\udcff"}', "line 1: "),
        ("\n \n", " holds no messages"),
    ],
)
def test_a_bad_line_is_named_before_anything_happens(tmp_path, text, error):
    file = tmp_path / "own.jsonl"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError) as raised:
        messages.read(file)
    assert str(raised.value).startswith(str(file))
    assert error in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "error"),
    [
        (["--input", "nowhere.jsonl"], {}, 2, "nowhere.jsonl"),
        (["--input", __file__], {}, 2, f"error: {__file__}, line 1: "),
        ([], {"REDIS_URL": "redis://:pass@127.0.0.1:1"}, 3, "error: redis://:***@127.0.0.1:1"),
        (
            [],
            {"REDIS_URL": "redis+cluster://127.0.0.1:1"},
            2,
            "error: redis+cluster://127.0.0.1:1: the demo runs a plain",
        ),
    ],
)
def test_what_cannot_be_played(tmp_path, arguments, environment, code, error):
    with start(tmp_path, *arguments, **environment) as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert error in err
    assert "pass@" not in err


def test_some_requests_fail_in_every_way():
    drawn = plan.draw(messages.made_up(300))
    assert [list(drawn.fates.values()).count(fate) for fate in plan.Fate] == [30, 8, 3]


def test_the_script_is_an_outsider():
    script = processes.requeue_script().read_text()
    assert "streams_queue" not in script
    assert "import redis" in script


def test_the_live_table_fits_a_small_terminal():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, height=24)
    workers = [WorkerLine(4194304, 4, 100000, killed) for killed in (False, True, False)]
    with Screen(console, "title") as screen:
        for n in range(20):
            screen.say(f"event {n} \x1b[2J " + "x" * 100)
        screen.show(Counts(100000, 12, 1000, 100, 100000), [Sample("no. 225000", 250000, "processing")] * 3, workers)
    last = output.getvalue().rpartition("title")[2].rstrip().splitlines()
    assert len(last) < 24
    assert any("event 19" in line for line in last)
    assert "\x1b[2J" not in output.getvalue()
    assert all(word in "".join(last) for word in ("waiting", "position", "rate", "250000", "kill -9"))
