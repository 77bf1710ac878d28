"""The guide to moving in, followed word for word, by processes of their own.

An application with a package ``bot_logic`` of its own, in an environment of its own, has an old queue: messages in
line, retries, dead letters, work left unfinished, ids without a body. It is moved over while one of its old producers
goes on; everything is worked on, dead letters are requeued, and then it goes back. A ledger outside Redis counts.

``python -m migrations.rehearsal 100000`` (in ``tests/``, or ``make rehearsal``) prints how long each step took.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import servers
from compat import old_programs
from docs.pages import ROOT, blocks
from installed import python_with, wheel_in
from migrations.old_state import OldState
from servers import wait_until

PREFIX = "chat_api"
WORKERS = 2

OLD_CHAT = """
import os
import redis.asyncio as redis
from bot_logic.services.redis_queue_manager import OldProducer

client = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)

async def enqueue_chat_request(
    user_id, message, source_type, source_id, response_token, chat_id, chat_type, message_id, status_callback=None
):
    return await OldProducer(client, "chat_api").enqueue({
        "user_id": user_id, "message": message, "source_type": source_type, "source_id": source_id,
        "response_token": response_token, "chat_id": chat_id, "chat_type": chat_type, "message_id": message_id,
    })
"""

API = """
import os

ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

async def send_chat_message(text):
    os.write(ledger, text.encode() + b"\\n")
    return True, f"an answer to {text}", None
"""

PRODUCER = """
import asyncio, signal, sys
from bot_logic.services.chat_api_queue import enqueue_chat_request

async def main(name, pause):
    number, stop = 0, asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)  # not in the middle of an enqueue
    while not stop.is_set():
        text = f"{name} {number}"
        if await enqueue_chat_request(
            f"u{number % 500}", text, "telegram", "-100", "123:secret", "5", "private", "77"
        ):
            print(text, flush=True)
        number += 1
        await asyncio.sleep(pause)

asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""

WORKER = """
import asyncio, signal
from bot_logic.services.chat_api_queue import start_queue_processor, stop_queue_processor

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await start_queue_processor()
    await stop.wait()
    await stop_queue_processor()

asyncio.run(main())
"""

NOTHING = "async def {}(*words):\n    pass\n"


class Figures(NamedTuple):
    """What a rehearsal counted, and the seconds that its steps took."""

    accepted: int
    ran: int
    lost: list[str]
    doubled: list[str]
    moved: dict[str, Any]
    seconds: dict[str, float]
    clean: bool
    back: int
    """Messages that the old code worked on after going back."""
    back_lost: int


