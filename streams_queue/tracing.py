"""Spans of OpenTelemetry: one where messages are sent, one where each is worked on, joined by what the message carries.

Nothing is traced, and nothing is paid for it, unless opentelemetry-api is installed and the application has set up a
tracer provider. Claims, polling and renewals have no spans.

A message carries the W3C ``traceparent`` of its sender in its hash, and behind a blank the ``tracestate`` where there
is one. The span of its handler is a child of the sender's, and linked to it as the conventions for messaging ask; that
of a batch is linked to all its senders.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any, TypeVar

from streams_queue.answers import NewMessage
from streams_queue.codec import text
from streams_queue.observation import Run
from streams_queue.transitions import GROUP

try:
    from opentelemetry import context as _context
    from opentelemetry import trace as _trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("opentelemetry"):
        raise
    _IS_INSTALLED = False
else:
    _IS_INSTALLED = True
    _PROPAGATOR = TraceContextTextMapPropagator()

_FIELD = "_sq_trace"

Answer = TypeVar("Answer")


def is_on() -> bool:
    """Whether spans would go anywhere."""
    if not _IS_INSTALLED:
        return False
    provider = _trace.get_tracer_provider()
    return not isinstance(provider, (_trace.ProxyTracerProvider, _trace.NoOpTracerProvider))


def _tracer() -> Any:
    return _tracer_of(_trace.get_tracer_provider())


@lru_cache(maxsize=1)
def _tracer_of(provider: Any) -> Any:
    return provider.get_tracer("streams_queue", version("streams-queue"))


async def send(
    queue: str, messages: Sequence[NewMessage], by: Callable[[Sequence[NewMessage]], Awaitable[Answer]]
) -> Answer:
    """Send messages within a span, whose context each of them carries."""
    attributes = _attributes("send", queue)
    if len(messages) == 1:
        attributes["messaging.message.id"] = messages[0].id
    else:
        attributes["messaging.batch.message_count"] = len(messages)
    kind = _trace.SpanKind.PRODUCER
    with _tracer().start_as_current_span(f"send {queue}", kind=kind, attributes=attributes) as span:
        try:
            return await by([_carrying(message) for message in messages])
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            raise


def _carrying(message: NewMessage) -> NewMessage:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    value = " ".join(carrier[name] for name in ("traceparent", "tracestate") if carrier.get(name))
    return message._replace(fields=[*message.fields, _FIELD.encode(), value.encode()]) if value else message


class HandlerSpans:
    """Spans around handlers, which they find as the current one: an `Observer`."""

    def wants(self) -> bool:
        """Whether spans would go anywhere."""
        return is_on()

    def started(self, runs: Sequence[Run]) -> Any:
        """Begin a span, and make it the current one of the handler's task."""
        span = _begun(runs[0]) if len(runs) == 1 else _begun_together(runs)
        return span, _context.attach(_trace.set_span_in_context(span))

    def ended(self, runs: Sequence[Run], kept: Any) -> None:
        """End the span; its status is an error where a message failed."""
        if kept is None:
            return
        span, token = kept
        _context.detach(token)
        if len(runs) == 1:
            span.set_attribute("streams_queue.result", runs[0].result)
        else:
            span.set_attribute("streams_queue.completed", sum(run.result == "completed" for run in runs))
        if failed := next((run for run in runs if run.reason), None):
            span.set_attribute("error.type", failed.reason)
            span.set_status(_trace.Status(_trace.StatusCode.ERROR, failed.error))
        span.end()


def _begun(run: Run) -> Any:
    """A span of one message: its sender's child."""
    sender = _sender_of(run)
    attributes = _attributes("process", run.queue) | {
        "messaging.message.id": run.message.id,
        "messaging.consumer.group.name": GROUP,
        "streams_queue.attempt": run.message.attempts,
        "streams_queue.wait": run.wait,
    }
    return _tracer().start_span(
        f"process {run.queue}", context=sender or _context.Context(), kind=_trace.SpanKind.CONSUMER,
        attributes=attributes, links=_links_to([sender]),
    )  # fmt: skip


def _begun_together(runs: Sequence[Run]) -> Any:
    """A span of a batch, which begins a trace of its own: its messages have as many senders."""
    queue = runs[0].queue
    attributes = _attributes("process", queue) | {
        "messaging.batch.message_count": len(runs),
        "messaging.consumer.group.name": GROUP,
    }
    return _tracer().start_span(
        f"process {queue}", context=_context.Context(), kind=_trace.SpanKind.CONSUMER,
        attributes=attributes, links=_links_to(map(_sender_of, runs)),
    )  # fmt: skip


def _links_to(senders: Iterable[Any]) -> list[Any]:
    return [_trace.Link(_trace.get_current_span(sender).get_span_context()) for sender in senders if sender]


def _sender_of(run: Run) -> Any:
    """The context that the message carries; None where it carries none, or something else."""
    parent, _, state = (text(run.fields.get(_FIELD)) or "").partition(" ")
    carrier = {"traceparent": parent, "tracestate": state} if state else {"traceparent": parent}
    found = _PROPAGATOR.extract(carrier, context=_context.Context())
    return found if _trace.get_current_span(found).get_span_context().is_valid else None


def _attributes(operation: str, queue: str) -> dict[str, Any]:
    return {
        "messaging.system": "streams_queue", "messaging.destination.name": queue,
        "messaging.operation.name": operation, "messaging.operation.type": operation,
    }  # fmt: skip
