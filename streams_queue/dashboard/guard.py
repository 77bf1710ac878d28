"""Stands before every request: who may come in, and what every answer carries."""

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streams_queue.dashboard.access import COOKIE, FIELD, HEADER, Access, check_change, check_token
from streams_queue.dashboard.problems import Problem, bad
from streams_queue.redaction import printable

logger = logging.getLogger(__name__)

BODY_LIMIT = 4 << 20
"""Bytes of a request: a payload of the largest size, as a form sends it."""

MOST_FIELDS = 20_000

SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: under that browsers send forms without the origin that proves where they come from.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}

USER = "streams_queue.user"
FORM = "streams_queue.form"
BODY = "streams_queue.body"

Handler = Callable[[Request], Awaitable[Response]]


class Guard:
    """Lets requests through by the rules of `access`; `refuse` makes the answer to others."""

    def __init__(self, app: ASGIApp, access: Access, refuse: Callable[[Request, Problem], Response]) -> None:
        self._app = app
        self._access = access
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._access.check_host(headers)
            scope[USER] = self._access.who(scope, headers)
        except Problem as problem:
            log_refusal(scope, problem)
            await self._refuse(Request(scope), problem)(scope, receive, send_safely)
            return
        await self._app(scope, receive, send_safely)


def changing(access: Access, handler: Handler, *, api: bool) -> Handler:
    """The handler of a change, behind all that a change has to pass."""

    async def guarded(request: Request) -> Response:
        try:
            check_change(access, request.headers)
            body = await _body(request)
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if api:
                _check_call(access, request, kind)
            else:
                form = _form(body, kind)
                check_token(form.get(FIELD, [None])[-1], cookie_of(request))
                request.scope[FORM] = form
        except Problem as problem:
            log_refusal(request.scope, problem)
            raise
        request.scope[BODY] = body
        return await handler(request)

    return guarded


def _check_call(access: Access, request: Request, kind: str) -> None:
    if kind != "application/json":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a change is asked for in application/json")
    if not access.credentials:  # else the password proves that it was meant: no page elsewhere may send JSON with it
        check_token(request.headers.get(HEADER), cookie_of(request))


def cookie_of(request: Request) -> str | None:
    """The token in the browser's cookie."""
    try:
        morsel = SimpleCookie(request.headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return None if morsel is None else morsel.value


async def _body(request: Request) -> bytes:
    too_large = Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has {BODY_LIMIT} bytes at most")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > BODY_LIMIT:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_LIMIT:
                raise too_large
    except ClientDisconnect:
        raise Problem(HTTPStatus.BAD_REQUEST, "the request broke off") from None
    return bytes(body)


def _form(body: bytes, kind: str) -> dict[str, list[str]]:
    if kind != "application/x-www-form-urlencoded":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a form is sent as application/x-www-form-urlencoded")
    form: dict[str, list[str]] = {}
    try:
        for name, value in parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS
        ):
            form.setdefault(name, []).append(value)
    except ValueError as error:
        raise bad(f"the form cannot be read: {error}") from None
    return form


def log_refusal(scope: Scope, problem: Problem) -> None:
    """One line, so that somebody who tries doors is seen."""
    client: Any = scope.get("client") or ("unknown",)
    logger.warning(
        "refused %s %s of %s (%s): %d %s",
        printable(scope["method"]),
        printable(scope["path"])[:200],
        printable(str(scope.get(USER, "nobody"))),
        printable(str(client[0])),
        problem.status,
        printable(str(problem)),
    )
