"""`streams-queue worker --processes N`: real processes, killed for real."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import canary
from cli.conftest import PROGRAM, environment
from helpers import queue_at
from servers import wait_until
from streams_queue import Queue
from streams_queue.cli.line import MARGIN

JOBS = """
import asyncio, os, pathlib, signal, sys, threading, time
from streams_queue import Queue, Worker

here = pathlib.Path(__file__).parent
if (here / "misconfigured").exists():
    Queue("a b")
if (here / "dead at the start").exists():
    os._exit(7)
if (here / "killed at the start").exists():
    os.kill(os.getpid(), signal.SIGKILL)

worker = Worker(Queue(os.environ["STREAMS_QUEUE_PREFIX"]), concurrency=1, lease=1.0, grace=float(os.environ["GRACE"]),
                poll_interval=0.2, retry_delay=0.1)

def crash():
    while not worker.ready:
        time.sleep(0.01)
    time.sleep(0.1)
    os._exit(7)

if (here / "crash").exists():
    threading.Thread(target=crash, daemon=True).start()

@worker.handler
async def handle(message):
    with open(here / "started", "a") as started:
        started.write(f"{message.id} {os.getpid()}\\n")
    match message.data.get("do"):
        case "wait":
            while not (here / "open").exists():
                await asyncio.sleep(0.01)
        case "block":
            time.sleep(60)
        case "sleep":
            await asyncio.sleep(0.05)
"""


class Fleet:
    """A supervisor, its log, and what its processes wrote down."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.log = ""
        self._folder = folder
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as lines:
            for line in lines:
                self.log += line

    def says(self, words: str, count: int = 1) -> None:
        """Wait until the log has it so many times."""
        wait_until(lambda: self.log.count(words) >= count, 20, f"{words!r}, {count} times, in\n{self.log}\n")

    @property
    def pids(self) -> dict[int, int]:
        """The newest process of each number."""
        return {int(n): int(pid) for n, pid in re.findall(r"process (\d) \(pid (\d+)\) is at work", self.log)}

    def holds(self, count: int) -> list[tuple[str, int]]:
        """Wait until so many handlers were started: the message and the process of each."""
        path = self._folder / "started"
        wait_until(lambda: path.exists() and path.read_text().count("\n") >= count, what=f"{count} handlers started")
        lines = [line.split() for line in path.read_text().splitlines()]
        return [(id, int(pid)) for id, pid in lines]

    def end(self, seconds: float = 20) -> int:
        code = self.process.wait(seconds)
        self._reader.join(20)
        canary.check(self.log)
        return code


Start = Callable[..., Fleet]


