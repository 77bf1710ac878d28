"""What the doctor looks at on the server: its settings, its replicas, its clock, the way to it."""

import statistics
import time
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any

from streams_queue.cli.doctor.check import Check, Verdict
from streams_queue.connection import Connection
from streams_queue.errors import StreamsQueueError
from streams_queue.inspection import Finding, Server, Severity, findings_of, size
from streams_queue.settings import Address

ROUND_TRIPS = 20
SLOW = 0.02
"""Seconds of a usual round trip from which on it is held against a server: a worker makes three a message."""

CLOCKS_APART = 1.0
"""Seconds."""

LAGS = 10
"""Seconds since a replica's last sign of life, as `min-replicas-max-lag` has it unless it is set."""

_VERDICTS = {Severity.DANGER: Verdict.DANGER, Severity.WARNING: Verdict.WARNING, Severity.NOTE: Verdict.WARNING}

_FINDINGS = {
    "version": ("version",),
    "default-user": ("default-user",),
    "eviction": ("eviction",),
    "memory": ("memory",),
    "persistence": ("append", "snapshot", "persistence", "fsync"),
    "replicas": ("replica",),
    "cluster": ("cluster",),
}
"""Which findings of a worker's start stand for which check; without any of them it is said why all is well."""


def look_at_settings(server: Server) -> Iterator[Check]:
    """What `inspection` knows of, well or not."""
    if not server.info:
        for check in _FINDINGS:
            reason = "The server does not let this user send INFO."
            yield Check(check, Verdict.UNKNOWN, reason, _allow(server.address, "+info"))
        return
    found = {finding.name: finding for finding in findings_of(server)}
    for check, names in _FINDINGS.items():
        told = [_from(check, found[name]) for name in names if name in found]
        yield from told or [_well(check, server)]


def _from(check: str, finding: Finding) -> Check:
    return Check(check, _VERDICTS[finding.severity], f"{finding.what} {finding.why}", finding.remedy)


def _well(check: str, server: Server) -> Check:
    match check:
        case "version":
            return _ok(check, f"{server.product.capitalize()} {server.version} has no fault that is known here.")
        case "default-user":
            return _ok(check, "A restart keeps what scripts wrote, whatever the user default may do.")
        case "eviction":
            return _ok(check, "maxmemory-policy is noeviction: when memory is full the server refuses, and keeps.")
        case "memory":
            limit = int(server.info.get("maxmemory", 0))
            of = f"of maxmemory, {size(limit)}" if limit else "and maxmemory is not set"
            return _ok(check, f"{size(int(server.info.get('used_memory', 0)))} are used, {of}.")
        case "persistence":
            return _kept(server)
        case "replicas":
            return _replicas(server.info)
        case _:
            return _one_server(server)


def _kept(server: Server) -> Check:
    fsync = server.config.get("appendfsync")
    if server.embedded:
        return _ok("persistence", "The embedded server keeps what it has, with appendfsync everysec.")
    if server.appends is None or fsync is None:
        reason = "Whether and when the append-only file is synced cannot be seen: CONFIG GET is not allowed."
        return Check("persistence", Verdict.UNKNOWN, reason, "redis-cli CONFIG GET append*, as a user who may")
    loss = "nothing" if fsync == "always" else "the last second"
    return _ok("persistence", f"appendonly yes, appendfsync {fsync}: a loss of power takes {loss}, a crash nothing.")


def _replicas(info: Mapping[str, Any]) -> Check:
    replicas = [value for name, value in info.items() if name.startswith("slave") and isinstance(value, dict)]
    if not replicas:
        reason = "There are no replicas: when the machine is gone, nobody takes over."
        return _ok("replicas", reason)
    behind = [
        f"{replica.get('ip')}:{replica.get('port')} ({replica.get('state')}, {replica.get('lag')} s)"
        for replica in replicas
        if replica.get("state") != "online" or int(replica.get("lag", 0)) > LAGS
    ]
    if behind:
        reason = f"{len(behind)} of {len(replicas)} replicas do not keep up: {', '.join(behind)}."
        return Check("replicas", Verdict.WARNING, reason, "redis-cli INFO replication; look into the replica's log")
    written = int(info.get("master_repl_offset", 0))
    lag = max(written - int(replica.get("offset", 0)) for replica in replicas)
    return _ok("replicas", f"{len(replicas)} replicas keep up, the last of them {lag} bytes behind.")


def _one_server(server: Server) -> Check:
    if server.address.kind == "cluster":
        return _ok("cluster", "All slots of the Cluster are served.")
    if int(server.info.get("cluster_enabled", 0)):
        return Check(
            "cluster", Verdict.DANGER,
            "The server is a node of a Redis Cluster, and the URL says that it stands alone.",
            "begin the URL with redis+cluster:// or rediss+cluster://",
        )  # fmt: skip
    return _ok("cluster", "The server stands alone: a prefix needs no hash tag.")


