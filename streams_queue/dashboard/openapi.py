"""The description of the API, as OpenAPI 3.1, made from what its handlers take and answer."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec

from streams_queue.dashboard.problems import ProblemDetails

_REF = "#/components/schemas/{name}"

_PROBLEMS = {
    400: "The request names no host, or is none",
    401: "A name and a password are needed",
    403: "Not allowed: read-only, without its token, or from elsewhere",
    404: "There is no such queue or message",
    405: "This address takes another method",
    409: "Somebody else changed it meanwhile, or it does not fit what is there",
    413: "The request is too large",
    415: "A change is asked for in application/json",
    421: "The dashboard has no such name",
    422: "Something in the request breaks the rules",
    500: "A fault of the dashboard's, or of how it is set up",
    503: "The server that holds the queue cannot do it now",
}
_OF_CHANGES = {409, 413, 415}


class Operation(NamedTuple):
    """A method on an address, what it takes and what it answers."""

    method: str
    path: str
    answer: type[msgspec.Struct]
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None


_PARAMETERS = {
    "prefix": {"type": "string", "pattern": "^[A-Za-z0-9_.:{}-]{1,128}$"},
    "id": {"type": "string", "pattern": "^([^~][\\s\\S]*|~([0-9a-f]{2})+)$"},
}


def description(
    operations: Sequence[tuple[Operation, str]], server: str, queues: Sequence[str], *, with_password: bool
) -> dict[str, Any]:
    """The document; each operation comes with a sentence on what it does, and `queues` are examples."""
    shapes: list[type[msgspec.Struct]] = [ProblemDetails]
    for operation, _ in operations:
        shapes += [shape for shape in (operation.answer, operation.body) if shape and shape not in shapes]
    _, components = msgspec.json.schema_components(shapes, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation, summary in operations:
        described = _described(operation, summary, queues)
        if operation.method == "POST" and not with_password:
            described["security"] = [{"token": []}]
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    schemes: dict[str, Any] = {
        "password": {"type": "http", "scheme": "basic"},
        "token": {"type": "apiKey", "in": "header", "name": "X-CSRF-Token"},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streams-queue dashboard",
            "version": version("streams-queue"),
            "description": "Queues, workers, messages and dead letters. Secrets are shown as `***`. Times are epoch "
            "seconds by the server's clock, durations seconds.",
        },
        "servers": [{"url": server}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": schemes,
            "responses": {
                f"problem{status}": {
                    "description": words,
                    "content": {"application/problem+json": {"schema": {"$ref": _REF.format(name="ProblemDetails")}}},
                }
                for status, words in _PROBLEMS.items()
            },
        },
        "security": [{"password": []}] if with_password else [],
    }


def _described(operation: Operation, summary: str, queues: Sequence[str]) -> dict[str, Any]:
    is_change = operation.method == "POST"
    problems = {status for status in _PROBLEMS if is_change or status not in _OF_CHANGES}
    said: dict[str, Any] = {
        "summary": summary.strip().rstrip("."),
        "operationId": _name(operation),
        "parameters": [*_in_path(operation.path, queues), *_in_query(operation.query)],
        "responses": {
            "200": {
                "description": (operation.answer.__doc__ or "").strip(),
                "content": {"application/json": {"schema": _of(operation.answer)}},
            },
            **{str(status): {"$ref": f"#/components/responses/problem{status}"} for status in sorted(problems)},
        },
    }
    if operation.body is not None:
        said["requestBody"] = {"required": True, "content": {"application/json": {"schema": _of(operation.body)}}}
    return said


def _name(operation: Operation) -> str:
    words = re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", operation.path.removeprefix("/api/")))
    of_one = "_one" if operation.path.endswith("}") else ""
    return "_".join([operation.method.lower(), *words]) + of_one


def _of(shape: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=shape.__name__)}


def _in_path(path: str, queues: Sequence[str]) -> list[dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {"prefix": {"examples": list(queues)}} if queues else {}
    return [
        {"name": name, "in": "path", "required": True, "schema": _PARAMETERS[name] | known.get(name, {})}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _in_query(shape: type[msgspec.Struct] | None) -> list[dict[str, Any]]:
    if shape is None:
        return []
    _, found = msgspec.json.schema_components([shape], ref_template=_REF)
    (described,) = found.values()
    required = described.get("required", ())
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "description": schema.get("description", ""),
            "schema": {key: value for key, value in schema.items() if key != "description"},
        }
        for name, schema in described["properties"].items()
    ]
