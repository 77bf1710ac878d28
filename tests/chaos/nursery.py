"""Starts workers as real processes, quickly: one process that has imported everything, and forks.

It reads a line of JSON for each worker from its input, and writes ``born NUMBER PID`` and ``gone PID CODE``; a worker
writes ``ready PID`` itself. When its input ends, it kills what it has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from chaos import worker


def main() -> None:
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    pending = b""
    while True:
        readable, _, _ = select.select([0, awake], [], [])
        if awake in readable:
            os.read(awake, 4096)
            _reap(children)
        if 0 in readable:
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                children.add(_bear(json.loads(line)))
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def _reap(children: set[int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        _say("gone", pid, os.waitstatus_to_exitcode(status))


def _bear(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        _say("born", order["number"], pid)
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with Path(order["log"]).open("ab") as log:
            os.dup2(log.fileno(), 2)
        os.environ.update(order["environ"])
        asyncio.run(worker.main(worker.Orders(**order["orders"]), lambda: _say("ready", os.getpid())))
        code = 0
    except BaseException:  # noqa: BLE001  (a child must never return into the nursery's loop)
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
