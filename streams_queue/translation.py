"""redis-py's exceptions -> ours."""

import contextlib
import ssl
from collections.abc import Iterator

from redis import exceptions
from redis.asyncio.sentinel import MasterNotFoundError

from streams_queue.errors import ConfigurationError, InvalidMessage, QueueUnavailable, StreamsQueueError

REDIS_ERRORS = (
    exceptions.RedisError,
    exceptions.RedisClusterException,
    exceptions.ChildDeadlockedError,
    OSError,  # TimeoutError among them
)
"""Everything a call through redis-py can fail with; `translate` knows each of them."""


@contextlib.contextmanager
def translated(context: str = "") -> Iterator[None]:
    """Raise what redis-py raises inside as an exception of ours, its text led by `context`; a group of such too."""
    try:
        yield
    except REDIS_ERRORS as error:
        ours = translate(error)
        raise type(ours)(f"{context}{ours}") from error
    except ExceptionGroup as group:
        if group.split(REDIS_ERRORS)[1] is not None:
            raise  # something else is among them
        ours = translate(_first_of(group))
        raise type(ours)(f"{context}{ours}") from group


def _first_of(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


_DENIED = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
    exceptions.NoPermissionError,
)
_DENIED_WORDS = (
    "NOAUTH",
    "NOPERM",
    "WRONGPASS",
    "ACL failure in script",  # what a script may not do: from Redis 7.0 on
    "The user executing the script can't",  # and on 6.2
)


_DENIED_AT_SENTINEL = ("AuthenticationError", "NoPermissionError", *_DENIED_WORDS)


def is_denied(error: BaseException | None) -> bool:
    """Whether the server does not let the user in, or do what was asked for."""
    while error is not None:
        if isinstance(error, _DENIED) or any(words in str(error) for words in _DENIED_WORDS):
            return True
        error = error.__cause__  # no node of a Cluster that let us in is an error of another kind
    return False


def translate(error: BaseException) -> StreamsQueueError:
    """The exception of ours for one of redis-py's or the operating system's.

    ConfigurationError where a person has to act (credentials, permissions, TLS, a key of another type,
    a prefix without a hash tag on Cluster), InvalidMessage for an argument that cannot be sent, QueueUnavailable for
    everything else.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, MasterNotFoundError):
        return _no_primary(text)
    if is_denied(error):
        return ConfigurationError(f"the server denied access: {text}")
    if isinstance(error, exceptions.DataError):
        return InvalidMessage(f"an argument cannot be sent to Redis: {text}")
    if "WRONGTYPE" in text:
        return ConfigurationError(
            f"a key under this prefix belongs to another program: {text}; remove it, or choose another prefix"
        )
    if isinstance(error, exceptions.ClusterCrossSlotError) or "same key slot" in text:
        return ConfigurationError(f"on Redis Cluster the prefix needs a hash tag, such as {{chat_api}}: {text}")
    # redis-py 5 knows this one as any other reply, where the client is not meant for a Cluster.
    if isinstance(error, exceptions.MovedError) or text.startswith("MOVED "):
        return QueueUnavailable(f"a Redis Cluster sends us elsewhere ({text}); does the URL say redis+cluster://?")
    if _distrusted(error):
        return ConfigurationError(f"TLS failed: {text}; check the certificate, ssl_ca_certs and the host name")
    return QueueUnavailable(text)


def _no_primary(text: str) -> StreamsQueueError:
    # redis-py goes on with why each Sentinel gave no answer, and the repr of its client, in some versions with its
    # password: none of that is shown.
    told = text.partition(" : ")[0]
    if any(words in text for words in _DENIED_AT_SENTINEL):
        return ConfigurationError(f"{told}: the Sentinels denied access; say ?sentinel_password=... in the URL")
    return QueueUnavailable(told)


def _distrusted(error: BaseException | None) -> bool:
    while error is not None:
        # An end of file in the handshake is a server going down, not one that is set up wrongly.
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return True
        error = error.__cause__ or error.__context__
    return False
