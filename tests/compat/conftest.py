"""The documented API against the run's server, and programs of its callers in processes of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import servers
from compat.old_programs import OldProducer
from streams_queue.settings import Settings
from streams_queue_compat import chat_api_queue
from streams_queue_compat.redis_queue_manager import RedisQueueManager

Managers = Callable[..., RedisQueueManager]
Programs = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def at_server(server: servers.AnyServer, monkeypatch: pytest.MonkeyPatch) -> servers.AnyServer:
    """The documented API is told of the server as an application tells it: by the environment."""
    monkeypatch.setenv("STREAMS_QUEUE_URL", server.url)
    for name in ("CHAT_API_HANDLER", "CHAT_API_CONCURRENCY", "CHAT_API_ONE_AT_A_TIME"):
        monkeypatch.delenv(name, raising=False)
    return server


@pytest.fixture
async def managers(at_server: servers.AnyServer, prefix: str) -> AsyncIterator[Managers]:
    """Makes managers of one queue in a hurry: each is what another process would have."""
    made: list[RedisQueueManager] = []

    def make(of: str = prefix, **attributes: Any) -> RedisQueueManager:
        manager = RedisQueueManager(of)
        for name, value in {"retry_delay_base": 0.05, "lock_expiry": 2, **attributes}.items():
            setattr(manager, name, value)
        made.append(manager)
        return manager

    yield make
    for manager in made:
        if manager._processor is not None and manager._processor.running:
            await manager.stop_processor(0)
        await manager.close()


@pytest.fixture
async def manager(managers: Managers) -> RedisQueueManager:
    return managers()


@pytest.fixture
async def chat(at_server: servers.AnyServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModuleType]:
    """The chat queue, as if its module were imported for the first time."""
    fresh = chat_api_queue._Chat()
    fresh.queue.retry_delay_base = 0.05
    fresh.queue.lock_expiry = 2
    monkeypatch.setattr(chat_api_queue, "_chat", fresh)
    yield chat_api_queue
    if fresh.processor is not None and fresh.processor.running:
        await fresh.processor.stop(0)
    await fresh.queue.close()


@pytest.fixture
def chat_prefix(server: servers.AnyServer) -> str:
    """What the keys of the chat queue begin with."""
    return Settings(server.url).prefix("chat_api")


@pytest.fixture
def old(redis: Any, prefix: str) -> OldProducer:
    """A producer of the old code."""
    return OldProducer(redis, prefix)


@pytest.fixture
def programs(at_server: servers.AnyServer, tmp_path: Path) -> Iterator[Programs]:
    """Starts Python programs in a directory of their own, which is not the checkout; what is left of them is killed."""
    with contextlib.ExitStack() as stack:

        def start(source: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
            path = tmp_path / f"program{len(list(tmp_path.glob('program*.py')))}.py"
            path.write_text(source)
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error::RuntimeWarning", str(path), *arguments],
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1", **environment},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield start
