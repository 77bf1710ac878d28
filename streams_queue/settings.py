"""Environment and URLs -> one validated `Settings`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Self, TypeVar
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from streams_queue.errors import ConfigurationError
from streams_queue.keys import tagged

__all__ = ["Address", "Settings"]

T = TypeVar("T")
Kind = Literal["single", "unix", "sentinel", "cluster", "embedded"]

_SCHEMES: Mapping[str, tuple[Kind, bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("unix", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "embedded": ("embedded", False),
}
_URLS = ("STREAMS_QUEUE_URL", "REDIS_URL")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})
_CREDENTIALS = re.compile(r"[^/?#]*:(?P<password>.*)@|.*@", re.DOTALL)


class Address(NamedTuple):
    """Where the server is: a URL taken apart. Holds the password in clear; never print one."""

    kind: Kind
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""  # the unix socket, or the directory of the embedded server
    service: str = ""  # the name under which Sentinel knows the primary
    db: int = 0
    username: str | None = None
    password: str | None = None
    options: tuple[tuple[str, str], ...] = ()  # ssl_* options of the URL's query
    sentinel_username: str | None = None  # what the Sentinels ask for themselves
    sentinel_password: str | None = None


class Settings(msgspec.Struct, frozen=True):
    """How to reach the server. Made by `Settings.resolve`; its repr shows no password.

    `timeout`, in seconds, bounds connecting and each reply of the server.
    """

    url: str
    timeout: float = 5.0

    def __post_init__(self) -> None:
        _named("url", self.url, parse)

    @classmethod
    def resolve(cls, url: str | None = None, environ: Mapping[str, str] = os.environ) -> Self:
        """The settings from `url`, or else from the environment.

        Looked at in this order: `url`, STREAMS_QUEUE_URL, REDIS_URL, then REDIS_HOST (`redis`), REDIS_PORT
        (6379), REDIS_PASSWORD and REDIS_DB (0) together. REDIS_TIMEOUT (5.0 seconds) counts in every
        case. An empty variable is an unset one.

        Nothing is contacted: that the server answers is for `Connection.open` to find out.

        Raises:
            ConfigurationError: a value is unusable; names the variable, or `url`.
        """
        timeout = _named("REDIS_TIMEOUT", environ.get("REDIS_TIMEOUT") or "5.0", _seconds)
        if url is not None:
            _named("url", url, parse)
            return cls(url, timeout)
        for name in _URLS:
            if value := environ.get(name, "").strip():
                _named(name, value, parse)
                return cls(value, timeout)
        return cls(_from_parts(environ), timeout)

    @classmethod
    def resolve_all(
        cls, url: str | Sequence[str] | None = None, environ: Mapping[str, str] = os.environ
    ) -> tuple[Self, ...]:
        """As `resolve`, of several servers: a sequence of URLs, or a text or variable with blanks between them.

        Raises:
            ConfigurationError: as `resolve`; or there is none.
        """
        if url is None:
            named = next(filter(None, (environ.get(name, "").split() for name in _URLS)), None)
            urls: Sequence[str | None] = named or [None]
        else:
            urls = url.split() if isinstance(url, str) else list(url)
        if not urls:
            raise ConfigurationError("url: names no server")
        return tuple(cls.resolve(one, environ) for one in urls)

    @property
    def address(self) -> Address:
        """The URL taken apart."""
        return parse(self.url)

    def prefix(self, name: str) -> str:
        """What the keys of the queue called `name` begin with there: `name`, and on Redis Cluster `{name}`.

        For names that people know from one server. All keys of a queue must live on one node of a Cluster.
        """
        return tagged(name) if self.address.kind == "cluster" else name

    @property
    def display(self) -> str:
        """The URL with the password replaced by `***`: for logs and error texts."""
        return redact(self.url)

    def __repr__(self) -> str:
        return f"Settings(url={self.display!r}, timeout={self.timeout!r})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # msgspec's own would hand the bare URL to rich's tracebacks.
        return [("url", self.display), ("timeout", self.timeout)]


def redact(url: str) -> str:
    """`url` without its secrets, also when it is too broken to be parsed.

    A lone word before the `@` is hidden as well: it is more often a misplaced password than a user.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    if scheme == "embedded":
        return url
    rest = _CREDENTIALS.sub(_mask, rest, count=1)
    # `redis://:secret` without its `@host` puts the password where a port belongs.
    rest = re.sub(r"(?<=:)(?!\d+(?:[,/?#]|$)|\*\*\*@)[^@\[\]]*?(?=[,/?#]|$)", "***", rest)
    # Of the query only what is known to be harmless stays.
    rest = re.sub(r"([?&])(?!(?:db|ssl_\w+)=)[^&]+", r"\1***", rest)
    return scheme + separator + rest


