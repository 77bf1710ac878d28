"""A migrating process needs no more memory for a long queue than for a short one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import servers
from migrations.old_state import OldState

TESTS = Path(__file__).resolve().parent.parent


def peak_of_a_move(server: servers.AnyServer, prefix: str) -> int:
    command = [sys.executable, "-m", "migrations.programs", "apply", server.url, prefix]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("long", [100_000])
def test_memory_does_not_grow_with_the_queue(server: servers.AnyServer, client, prefix: str, long: int):
    peaks = {}
    for count in (long // 10, long):
        client.flushall()
        state = OldState(client, prefix)
        for n in range(count):
            if n % 20 == 0:
                state.place("dlq", f"dead-{n}", 1e9 + n)  # its body ran out long ago
            else:
                state.queued(f"m{n}", 1e9 + n)
        state.flush()
        peaks[count] = peak_of_a_move(server, prefix)
        assert client.xlen(state.key("stream")) == len(state.main)
    short, whole = peaks.values()
    print(f"peak of a migrating process: {short} KiB for {long // 10} messages, {whole} KiB for {long}")
    assert whole < 1.1 * short
