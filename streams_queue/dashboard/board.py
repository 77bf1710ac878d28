"""What all of the dashboard's rooms share."""

from http import HTTPStatus
from typing import NamedTuple

from starlette.requests import Request

from streams_queue.dashboard.access import Access
from streams_queue.dashboard.problems import Problem, unknown
from streams_queue.dashboard.views import Views
from streams_queue.dashboard.watch import Watch, Watched


class Board(NamedTuple):
    """The rules, the queues and the pages of one dashboard."""

    access: Access
    watch: Watch
    views: Views

    def queue(self, request: Request) -> Watched:
        """The queue that an address names.

        Raises:
            Problem: it is not shown here, or its server was away so far.
        """
        prefix = request.path_params["prefix"]
        watched = self.watch.get(prefix)
        if watched is None:
            raise unknown(f"there is no queue {prefix!r:.200} here")
        if not watched.queue.connection.is_open:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, watched.trouble or "not connected", {"Retry-After": "5"})
        return watched
