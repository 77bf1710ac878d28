"""Templates, and the words and addresses in them."""

from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from streams_queue.dashboard.access import COOKIE, FIELD, Access, new_token
from streams_queue.dashboard.guard import USER, cookie_of
from streams_queue.dashboard.problems import Problem
from streams_queue.dashboard.reading import ref
from streams_queue.durations import ago, spelt, stamp
from streams_queue.limits import spelt as spelt_limit
from streams_queue.redaction import printable
from streams_queue.shown import json_text
from streams_queue.story import HOLDS

NOTHING = "\N{EN DASH}"
"""What stands where there is nothing to say."""


def number(value: float | None) -> str:
    """A count, its thousands apart."""
    return NOTHING if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Something a minute: small ones with a decimal."""
    if value is None:
        return NOTHING
    return f"{value:,.1f}" if 0 < value < 10 else f"{value:,.0f}"


def lasting(value: float | None) -> str:
    """A duration."""
    return NOTHING if value is None else spelt(value)


def when(time: float | None, now: float) -> str | Markup:
    """How long ago, and the time itself for who points at it."""
    if time is None:
        return NOTHING
    try:
        iso = datetime.fromtimestamp(time, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return ago(time, now)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(iso, stamp(time), ago(time, now))


def until(time: float | None, now: float) -> str | Markup:
    """In how long, and the time itself for who points at it."""
    return NOTHING if time is None else when(time, now)


def shown(text: Any) -> str:
    """Any text of a message, harmless."""
    return printable(str(text))


def several(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def clock(time: float) -> str:
    """The time of a minute."""
    return datetime.fromtimestamp(time, UTC).strftime("%H:%M")


def path(request: Request, *segments: str, **query: str | None) -> str:
    """An address within the dashboard, wherever that is mounted."""
    root = quote(request.scope.get("root_path", "").rstrip("/"))
    address = f"{root}/" + "/".join(quote(segment, safe="") for segment in segments)
    asked = {name: value for name, value in query.items() if value}
    return f"{address}?{urlencode(asked)}" if asked else address


class Views:
    """Makes pages."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._templates = Environment(
            loader=PackageLoader("streams_queue.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "number": number, "rate": rate, "lasting": lasting, "when": when, "shown": shown, "ref": ref,
            "json": json_text, "several": several, "clock": clock, "stamp": stamp, "spelt": spelt_limit,
            "holding": HOLDS.__getitem__, "until": until,
        }  # fmt: skip

    def page(self, request: Request, name: str, status: int = 200, **context: Any) -> Response:
        """A page; a browser without the cookie gets one."""
        known = cookie_of(request)
        token = known or new_token()
        html = self._render(f"{name}.html", request, token=token, **context)
        response = HTMLResponse(html, status)
        if known is None:
            response.set_cookie(
                COOKIE,
                token,
                path=path(request),
                secure=request.url.scheme == "https",
                httponly=True,
                samesite="strict",
            )
        return response

    def part(self, request: Request, name: str, **context: Any) -> str:
        """A part of a page, which changes while somebody watches."""
        return self._render(f"parts/{name}.html", request, token=cookie_of(request), **context)

    def problem(self, request: Request, problem: Problem) -> Response:
        """The page that says what is wrong."""
        response = self.page(request, "problem", problem.status.value, problem=problem.details)
        response.headers.update(problem.headers)
        return response

    def _render(self, name: str, request: Request, **context: Any) -> str:
        link: Callable[..., str] = lambda *segments, **query: path(request, *segments, **query)  # noqa: E731
        return self._templates.get_template(name).render(
            link=link,
            field=FIELD,
            let_in=USER in request.scope,
            user=request.scope.get(USER) if self._access.knows_people else None,
            read_only=self._access.read_only,
            **context,
        )


def see(address: str) -> Response:
    """Sends the browser on, after a change or to what was looked for."""
    return RedirectResponse(address, HTTPStatus.SEE_OTHER)