def _mask(match: re.Match[str]) -> str:
    if match["password"] is None:
        return "***@"
    return f"{match[0].partition(':')[0]}:***@"


def parse(url: str) -> Address:
    """Take `url` apart.

    Raises:
        ValueError: with the fault and its remedy, without any part that may be secret.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"use one of {', '.join(f'{known}://' for known in _SCHEMES)}")
    kind, tls = _SCHEMES[scheme]
    if kind == "embedded":
        return Address(kind, path=rest)
    rest, _, query = rest.partition("?")
    options = _options(query, kind, tls)
    own = [options.pop(name, None) for name in _SENTINEL_OPTIONS]
    db = options.pop("db", "")
    credentials, at, place = rest.rpartition("@")
    username, password = _credentials(credentials) if at else (None, None)
    authority, slash, path = place.partition("/")
    address = Address(kind, tls, username=username, password=password, options=tuple(options.items()))
    address = address._replace(sentinel_username=own[0], sentinel_password=own[1])
    if kind == "unix":
        if not slash or authority or not path:
            raise ValueError("write the socket's absolute path: unix:///run/redis.sock?db=0")
        return address._replace(path=unquote(f"/{path}"), db=_number(db or "0"))
    address = address._replace(hosts=_hosts(authority, 26379 if kind == "sentinel" else 6379))
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise ValueError(f"name the service: {scheme}://host1:26379,host2:26379/service/0")
        address = address._replace(service=unquote(service))
    address = address._replace(db=_number(path or db or "0"))
    if kind == "cluster" and address.db:
        raise ValueError("Redis Cluster has database 0 only: leave the number out")
    if kind == "single" and len(address.hosts) > 1:
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    return address


def _credentials(text: str) -> tuple[str | None, str | None]:
    username, colon, password = text.partition(":")
    return unquote(username) or None, unquote(password) if colon else None


def _hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    return tuple(_host(part.strip(), default_port) for part in text.split(","))


def _host(text: str, default_port: int) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:/@?#\s]+))(?::(.*))?", text, re.DOTALL)
    if match is None:
        raise ValueError("write host:port; percent-encode special characters of a password (@ is %40)")
    return match[1] or match[2], _port(match[3]) if match[3] is not None else default_port


def _options(query: str, kind: Kind, tls: bool) -> dict[str, str]:
    if "@" in query:
        raise ValueError("percent-encode special characters of a password (? is %3F)")
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = {"db"} | (_TLS_OPTIONS if tls else set()) | set(_SENTINEL_OPTIONS if kind == "sentinel" else ())
    if not known.issuperset(options):
        raise ValueError(f"unknown option; known here: {', '.join(sorted(known))}")
    if options.get("ssl_cert_reqs", "required") not in {"required", "none"}:
        raise ValueError("ssl_cert_reqs is required or none")
    return options


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError("the database is a number such as 0")
    return int(text)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError("the port is a number from 1 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError("use a number of seconds above 0, such as 5.0")
    return seconds


def _plain_host(text: str) -> str:
    host, _ = _host(f"[{text}]" if text.count(":") > 1 else text, 0)
    if f"{host}" != text:
        raise ValueError("write the name or address alone; the port belongs in REDIS_PORT")
    return f"[{host}]" if ":" in host else host


def _from_parts(environ: Mapping[str, str]) -> str:
    host = _named("REDIS_HOST", environ.get("REDIS_HOST") or "redis", _plain_host)
    port = _named("REDIS_PORT", environ.get("REDIS_PORT") or "6379", _port)
    db = _named("REDIS_DB", environ.get("REDIS_DB") or "0", _number)
    password = environ.get("REDIS_PASSWORD")
    credentials = f":{quote(password, safe='')}@" if password else ""
    return f"redis://{credentials}{host}:{port}/{db}"


def _named(name: str, value: str, check: Callable[[str], T]) -> T:
    try:
        return check(value)
    except ValueError as error:
        # `from None`: a chained traceback would show the value in clear.
        raise ConfigurationError(f"{name}: cannot use {redact(value)!r}: {error}") from None
