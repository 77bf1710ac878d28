"""The demo's processes: three workers, and the operator's script."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from streams_queue.cli.demo.stage import Stage

CONCURRENCY = 4

_HERE = Path(__file__).parent
_REQUEUE = "requeue_dead_letters.py"


def requeue_script() -> Path:
    """The documented dead-letter script: in the checkout's ``docs/examples``, installed beside this file."""
    documented = _HERE.parents[2] / "docs" / "examples" / _REQUEUE
    return documented if documented.exists() else _HERE / _REQUEUE


def requeue(prefix: str) -> int:
    """Run that script as it stands, on the demo's server; how many dead letters it says it requeued."""
    done = subprocess.run(  # noqa: S603  (this interpreter, our script)
        [sys.executable, requeue_script(), prefix],
        env=os.environ | {"REDIS_URL": os.environ["STREAMS_QUEUE_URL"]},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.count("requeued ")


class Workers:
    """Processes that run the documented chat processor. Used as a context: none of them outlives it."""

    def __init__(self, stage: Stage, prefix: str) -> None:
        self._stage = stage
        self._prefix = prefix
        self._processes: list[subprocess.Popen[bytes]] = []
        self.killed: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def pids(self) -> list[int]:
        """Of all, in the order of their start."""
        return [process.pid for process in self._processes]

    def start(self) -> int:
        """One more; its pid."""
        number = len(self._processes) + 1
        environment: Mapping[str, str] = os.environ | {
            "STREAMS_QUEUE_DEMO": str(self._stage.directory),
            "CHAT_API_HANDLER": "streams_queue.cli.demo.handler:answer",
            "CHAT_API_CONCURRENCY": str(CONCURRENCY),
        }
        with self.log(number).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603  (this interpreter, this package)
                [sys.executable, "-m", "streams_queue.cli.demo.instance", self._prefix],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the demo, which ends them in order
            )
        self._processes.append(process)
        return process.pid

    def kill(self, pid: int) -> None:
        """As the kernel's OOM killer would: kill -9."""
        self.killed.add(pid)
        os.kill(pid, signal.SIGKILL)

    def log(self, number: int) -> Path:
        """What the worker of this number has logged."""
        return self._stage.directory / f"worker-{number}.log"

    def ended(self) -> list[int]:
        """Numbers of those that ended though nobody killed them."""
        return [
            number
            for number, process in enumerate(self._processes, 1)
            if process.poll() is not None and process.pid not in self.killed
        ]
