"""The wheel, not the checkout: installed in an environment of its own, it works."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from installed import ROOT, python_with, wheel_in

WORK = """
import asyncio, sys
import streams_queue
from streams_queue import Queue, Worker

assert not streams_queue.__file__.startswith(sys.argv[3]), streams_queue.__file__

async def main():
    async with Queue(sys.argv[2], url=sys.argv[1]) as queue:
        worker = Worker(queue)

        @worker.handler
        async def handle(message):
            return message.data["n"] + 1

        receipt = await queue.enqueue({"n": 41})
        await worker.run(burst=True)
        print(await queue.result(receipt.id, timeout=5))

asyncio.run(main())
"""

DOCUMENTED = """
import asyncio, os, sys
from bot_logic.services import chat_api_queue, redis_queue_manager
from streams_queue_compat import chat_api_queue as ours, redis_queue_manager as our_manager

assert ours.QueuedRequest is chat_api_queue.QueuedRequest
assert our_manager.RedisQueueManager is redis_queue_manager.RedisQueueManager

async def main():
    manager = redis_queue_manager.RedisQueueManager(sys.argv[1])
    id = await manager.enqueue({"user_id": "u", "message": "hi"})
    print(await manager.get_position(id), (await manager.get_message(id))["message"], await manager.remove_message(id))

asyncio.run(main())
"""

APPLICATION = {
    "bot_logic/__init__.py": "",
    "bot_logic/services/__init__.py": "",
    "bot_logic/services/api_service.py": "OWN = 'the application is not hidden'\n",
    "bot_logic/services/chat_api_queue.py": "from streams_queue_compat.chat_api_queue import *\n",
    "bot_logic/services/redis_queue_manager.py": "from streams_queue_compat.redis_queue_manager import *\n",
    "main.py": DOCUMENTED + "from bot_logic.services import api_service\nprint(api_service.OWN)\n",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_in(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with(wheel, tmp_path_factory.mktemp("installed"))


def run(python: Path, *arguments: object, server_url: str = "", folder: Path) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "REDIS_"))}
    done = subprocess.run(
        [python, *map(str, arguments)],
        cwd=folder,
        env={**environment, "STREAMS_QUEUE_URL": server_url},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top <= {"streams_queue", "streams_queue_compat", "bot_logic", "streams_queue_migrations"}
    scripts = {str(path.relative_to(ROOT)) for path in (ROOT / "streams_queue" / "lua").rglob("*.lua")}
    assert scripts <= names
    pages = {
        path for path in (ROOT / "streams_queue" / "dashboard").rglob("*") if path.suffix in {".html", ".css", ".js"}
    }
    assert {str(path.relative_to(ROOT)) for path in pages} <= names
    assert {f"{package}/py.typed" for package in top} <= names
    # An __init__.py here would hide an application's own package of this name.
    assert not {"bot_logic/__init__.py", "bot_logic/services/__init__.py"} & names
    assert [name for name in names if name.endswith("/licenses/LICENSE")]


def test_a_message_is_worked_on(python, server, prefix, tmp_path):
    (tmp_path / "script.py").write_text(WORK)
    assert run(python, "script.py", server.url, prefix, ROOT, folder=tmp_path) == ["42"]


def test_the_documented_import_path(python, server, prefix, tmp_path):
    (tmp_path / "script.py").write_text(DOCUMENTED)
    assert run(python, "script.py", prefix, server_url=server.url, folder=tmp_path) == ["1 hi True"]


def test_beside_an_application_with_a_package_of_that_name(python, server, prefix, tmp_path):
    for name, text in APPLICATION.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    said = run(python, "main.py", prefix, server_url=server.url, folder=tmp_path)
    assert said == ["1 hi True", "the application is not hidden"]


def test_the_command(python, tmp_path):
    assert any("worker" in line for line in run(python, python.parent / "streams-queue", "--help", folder=tmp_path))
