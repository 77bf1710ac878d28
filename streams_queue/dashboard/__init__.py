"""The queues in a browser: `dashboard` makes an ASGI application. Needs the extra: ``streams-queue[dashboard]``."""

try:
    from streams_queue.dashboard.app import Dashboard, dashboard
except ModuleNotFoundError as error:
    if error.name not in {"starlette", "jinja2", "markupsafe"}:
        raise
    raise ModuleNotFoundError(
        f'the dashboard needs {error.name}: pip install "streams-queue[dashboard]"', name=error.name
    ) from None

__all__ = ["Dashboard", "dashboard"]
