"""redis-py's connections, made so that a cancellation is never lost, and commands are packed in C.

redis-py (5.0 to 8.1) sends with ``asyncio.wait_for`` where the connection has a ``socket_timeout``. Before Python 3.12
that returns as if nothing had happened when the send ends in the very moment of the cancellation: whoever cancelled
the task would wait for ever.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hiredis import pack_command
from redis import exceptions
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
        except TimeoutError as error:
            # The cluster client looks for another node after redis-py's own errors alone, and it connects in here.
            raise exceptions.TimeoutError("Timeout writing to socket") from error
        finally:
            self.socket_timeout = timeout

    def pack_command(self, *args: Any) -> list[bytes]:
        try:
            if " " not in args[0]:  # else two words, as in COMMAND INFO
                return [pack_command(args)]  # in C; redis-py does so for its blocking clients only
        except (TypeError, UnicodeEncodeError):
            pass  # not for hiredis to pack
        return super().pack_command(*args)

    def __del__(self, *modules: Any) -> None:
        with contextlib.suppress(RuntimeError):  # its loop is closed: redis-py before 5.2.1 would complain
            super().__del__(*modules)


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