@pytest.fixture
def start(server, prefix, tmp_path) -> Iterator[Start]:
    """Starts `streams-queue worker` with so many processes; at the end nothing of it is left."""
    (tmp_path / "jobs.py").write_text(JOBS)
    with contextlib.ExitStack() as stack:

        def start(processes: int, *arguments: str, grace: float = 20.0, **more: str) -> Fleet:
            process = subprocess.Popen(
                [*PROGRAM, "worker", "jobs:worker", "--processes", str(processes), *arguments],
                cwd=tmp_path, env=environment(server, prefix, GRACE=str(grace), **more),
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
            fleet = Fleet(process, tmp_path)
            stack.callback(fleet.end)
            stack.callback(_kill_session, process)
            return fleet

        yield start


def _kill_session(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
async def queue(server, prefix):
    async with queue_at(server, prefix) as queue:
        yield queue


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return is_in_state(pid, "Z")  # its parent was killed, and nobody waits for it


def is_in_state(pid: int, letter: str, unknown: bool = False) -> bool:
    """As the kernel has it; `unknown` where it does not tell."""
    stat = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(OSError):
        return stat.read_text().rpartition(") ")[2].startswith(letter)
    return unknown


async def states(queue: Queue[Any], ids: list[str]) -> list[tuple[str, int]]:
    messages = [await queue.get(id) for id in ids]
    return [(message.status, message.attempts) for message in messages if message is not None]


# ---- what dies is started again


async def test_a_process_that_is_killed_has_a_successor_and_nothing_is_lost(start: Start, queue, tmp_path):
    fleet = start(2)
    receipts = await queue.enqueue_many([{"do": "wait"}, {"do": "wait"}])
    held = dict(fleet.holds(2))
    fleet.says("is at work", 2)
    assert set(held.values()) == set(fleet.pids.values()), "each holds one"
    victim = fleet.pids[2]
    os.kill(victim, signal.SIGKILL)
    fleet.says(f"process 2 (pid {victim}) was killed by SIGKILL after ")
    fleet.says(": another starts in 0.5 s")
    fleet.says("is at work", 3)
    assert fleet.pids[2] != victim
    (tmp_path / "open").touch()
    for receipt in receipts:
        await queue.result(receipt.id, timeout=10)
    runs = [pid for _, pid in fleet.holds(3)]
    assert runs.count(victim) == 1 and len(runs) == 3, "only what the dead one held ran twice"
    fleet.process.terminate()
    assert fleet.end() == 0


async def test_one_that_dies_again_and_again_waits_longer_each_time(start: Start, tmp_path):
    fleet = start(1)
    fleet.says("is at work")
    (tmp_path / "crash").touch()
    os.kill(fleet.pids[1], signal.SIGKILL)
    for words in (
        "was killed by SIGKILL after", "ended with exit code 7 after", "s, death 2 in a row: another starts in 1 s",
        "s, death 3 in a row: another starts in 2 s",
    ):  # fmt: skip
        fleet.says(words)
    began = time.monotonic()
    fleet.process.terminate()
    assert fleet.end() == 0
    assert time.monotonic() - began < 1.5, "a signal ends the wait"


async def test_one_that_was_told_to_end_has_a_successor_too(start: Start, queue):
    """So all can be renewed one by one, as after a new version was installed."""
    fleet = start(1)
    fleet.says("is at work")
    os.kill(fleet.pids[1], signal.SIGTERM)
    fleet.says("ended with exit code 0")
    fleet.says("is at work", 2)
    fleet.process.terminate()
    assert fleet.end() == 0


# ---- what no restart mends


@pytest.mark.parametrize(
    ("url", "file", "code", "words"),
    [
        (None, "misconfigured", 2, "error: module jobs: queue prefix 'a b'"),
        (None, "dead at the start", 7, r"process 1 \(pid \d+\) ended with exit code 7 before it was at work"),
        (None, "killed at the start", 1, r"process 1 \(pid \d+\) was killed by SIGKILL before it was at work"),
        ("redis://127.0.0.1:1", "", 3, "error: redis://127.0.0.1:1: "),
        ("embedded://", "", 2, "error: embedded:// is a server of one process alone, so several cannot share"),
    ],
)
def test_what_fails_for_all_is_met_once(start: Start, tmp_path, url, file, code, words):
    if file:
        (tmp_path / file).touch()
    fleet = start(3, **({"STREAMS_QUEUE_URL": url} if url else {}))
    assert fleet.end() == code
    assert re.search(words, fleet.log)
    assert fleet.log.count("\n") == 1


async def test_a_configuration_that_was_broken_meanwhile(start: Start, tmp_path):
    fleet = start(2)
    fleet.says("is at work", 2)
    (tmp_path / "misconfigured").touch()
    os.kill(fleet.pids[1], signal.SIGKILL)
    fleet.says("ended with exit code 2", 2)
    assert fleet.process.poll() is None, "the other one works"
    os.kill(fleet.pids[2], signal.SIGKILL)
    assert fleet.end() == 2
    assert "all processes end with exit code 2: no other is started" in fleet.log


def test_a_number_of_processes_that_is_none(start: Start):
    assert start(0).end() == 2


# ---- the end


@pytest.mark.parametrize("whole", [False, True], ids=["the supervisor alone", "every process, as systemd does"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_lets_all_finish(start: Start, queue, tmp_path, whole, number):
    fleet = start(2)
    receipts = await queue.enqueue_many([{"do": "wait"}] * 3)
    fleet.holds(2)
    fleet.says("is at work", 2)
    (os.killpg if whole else os.kill)(fleet.process.pid, number)
    fleet.says(f"{number.name}: stopping all processes")
    with pytest.raises(subprocess.TimeoutExpired):
        fleet.process.wait(0.3)
    (tmp_path / "open").touch()
    assert fleet.end() == 0
    done = [receipt.id for receipt in receipts if await queue.get(receipt.id) is None]
    assert len(done) == 2
    assert (await queue.stats()).counters["completed_messages"] == 2
    assert all(is_gone(pid) for pid in fleet.pids.values())


async def test_a_second_signal_hands_back_now(start: Start, queue):
    fleet = start(2)
    ids = [receipt.id for receipt in await queue.enqueue_many([{"do": "wait"}] * 2)]
    fleet.holds(2)
    fleet.process.send_signal(signal.SIGTERM)
    fleet.says("stopping all processes")
    fleet.process.send_signal(signal.SIGTERM)
    assert fleet.end(MARGIN) == 0
    assert await states(queue, ids) == [("queued", 0)] * 2


async def test_a_process_that_does_not_end_is_killed(start: Start, queue):
    fleet = start(2, grace=0.2)
    await queue.enqueue_many([{"do": "block"}])
    fleet.holds(1)
    fleet.says("is at work", 2)
    began = time.monotonic()
    fleet.process.terminate()
    assert fleet.end() == 1
    assert 0.2 + MARGIN <= time.monotonic() - began < 0.2 + MARGIN + 2
    assert fleet.log.count("does not end: it is killed") == 1


async def test_processes_do_not_outlive_their_supervisor(start: Start, queue):
    """Killed with -9 it cannot tell them: one hands back, the other cannot, since its event loop is blocked."""
    fleet = start(2, grace=0.3)
    (held,) = await queue.enqueue_many([{"do": "wait"}])
    fleet.holds(1)
    await queue.enqueue_many([{"do": "block"}])
    runs = dict(fleet.holds(2))
    fleet.says("is at work", 2)
    began = time.monotonic()
    fleet.process.kill()
    wait_until(lambda: is_gone(runs[held.id]), 3, "the process that hands back ending")
    assert await states(queue, [held.id]) == [("queued", 0)]
    wait_until(lambda: all(map(is_gone, fleet.pids.values())), MARGIN + 3, "both ending")
    assert time.monotonic() - began < 0.3 + MARGIN + 2


async def test_a_process_that_starts_does_not_outlive_its_supervisor(start: Start, tmp_path):
    (tmp_path / "jobs.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    fleet = start(1)
    path = tmp_path / "pid"
    wait_until(lambda: path.exists() and path.read_text(), what="the module imported")
    fleet.process.kill()
    wait_until(lambda: is_gone(int(path.read_text())), 3, "the process ending")


async def test_a_process_that_ends_before_it_hears_its_order(start: Start, tmp_path):
    (tmp_path / "jobs.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    fleet = start(1)
    path = tmp_path / "pid"
    wait_until(lambda: path.exists() and path.read_text(), what="the module imported")
    pid = int(path.read_text())
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_in_state(pid, "T", unknown=True), what="the process stopped")
    fleet.process.terminate()
    fleet.says("SIGTERM: stopping all processes")
    os.kill(pid, signal.SIGKILL)
    assert fleet.end() == 0, fleet.log
    assert "Traceback" not in fleet.log


async def test_burst_ends_when_all_is_done(start: Start, queue):
    receipts = await queue.enqueue_many([{"do": "sleep"} for _ in range(60)])
    fleet = start(2, "--burst")
    assert fleet.end() == 0, fleet.log
    runs = fleet.holds(60)
    assert sorted(id for id, _ in runs) == sorted(receipt.id for receipt in receipts)
    assert len({pid for _, pid in runs}) == 2
    assert await queue.length() == 0


async def test_a_process_that_dies_in_a_burst_has_a_successor(start: Start, queue, tmp_path):
    held, _ = await queue.enqueue_many([{"do": "wait"}, {}])
    fleet = start(1, "--burst")
    fleet.says("is at work")
    ((_, victim),) = fleet.holds(1)
    os.kill(victim, signal.SIGKILL)
    fleet.says("another starts in 0.5 s")
    (tmp_path / "open").touch()
    assert fleet.end() == 0, fleet.log
    assert await queue.length() == (await queue.get(held.id) is not None), (
        "at most what is still leased to the dead one"
    )


# ---- what is seen from outside


def fetched(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def served_at(fleet: Fleet) -> str:
    fleet.says("health and metrics of all processes: http://")
    address = re.search(r"all processes: (http://\S+)\n", fleet.log)
    assert address
    return address[1]


def samples(text: str, name: str) -> dict[str, float]:
    """The value of each process."""
    return {
        sample.labels["process"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def test_one_port_shows_all_processes(start: Start, queue, prefix, tmp_path):
    fleet = start(2, "--metrics-port", "0")
    url = served_at(fleet)
    fleet.says("is at work", 2)
    await queue.enqueue_many([{"do": "wait"}, {"do": "wait"}, {}])
    fleet.holds(2)
    status, text = fetched(f"{url}/metrics")
    assert status == 200
    assert f'streams_queue_worker_messages_started_total{{process="1",queue="{prefix}"}} 1.0' in text
    assert samples(text, "streams_queue_worker_slots_busy") == {"1": 1.0, "2": 1.0}
    assert samples(text, "streams_queue_worker_process_up") == {"1": 1.0, "2": 1.0}
    assert samples(text, "streams_queue_worker_process_restarts_total") == {"1": 0.0, "2": 0.0}
    assert set(samples(text, "process_cpu_seconds_total")) == {"1", "2"}, "the application's own metrics are there, too"
    assert text.count("# TYPE streams_queue_worker_slots ") == 1
    assert json.loads(fetched(f"{url}/live")[1]) == {"live": True, "processes": {"1": True, "2": True}}
    assert fetched(f"{url}/ready")[0] == 200
    load = json.loads(fetched(f"{url}/load")[1])
    assert (load["queue"], load["waiting"], load["slots"], load["busy"], load["saturation"]) == (prefix, 1, 2, 2, 1.0)

    os.kill(fleet.pids[2], signal.SIGKILL)
    fleet.says("another starts")
    assert json.loads(fetched(f"{url}/ready")[1]) == {"ready": False, "processes": {"1": True, "2": False}}
    status, text = fetched(f"{url}/metrics")
    assert (status, samples(text, "streams_queue_worker_process_up")) == (200, {"1": 1.0, "2": 0.0})
    assert set(samples(text, "streams_queue_worker_slots")) == {"1"}
    assert json.loads(fetched(f"{url}/live")[1]) == {"live": True, "processes": {"1": True}}
    fleet.says("is at work", 3)
    text = fetched(f"{url}/metrics")[1]
    assert samples(text, "streams_queue_worker_process_restarts_total") == {"1": 0.0, "2": 1.0}

    (tmp_path / "open").touch()
    fleet.process.terminate()
    assert fleet.end() == 0


async def test_one_blocked_event_loop_is_not_live(start: Start, queue):
    fleet = start(2, "--metrics-port", "0", grace=0.1)
    url = served_at(fleet)
    fleet.says("is at work", 2)
    await queue.enqueue({"do": "block"})
    ((_, blocked),) = fleet.holds(1)
    wait_until(lambda: fetched(f"{url}/live")[0] == 503, what="not live after a lease of 1 s")
    number = next(str(number) for number, pid in fleet.pids.items() if pid == blocked)
    live = json.loads(fetched(f"{url}/live")[1])
    assert [name for name, value in live["processes"].items() if not value] == [number]
    _, text = fetched(f"{url}/metrics")
    assert samples(text, "streams_queue_worker_process_up") == {"1": 1.0, "2": 1.0}


async def test_a_port_in_use_starts_nothing(start: Start):
    fleet = start(1, "--metrics-port", "70000")
    assert fleet.end() == 2
    assert fleet.log == "error: port 70000 is not from 0 to 65535\n"


async def test_every_line_names_its_process(start: Start, queue, prefix):
    await queue.enqueue_many([{"do": "sleep"}] * 40)
    fleet = start(2, "--burst", "--log-level", "debug")
    assert fleet.end() == 0
    assert set(re.findall(r"DEBUG   \[(\d)\] streams_queue\.messages: message \S+ started", fleet.log)) == {"1", "2"}
    await queue.enqueue_many([{"do": "sleep"}] * 40)
    fleet = start(2, "--burst", "--log-level", "debug", "--log-format", "json")
    assert fleet.end() == 0
    records = [json.loads(line) for line in fleet.log.splitlines()]
    started = [record for record in records if record.get("outcome") == "started"]
    assert {record["process"] for record in started} == {1, 2}
    assert all(record["queue"] == prefix for record in started)
    own = [record for record in records if record["logger"].startswith("streams_queue.cli.")]
    assert own and all("process" not in record for record in own)