class Application:
    """The application: its folder, its interpreter, and the server that it uses."""

    def __init__(self, folder: Path, python: Path, server: servers.AnyServer) -> None:
        self.folder = folder
        self.ledger = folder / "ledger"
        self._python = python
        bare = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "REDIS_", "STREAMS_"))
        }
        self._environ = {
            **bare, "REDIS_URL": server.url, "LEDGER": str(self.ledger), "CHAT_API_CONCURRENCY": "32",
        }  # fmt: skip
        self._write("bot_logic/__init__.py", "")
        self._write("bot_logic/services/__init__.py", "")
        self._write("bot_logic/services/redis_queue_manager.py", Path(old_programs.__file__).read_text())
        self._write("bot_logic/services/chat_api_queue.py", OLD_CHAT)
        self._write("bot_logic/services/api_service.py", API)
        self._write("bot_logic/services/reaction_service.py", NOTHING.format("update_to_completed_reaction"))
        self._write("bot_logic/services/response_service.py", NOTHING.format("send_response"))
        self._write("producer.py", PRODUCER)
        self._write("worker.py", WORKER)

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def replace_its_modules(self) -> None:
        """As the guide has them."""
        for block in blocks(ROOT / "docs" / "migrating.md"):
            if block.file and block.file.startswith("bot_logic/"):
                self._write(block.file, block.text)

    def run(self, *arguments: str) -> str:
        """Run a command of the environment to its end: what it prints."""
        done = subprocess.run(
            [self._python, *arguments], cwd=self.folder, env=self._environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def command(self, *arguments: str) -> str:
        """Run ``streams-queue``."""
        return self.run(str(self._python.parent / "streams-queue"), *arguments)

    @contextmanager
    def running(self, script: str, *arguments: str) -> Iterator[Path]:
        """A program of the application while it lasts: the file with what it prints. Ended by SIGTERM."""
        out = self.folder / f"{script}-{'-'.join(arguments)}-{time.monotonic_ns()}.out"
        with out.open("wb") as file, out.with_suffix(".err").open("wb") as errors:
            process = subprocess.Popen(
                [self._python, f"{script}.py", *arguments],
                cwd=self.folder,
                env=self._environ,
                stdout=file,
                stderr=errors,
            )
            try:
                yield out
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(30)

    def ran(self) -> Counter[str]:
        return Counter(self.ledger.read_text().splitlines()) if self.ledger.exists() else Counter()


def rehearse(application: Application, server: servers.AnyServer, size: int, say: Callable[[str], None]) -> Figures:
    """Follow the guide with `size` messages."""
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        seconds[name] = time.monotonic() - began
        say(f"{name}: {seconds[name]:.1f} s")

    with server.sync_client(decode_responses=False) as client:
        with step("old messages written"):
            accepted, dead = _old_messages(client, size)
        with application.running("producer", "during", "0.02") as produced:
            wait_until(lambda: produced.read_text().count("\n") > 20, 20, "the old producer at work")
            with step("dry run"):
                planned = json.loads(application.command("migrate", "--prefix", PREFIX, "--dry-run", "--json"))
            assert planned[0]["findings"] == [], planned[0]["findings"]
            with step("migrated and verified"):
                (moved,) = json.loads(application.command("migrate", "--prefix", PREFIX, "--json"))
            application.replace_its_modules()
            with step("worked on"), _workers(application):
                _drained(client, seconds=60 + size / 200, but=100)
                time.sleep(2)  # the old producer goes on beside the new workers
        accepted |= set(produced.read_text().splitlines())
        with _workers(application):
            _drained(client, seconds=60)
            with step("dead letters requeued"):
                application.run(str(ROOT / "docs" / "examples" / "requeue_dead_letters.py"))
                _drained(client, seconds=60 + dead / 200)
            clean = json.loads(application.command("verify", "--prefix", PREFIX, "--json"))["well"]
        ran = application.ran()
        with step("gone back and worked on by the old code"):
            back, back_lost = _going_back(application, server, client)
    return Figures(
        accepted=len(accepted), ran=ran.total(),
        lost=sorted(accepted - set(ran)), doubled=sorted(text for text, times in ran.items() if times > 1),
        moved=moved, seconds=seconds, clean=clean, back=back, back_lost=back_lost,
    )  # fmt: skip


def _old_messages(client: Any, size: int) -> tuple[set[str], int]:
    """Messages in line, a hundredth of them retries and as many dead letters: their texts, and how many are dead."""
    state, now, texts = OldState(client, PREFIX), time.time(), set[str]()
    share = size // 100
    for number in range(size):
        text, id, user = f"old {number}", f"old-{number}", f"u{number % 500}"
        texts.add(text)
        if number < share:
            state.dead(id, chat=(user, text))
        elif number < 2 * share:
            state.retrying(id, now + number % 10, chat=(user, text))
        elif number < 2 * share + 5:
            state.left_in_work(id, now - size / 1000 + number / 1000, chat=(user, text))
        else:
            state.queued(id, now - size / 1000 + number / 1000, chat=(user, text))
    for name in ("main", "retry", "dlq"):
        state.place(name, f"no-body-{name}", now - 7200)
    state.flush()
    return texts, share


@contextmanager
def _workers(application: Application) -> Iterator[None]:
    with application.running("worker", "1"), application.running("worker", "2"):
        yield


def _drained(client: Any, *, seconds: float, but: int = 0) -> None:
    keys = [f"{PREFIX}:queue:{name}" for name in ("main", "retry")]
    wait_until(lambda: sum(client.zcard(key) for key in keys) <= but, seconds, "everything worked on")


def _going_back(application: Application, server: servers.AnyServer, client: Any) -> tuple[int, int]:
    """New producers enqueue, the queue is rolled back, the old code works it off: messages, and how many it missed."""
    with application.running("producer", "back", "0") as produced:
        wait_until(lambda: produced.read_text().count("\n") > 50, 20, "the new producer at work")
    accepted = set(produced.read_text().splitlines())
    application.command("migrate", "--prefix", PREFIX, "--rollback", "--yes")
    bodies = {
        id: client.hget(f"{PREFIX}:msg:{id.decode()}", "message") for id in client.zrange(f"{PREFIX}:queue:main", 0, -1)
    }

    async def work() -> list[str]:
        async with server.client() as old_client:
            worker, done = old_programs.OldWorker(old_client, PREFIX), list[str]()
            while id := await worker.work():
                done.append(bodies[id.encode()].decode())
            return done

    done = Counter(asyncio.run(work()))
    return len(accepted), len(accepted - set(done)) + sum(times - 1 for times in done.values())


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as directory:
        folder = Path(directory)
        server = servers.start(servers.DEFAULT, folder / "server")
        try:
            python = python_with(wheel_in(folder), folder / "environment")
            application = Application(folder / "application", python, server)
            figures = rehearse(application, server, size, print)
        finally:
            server.stop()
    print(
        f"accepted {figures.accepted:,}, ran {figures.ran:,}, lost {len(figures.lost)}, doubled {len(figures.doubled)}"
    )
    print(
        f"moved in {figures.moved['entered']:,} in {figures.moved['seconds']:.1f} s; verify is "
        f"{'clean' if figures.clean else 'NOT clean'}"
    )
    print(f"gone back: {figures.back} messages, {figures.back_lost} lost or doubled")
    sys.exit(bool(figures.lost or figures.doubled or figures.back_lost or not figures.clean))


if __name__ == "__main__":
    main()
