"""`streams-queue exporter`, run as people run it: a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import urllib.error
import urllib.request

import pytest

from helpers import queue_at


def fetched(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_it_serves_what_queues_count_until_it_is_told_to_stop(start, server, prefix):
    async with queue_at(server, prefix) as queue:
        await queue.enqueue_many([{}, {}])
        process = start("exporter", "--prefix", prefix, "--prefix", f"{prefix}:b", "--port", "0")
        url = process.stderr.readline().split()[-1]
        assert url.startswith("http://127.0.0.1:")
        status, text = fetched(url)
        assert status == 200
        assert f'streams_queue_depth{{queue="{prefix}",state="waiting"}} 2.0' in text
        assert f'streams_queue_up{{queue="{prefix}:b"}} 1.0' in text
        load = json.loads(fetched(url.replace("/metrics", f"/load?queue={prefix}"))[1])
        assert (load["queue"], load["waiting"]) == (prefix, 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_the_queue_may_stand_in_the_environment(start, prefix):
    process = start("exporter", "--port", "0")
    url = process.stderr.readline().split()[-1]
    assert f'queue="{prefix}"' in fetched(url)[1]
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--port", "70000"], "error: port 70000 is not from 0 to 65535"),
        (["--prefix", "a b"], "error: queue prefix 'a b' is not"),
        (["--url", "embedded://"], "error: embedded:// is a server of this process alone"),
        (["--url", "http://x"], "error: url: cannot use 'http://x'"),
    ],
)
def test_what_it_refuses(run, arguments, error):
    answer = run("exporter", *arguments)
    assert answer.code == 2
    assert answer.err.startswith(error)


def test_a_port_in_use(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = run("exporter", "--port", str(taken.getsockname()[1]))
    assert answer.code == 2
    assert "cannot listen on 127.0.0.1 port" in answer.err
