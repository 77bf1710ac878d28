"""What Prometheus asks the dashboard for: the queues that it shows."""

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from streams_queue.dashboard.board import Board
from streams_queue.dashboard.guard import Handler
from streams_queue.dashboard.problems import Problem
from streams_queue.errors import ConfigurationError


def metrics(board: Board) -> Handler:
    """The handler: one answer for all processes that work on the queues."""

    async def measure(request: Request) -> Response:
        try:
            from streams_queue.metrics import exposition_of_queues  # noqa: PLC0415  (the extra may be absent)
        except ConfigurationError as error:
            raise Problem(HTTPStatus.NOT_IMPLEMENTED, str(error)) from None
        queues = [watched.queue for watched in board.watch.queues]
        exposition = await exposition_of_queues(queues, request.headers.get("accept", ""))
        return Response(exposition.body, headers={"Content-Type": exposition.content_type})

    return measure
