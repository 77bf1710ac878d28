"""Who may ask, from where, and what proves that a change was meant."""

import base64
import binascii
import hmac
import inspect
import ipaddress
import secrets
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from http import HTTPStatus
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.types import Scope

from streams_queue.dashboard.problems import Problem, refused
from streams_queue.errors import ConfigurationError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names under which a dashboard of this machine is asked for."""

COOKIE = "streams_queue_csrf"
HEADER = "x-csrf-token"
FIELD = "csrf"

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")

Identify = Callable[[Scope], str | None]
"""Says who sends a request, by the application's own login; None where nobody is logged in."""


class Access(msgspec.Struct, frozen=True):
    """The rules. Made by `Access.of`; its repr shows no password."""

    credentials: tuple[tuple[bytes, bytes], ...]
    """Digests of names and passwords."""
    identify: Identify | None
    hosts: frozenset[str]
    read_only: bool

    @classmethod
    def of(
        cls,
        credentials: Mapping[str, str] | None,
        identify: Identify | None,
        allowed_hosts: Sequence[str],
        *,
        read_only: bool,
    ) -> "Access":
        """The rules, checked.

        Raises:
            ConfigurationError: names other than loopback's would be served to anybody, or a value is unusable.
        """
        for name, password in (credentials or {}).items():
            if not name or ":" in name or not password:
                raise ConfigurationError("credentials: a name is not empty and has no colon, a password is not empty")
        if inspect.iscoroutinefunction(identify):
            raise ConfigurationError("identify: give a function that answers at once, not one that is awaited")
        hosts = frozenset(map(_host_name, allowed_hosts))
        if hosts - LOOPBACK and not credentials and identify is None:
            raise ConfigurationError(
                f"allowed_hosts has {min(hosts - LOOPBACK)!r}: whoever can reach it could change the queues; "
                "give credentials, or identify where the application has a login of its own"
            )
        digests = tuple((_digest(name), _digest(password)) for name, password in (credentials or {}).items())
        return cls(digests, identify, LOOPBACK | hosts, read_only)

    def __repr__(self) -> str:
        return f"Access(users={len(self.credentials)}, hosts={sorted(self.hosts)}, read_only={self.read_only})"

    @property
    def knows_people(self) -> bool:
        """Whether who asks has a name."""
        return bool(self.credentials) or self.identify is not None

    def check_host(self, headers: Headers) -> None:
        """Refuse names that are not ours: a page elsewhere may have one that leads here (DNS rebinding)."""
        host = headers.getlist("host")
        if len(host) != 1:
            raise Problem(HTTPStatus.BAD_REQUEST, "the request names no host, or several")
        if _without_port(host[0]) not in self.hosts:
            raise Problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this name is not among the allowed hosts: start the dashboard with --allowed-host NAME, "
                "or give allowed_hosts",
            )

    def who(self, scope: Scope, headers: Headers) -> str:
        """The name of who asks.

        Raises:
            Problem: nobody that is known; or, where nobody has to be known, somebody from another machine.
        """
        if self.identify is not None:
            name = self.identify(scope)
            if not (name and isinstance(name, str)):  # whatever else it is, it is no name of somebody
                raise Problem(HTTPStatus.UNAUTHORIZED, "log in to the application first")
            return name
        if self.credentials:
            return self._by_password(headers)
        client = scope.get("client")
        if any(name in headers for name in _FORWARDED) or (client and not is_loopback(client[0])):
            raise refused("without credentials the dashboard answers this machine alone, and no proxies")
        return "anybody on this machine"

    def _by_password(self, headers: Headers) -> str:
        name, password = _basic(headers.get("authorization", ""))
        given = (_digest(name), _digest(password))
        known = False
        for wanted in self.credentials:  # all of them, whatever the first ones say
            same = hmac.compare_digest(given[0], wanted[0]) & hmac.compare_digest(given[1], wanted[1])
            known = known or bool(same)
        if not known:
            raise Problem(
                HTTPStatus.UNAUTHORIZED,
                "a name and a password are needed",
                {"WWW-Authenticate": 'Basic realm="streams-queue", charset="UTF-8"'},
            )
        return name


def check_change(access: Access, headers: Headers) -> None:
    """Refuse a change that nobody may make, or that a page elsewhere has its reader's browser send."""
    if access.read_only:
        raise refused("this dashboard is read-only")
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site not in {None, "same-origin", "none"}:
        raise refused("the request comes from another site")
    # A browser that says it is the same site may have been told to hide the page's address.
    vouched = origin is None or (origin == "null" and site == "same-origin")
    if not vouched and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise refused("the request comes from another site")


def new_token() -> str:
    """What a browser gets as a cookie, and gives back in every form."""
    return secrets.token_urlsafe(32)


def check_token(given: str | None, cookie: str | None) -> None:
    """Refuse a form or a call that does not give back what the cookie has: its sender cannot read our pages."""
    if not (given and cookie and hmac.compare_digest(_digest(given), _digest(cookie))):
        raise refused("the token is missing, or is not the cookie's: load the page again, with cookies allowed")


def is_loopback(host: str) -> bool:
    """Whether an address or a name is this machine's own."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def _basic(header: str) -> tuple[str, str]:
    scheme, _, encoded = header.partition(" ")
    try:
        decoded = base64.b64decode(encoded, validate=True).decode() if scheme.lower() == "basic" else ""
    except (binascii.Error, ValueError):
        decoded = ""
    name, _, password = decoded.partition(":")
    return name, password


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower().removesuffix(".")


def _host_name(host: str) -> str:
    name = host.strip().lower()
    if name.count(":") > 1 and not name.startswith("["):
        name = f"[{name}]"
    if not name or any(sign in name for sign in "/@*, ") or _without_port(name) != name:
        raise ConfigurationError(f"allowed host {host!r}: write a name or an address alone, without scheme and port")
    return name
