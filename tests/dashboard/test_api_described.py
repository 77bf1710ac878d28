"""Every operation of the API, called with what its description allows and with what it forbids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from dashboard.serving import PREFIX, Board, serving
from helpers import queue_at, work
from streams_queue import Reject
from streams_queue.dashboard.access import COOKIE

PASSWORD = "a-long-password"
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CHANGES = ["--include-method", "POST"]


@pytest.fixture
def prefix() -> str:
    return PREFIX


@pytest.fixture
async def filled(server) -> None:
    """A line, and dead letters d0 to d3."""
    async with queue_at(server, PREFIX) as queue:
        for n in range(4):
            await queue.enqueue({"sku": f"A-{n}", "user_id": "u1"}, id=f"d{n}")

        async def refuse(message):
            raise Reject("no stock")

        await work(queue, refuse)
        await queue.enqueue_many([{"user_id": "u1"}] * 3)


def check(board: Board, directory: Path, *arguments: str) -> None:
    """All its checks pass: statuses, types, shapes, methods; what is wrong is refused, what is right is not."""
    (directory / "schemathesis.toml").write_text('[parameters]\n"path.id" = "d1"\n')
    fixed = ["--phases", "examples,coverage,fuzzing", "--generation-deterministic", "--no-color", "--warnings", "off"]
    done = subprocess.run(
        [SCHEMATHESIS, "run", board / "api/openapi.json", "--continue-on-failure", "-n", "5", *fixed, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert " 500 " not in board.log


def token_of(board: Board) -> str:
    return str(httpx.get(board / "api/token").json()["token"])


async def test_by_password(server, filled, tmp_path):
    with serving(server, STREAMS_QUEUE_DASHBOARD_PASSWORD=PASSWORD) as board:
        check(board, tmp_path, "--auth", f"admin:{PASSWORD}")


async def test_by_token(server, filled, tmp_path):
    with serving(server) as board:
        token = token_of(board)
        check(board, tmp_path, *CHANGES, "-H", f"X-CSRF-Token: {token}", "-H", f"Cookie: {COOKIE}={token}")


async def test_read_only(server, filled, tmp_path, redis):
    with serving(server, "--read-only") as board:
        check(board, tmp_path, *CHANGES)
    assert await redis.zcard(f"{PREFIX}:queue:dlq") == 4