async def look_at_latency(connection: Connection, near: str) -> Check:
    """How long a round trip takes, from here."""
    taken = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        await connection.ask("PING", near=near)
        taken.append((time.perf_counter() - began) * 1000)
    usual = statistics.median(taken)
    reason = f"A round trip takes {usual:.1f} ms from here, the longest of {ROUND_TRIPS} took {max(taken):.1f} ms."
    if usual < SLOW * 1000:
        return _ok("latency", reason)
    remedy = "redis-cli --latency; redis-cli SLOWLOG GET 10; or run the workers nearer to the server"
    return Check("latency", Verdict.WARNING, reason, remedy)


async def look_at_clock(connection: Connection, near: str) -> Check:
    """How far this machine's clock and the server's are apart."""
    nearest = (float("inf"), 0.0)
    for _ in range(5):
        began, clock = time.perf_counter(), time.time()
        answer = await connection.ask("TIME", near=near)
        if answer is None:
            reason = "The server does not let this user ask for the time."
            return Check("clock", Verdict.UNKNOWN, reason, _allow(connection.settings.address, "+time"))
        taken = time.perf_counter() - began
        ahead = int(answer[0]) + int(answer[1]) / 1_000_000 - (clock + taken / 2)
        nearest = min(nearest, (taken, ahead))
    taken, ahead = nearest
    if abs(ahead) < CLOCKS_APART:
        return _ok("clock", f"The server's clock and this machine's agree to within {abs(ahead) + taken / 2:.3f} s.")
    which = "ahead of" if ahead > 0 else "behind"
    return Check(
        "clock", Verdict.WARNING,
        f"The server's clock is {abs(ahead):.1f} s {which} this machine's: the queue goes by the server's alone, but "
        "old producers score by their own.",
        "timedatectl status, on both machines",
    )  # fmt: skip


# ---- the way there


def look_at_encryption(address: Address) -> Check:
    """Whether passwords and payloads can be read on their way."""
    if address.tls:
        if dict(address.options).get("ssl_cert_reqs") == "none":
            reason = "The connection is encrypted, but whoever answers is believed: ssl_cert_reqs is none."
            return Check("encryption", Verdict.DANGER, reason, "leave ssl_cert_reqs out, and name ssl_ca_certs")
        return _ok("encryption", "The connection is encrypted, and the server's certificate is verified.")
    far = [host for host, _ in address.hosts if not _is_near(host)]
    if not far:
        return _ok("encryption", "The connection does not leave this machine.")
    reason = f"The connection to {', '.join(far)} is not encrypted: passwords and payloads can be read on their way."
    return Check("encryption", Verdict.WARNING, reason, "begin the URL with rediss://, and set up TLS on the server")


def look_at_url(given: str | None, address: Address) -> Check:
    """Whether other users of this machine see the password."""
    if given is None or address.password is None:
        return _ok("url", "No password stands among this command's arguments.")
    return Check(
        "url", Verdict.WARNING,
        "The password stands among this command's arguments, where other users of the machine see it.",
        "put the URL into STREAMS_QUEUE_URL instead, and change the password",
    )  # fmt: skip


async def look_at_password(connection: Connection, near: str) -> Check:
    """Whether the server lets in who has no password."""
    address = connection.settings.address
    if address.kind in {"unix", "embedded"}:
        return _ok("password", "The server is reached by a socket, which the file system guards.")
    if not await _lets_anybody_in(connection):
        return _ok("password", "The server lets nobody in without a password.")
    remedy = "redis-cli CONFIG SET requirepass, or ACL SETUSER default off once every program has a user of its own"
    config = await connection.ask("CONFIG GET", "protected-mode", near=near)
    if all(_is_near(host) for host, _ in address.hosts):
        if config is None:
            reason = "The server lets anybody in; whether from elsewhere, too, cannot be seen: CONFIG GET is forbidden."
            return Check("password", Verdict.UNKNOWN, reason, remedy)
        if "yes" in _values(config):
            return _ok("password", "The server asks for no password, and lets in this machine alone (protected-mode).")
    reason = "The user default has no password: whoever reaches the server may read and write all of it."
    return Check("password", Verdict.DANGER, reason, remedy)


async def _lets_anybody_in(connection: Connection) -> bool:
    address = connection.settings.address
    if address.password is None:
        return True
    stranger = Connection(connection.settings)
    stranger._address = address._replace(username=None, password=None)
    try:
        await stranger.open()
    except StreamsQueueError:
        return False
    await stranger.close()
    return True


def _values(config: Mapping[Any, Any] | list[Any]) -> set[str]:
    values = config.values() if isinstance(config, Mapping) else config
    return {value.decode() if isinstance(value, bytes) else str(value) for value in values}


def _is_near(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _allow(address: Address, right: str) -> str:
    return f"redis-cli ACL SETUSER {address.username or 'default'} {right}"


def _ok(check: str, reason: str) -> Check:
    return Check(check, Verdict.OK, reason)
