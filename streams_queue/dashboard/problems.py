"""What can be wrong with a request, in one shape for people and programs."""

from http import HTTPStatus

import msgspec

from streams_queue.errors import (
    ConfigurationError,
    Expired,
    InvalidMessage,
    NotFound,
    StreamsQueueError,
    UnsupportedServer,
)


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was not carried out (RFC 9457)."""

    title: str
    """The status in words."""
    status: int
    detail: str
    """What is wrong with this request, and what to do about it."""


class Problem(Exception):
    """Raised to answer a request with a status above 399."""

    def __init__(self, status: HTTPStatus, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}

    @property
    def details(self) -> ProblemDetails:
        """The problem as its JSON has it."""
        return ProblemDetails(self.status.phrase, self.status.value, str(self))


def bad(detail: str) -> Problem:
    """Something in the request breaks the rules."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)


def unknown(detail: str) -> Problem:
    """There is no such thing."""
    return Problem(HTTPStatus.NOT_FOUND, detail)


def refused(detail: str) -> Problem:
    """The request is not allowed."""
    return Problem(HTTPStatus.FORBIDDEN, detail)


def problem_of(error: StreamsQueueError) -> Problem:
    """How an error of the queue's is told."""
    match error:
        case InvalidMessage():
            return bad(str(error))
        case NotFound() | Expired():
            return unknown(str(error))
        case ConfigurationError() | UnsupportedServer():
            return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        case _:
            return Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": "5"})
