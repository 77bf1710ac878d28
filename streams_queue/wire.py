"""redis-py's connections, made so that a cancellation is never lost.

redis-py sends with ``asyncio.wait_for``, which before Python 3.12 returns as if nothing had happened when the send
ends in the very moment of the cancellation: whoever cancelled the task would wait for ever.
"""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from redis.asyncio import connection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

if TYPE_CHECKING:
    _Base = connection.AbstractConnection
else:
    _Base = object


class _Cancellable(_Base):
    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        timeout, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(timeout):
                await super().send_packed_command(command, check_health)
        finally:
            self.socket_timeout = timeout


class Tcp(_Cancellable, connection.Connection):
    """One server by address."""


class Tls(_Cancellable, connection.SSLConnection):
    """One server by address, encrypted."""


class Unix(_Cancellable, connection.UnixDomainSocketConnection):
    """One server by a socket's path."""


class Sentinel(_Cancellable, SentinelManagedConnection):
    """The primary that Sentinel names."""


class SentinelTls(_Cancellable, SentinelManagedSSLConnection):
    """The primary that Sentinel names, encrypted."""
