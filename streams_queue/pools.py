"""How redis-py's connections are set up, and pools of them.

What redis-py decides by itself differs from version to version (retries, timeouts, protocol, host name
checks), so everything is set here: nothing is sent twice behind our back, and nothing waits for ever.
"""

from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from streams_queue import wire
from streams_queue.errors import ConfigurationError
from streams_queue.settings import Address

MAX_CONNECTIONS = 64


def common(address: Address, connect_timeout: float, timeout: float) -> dict[str, Any]:
    """What every connection to this address is made with; times in seconds."""
    options: dict[str, Any] = {
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "socket_timeout": timeout,
        "socket_connect_timeout": connect_timeout,
        "decode_responses": False,
        "encoding_errors": "surrogateescape",  # an id that another program wrote in no encoding goes back as it came
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "health_check_interval": 0,
    }
    if address.kind != "unix":
        options["socket_keepalive"] = True
    if address.tls:
        options |= _tls(address)
    return options


def _tls(address: Address) -> dict[str, Any]:
    options = dict(address.options)
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in options and not Path(options[name]).is_file():
            raise ConfigurationError(f"{name}: there is no file {options[name]!r}")
    verified = options.setdefault("ssl_cert_reqs", "required") == "required"
    return {**options, "ssl_check_hostname": verified}


def pool(address: Address, common: dict[str, Any], connections: int, wait: float) -> BlockingConnectionPool:
    """So many connections to one server; who finds none free waits so many seconds for one."""
    where: dict[str, Any]
    kind: type[wire.Tcp | wire.Tls | wire.Unix]
    if address.kind == "unix":
        kind, where = wire.Unix, {"path": address.path}
    else:
        host, port = address.hosts[0]
        kind, where = wire.Tls if address.tls else wire.Tcp, {"host": host, "port": port}
    return BlockingConnectionPool(connection_class=kind, max_connections=connections, timeout=wait, **where, **common)
