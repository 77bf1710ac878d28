"""A message to the fields of its hash, and back.

Every value is stored as the documented queue stores it, so that old tools read it: text as it is, lists and dicts as
JSON, everything else as ``str(value)``. What is lost in that is kept beside it, in ``_sq_types``, a JSON object with
the type of each value that is not text. A hash without ``_sq_types`` was written by an old producer and is read by the
old rules.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Generic, cast

import msgspec

from streams_queue.errors import ConfigurationError, InvalidMessage
from streams_queue.model import PRIORITIES, Message, Payload, Status

ENGINE_FIELDS = frozenset(
    {
        "timestamp", "status", "retry_count", "dedup_key", "last_error", "last_error_time", "next_retry", "error",
        "moved_to_dlq_at",
    }
)  # fmt: skip
"""Documented fields that the engine writes; a payload's key of the same name is stored as ``data:<key>``."""

CHAT_FIELDS = frozenset(
    {
        "request_id", "user_id", "message", "source_type", "source_id", "response_token", "chat_id", "chat_type",
        "message_id", "status", "dedup_key",
    }
)  # fmt: skip
"""Fields that stay text even in a hash of an old producer."""

_NUMBERS = frozenset({"timestamp", "retry_count", "last_error_time", "next_retry", "moved_to_dlq_at"})
_ESCAPE = "data:"
_TYPES = "_sq_types"
_PRIORITIES = {letter.encode(): priority for letter, priority in PRIORITIES.items()}

STATUSES = {status.value.encode(): status for status in Status}
"""Each status by its bytes in a hash."""

DEEPEST = 100
"""Levels of lists and dicts in a value. Near Python's recursion limit one could be stored and then, from a deeper
stack, not be read."""

Fields = dict[str, bytes]
"""A hash as Redis holds it, names decoded."""


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        within = (
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, (list, dict, tuple))
        )
        level = list({id(item): item for item in within}.values())
        if not level:
            return False
    return True


def _json_or_refuse(field: str, value: Any, kind: Callable[[Any], Any]) -> bytes:
    if _is_too_deep(value):
        raise InvalidMessage(f"payload field {field!r} is nested deeper than {DEEPEST} levels: make it flatter")
    try:
        encoded = msgspec.json.encode(value)
        same = kind(msgspec.json.decode(encoded)) == value
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"payload field {field!r}: {error}; use what JSON can hold") from error
    if not same:
        raise InvalidMessage(
            f"payload field {field!r} would not come back as it was put in: inside a list or dict use only what JSON "
            "holds (text keys, no tuples, sets, bytes or NaN)"
        )
    return encoded


def _encode_value(field: str, value: Any) -> tuple[bytes, str]:
    """The stored bytes and the type's letter, which is empty for text."""
    match value:
        case str():
            return value.encode(), ""
        case bytes() | bytearray() | memoryview():
            return bytes(value), "y"
        case None:
            return b"None", "n"
        case bool():
            return str(value).encode(), "b"
        case int():
            return int.__repr__(value).encode(), "i"  # a subclass, of an enum for example, may print otherwise
        case float():
            return float.__repr__(value).encode(), "f"
        case list() | dict():
            return _json_or_refuse(field, value, lambda decoded: decoded), "j"
        case tuple():
            return _json_or_refuse(field, value, tuple), "t"
        case frozenset():
            return _json_or_refuse(field, value, frozenset), "z"
        case set():
            return _json_or_refuse(field, value, set), "s"
    raise InvalidMessage(
        f"payload field {field!r} is a {type(value).__name__}: use text, bytes, numbers, booleans, None, lists, dicts, "
        "tuples or sets, or give the queue a msgspec Struct as its payload type"
    )


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "": lambda raw: raw.decode(errors="replace"),
    "y": bytes,
    "n": lambda raw: None if raw == b"None" else raw.decode(errors="replace"),
    "b": lambda raw: {b"True": True, b"False": False}[raw],
    "i": int,
    "f": float,
    "j": msgspec.json.decode,
    "t": lambda raw: tuple(msgspec.json.decode(raw)),
    "s": lambda raw: set(msgspec.json.decode(raw)),
    "z": lambda raw: frozenset(msgspec.json.decode(raw)),
}


def _decode_value(raw: bytes, letter: str) -> Any:
    """The value; as text where somebody wrote over it with something that is not of its type any more."""
    try:
        return _DECODERS[letter](raw)
    except (KeyError, ValueError, TypeError, RecursionError):
        return raw.decode(errors="replace")


def _decode_old(name: str, raw: bytes) -> Any:
    """A value of an old producer's hash: JSON where it is JSON, else text."""
    text = raw.decode(errors="replace")
    if name in CHAT_FIELDS:
        return text
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return text


def number(raw: bytes | None, default: float = 0.0) -> float:
    """The finite number in a hash field, or the default for anything else that somebody may have written there."""
    try:
        value = float(raw) if raw is not None else default
    except ValueError:
        return default
    return value if math.isfinite(value) else default


def value_in(flat: Sequence[bytes], name: str) -> bytes | None:
    """A payload's value under this name as it is stored, in a hash as a flat list; None where it is missing, None, or
    empty.
    """
    field = field_of(name).encode()
    names, values = flat[::2], flat[1::2]
    value = values[names.index(field)] if field in names else b""
    if value == b"None" and (_types_in(fields_of(flat)) or {}).get(field.decode()) == "n":
        return None
    return value or None


def _whole(fields: Fields, name: str) -> int:
    raw = fields.get(name)
    return int(number(raw)) if raw is not None and raw != b"0" else 0


def text(raw: bytes | None) -> str | None:
    """The text in a hash field."""
    return None if raw is None else raw.decode(errors="replace")


def fields_of(flat: Iterable[bytes]) -> Fields:
    """A hash from the flat list of names and values that a script returns."""
    items = iter(flat)
    return {name.decode(errors="replace"): value for name, value in zip(items, items, strict=True)}


def encode_values(values: Mapping[str, Any]) -> tuple[Fields, bytes]:
    """Each value as it is stored, and the JSON object of types (empty when all is text).

    Raises:
        InvalidMessage: a name is not text, or a value cannot be stored and given back as it is.
    """
    fields: Fields = {}
    types: dict[str, str] = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise InvalidMessage(f"payload key {name!r} is a {type(name).__name__}: use text")
        try:
            name.encode()
            if type(value) is str:  # nearly all are
                fields[name] = value.encode()
                continue
            fields[name], letter = _encode_value(name, value)
        except ValueError as error:  # a lone surrogate, or an int of more digits than Python prints
            raise InvalidMessage(f"payload field {name!r} cannot be encoded: {error}") from error
        if letter:
            types[name] = letter
    return fields, msgspec.json.encode(types) if types else b""


def _decode_types(raw: bytes) -> Mapping[str, str]:
    try:
        return MappingProxyType(msgspec.json.decode(raw, type=dict[str, str]) if raw else {})
    except (ValueError, msgspec.ValidationError):
        return MappingProxyType({})


_COMMON = 1024
"""Bytes of a message's types up to which they are remembered: larger ones seldom come again."""

_known_types = lru_cache(maxsize=256)(_decode_types)  # most messages of a queue have the same


def _types_in(fields: Fields) -> Mapping[str, str] | None:
    raw = fields.get(_TYPES)
    if raw is None:
        return None
    return _known_types(raw) if len(raw) <= _COMMON else _decode_types(raw)


def decode_values(fields: Fields) -> dict[str, Any]:
    """The value of every field that is not the engine's own (``_sq_...``), under its name in the hash."""
    types = _types_in(fields)
    visible = {name: raw for name, raw in fields.items() if not name.startswith("_sq_")}
    if types is None:
        return {name: _decode_old(name, raw) for name, raw in visible.items()}
    return {
        name: _decode_old(name, raw) if name in _NUMBERS else _decode_value(raw, types.get(name, ""))
        for name, raw in visible.items()
    }


def _decode_payload(fields: Fields) -> dict[str, Any]:
    types = _types_in(fields)
    payload = [(name, raw) for name, raw in fields.items() if name[:1] != "_" and name not in ENGINE_FIELDS]
    if types is None:
        return {name_of(name): _decode_old(name, raw) for name, raw in payload}
    return {name_of(name): _decode_value(raw, types.get(name, "")) for name, raw in payload}


def field_of(name: Any) -> Any:
    """Under which name a payload's value of this name is stored."""
    if isinstance(name, str) and (name in ENGINE_FIELDS or name.startswith(("_", _ESCAPE))):
        return _ESCAPE + name
    return name


def encoded_key(value: Any) -> bytes:
    """A value as a payload's field holds it.

    Raises:
        InvalidMessage: it is empty, or cannot be stored.
    """
    try:
        encoded, _ = _encode_value("key", value)
    except UnicodeEncodeError as error:
        raise InvalidMessage(f"key {value!r:.200} is not text that can be encoded") from error
    if not encoded:
        raise InvalidMessage(f"key {value!r} is empty: a message without a value has no key")
    return encoded


def name_of(field: str) -> str:
    """The name in the payload of what is stored in this field."""
    return field.removeprefix(_ESCAPE)


def changed_fields(
    fields: Fields, changes: Mapping[str, Any], removed: Iterable[str]
) -> tuple[list[bytes], list[bytes]]:
    """What to write in a hash for some other values in its payload, types included, and which fields to take out.

    Raises:
        InvalidMessage: a value cannot be stored and given back as it is.
    """
    written, types = encode_values({field_of(name): value for name, value in changes.items()})
    gone = [name for field in removed for name in (field, field_of(field)) if name in fields and _is_payload(name)]
    known = _types_in(fields)
    if known is not None:  # else an old producer's hash, which is read by the old rules
        left = {name: kind for name, kind in known.items() if name not in written and name not in gone}
        left |= msgspec.json.decode(types) if types else {}
        written[_TYPES] = msgspec.json.encode(left) if left else b""
    return [item for name, value in written.items() for item in (name.encode(), value)], [n.encode() for n in gone]


def _is_payload(name: str) -> bool:
    return name not in ENGINE_FIELDS and not name.startswith("_")


class Codec(Generic[Payload]):
    """Payloads of one queue.

    Args:
        payload: a msgspec Struct that every payload must be, or None for dicts.
        max_payload: bytes that the names and values of one message may take together.

    Raises:
        ConfigurationError: the payload type is no Struct, or one without names (``array_like``).
    """

    def __init__(self, payload: type[Payload] | None, max_payload: int) -> None:
        if payload is not None and not _is_struct_with_names(payload):
            raise ConfigurationError(f"payload={payload!r} is not a msgspec Struct whose fields have names")
        self._payload = payload
        self._max_payload = max_payload

    def encode(self, payload: Payload | Mapping[str, Any]) -> list[bytes]:
        """Names and values, one after the other, types included.

        Raises:
            InvalidMessage: the payload is of another type, cannot be stored as it is, or is too large.
        """
        values = self._mapping(payload)
        return self.with_types(*encode_values({field_of(name): value for name, value in values.items()}))

    def encode_changes(self, changes: Mapping[str, Any]) -> tuple[list[bytes], bytes]:
        """Some fields of a payload as a flat list, and their types.

        Raises:
            InvalidMessage: a value cannot be stored, they are too large, or the payload is a Struct, whose fields are
                validated together.
        """
        if self._payload is not None:
            raise InvalidMessage(f"a {self._payload.__name__} is validated as a whole: enqueue a new message instead")
        fields, types = encode_values({field_of(name): value for name, value in changes.items()})
        return self.flatten(fields), types

    def with_types(self, fields: Fields, types: bytes) -> list[bytes]:
        """A whole hash as a flat list, the types in it.

        Raises:
            InvalidMessage: it takes more than ``max_payload`` bytes.
        """
        flat = self.flatten(fields)
        flat += (_TYPES.encode(), types)
        return flat

    def flatten(self, fields: Fields) -> list[bytes]:
        """Names and values, one after the other.

        Raises:
            InvalidMessage: they take more than ``max_payload`` bytes.
        """
        size, flat = 0, []
        for name, value in fields.items():
            size += len(name) + len(value)
            flat.append(name.encode())
            flat.append(value)
        if size > self._max_payload:
            raise InvalidMessage(
                f"the payload takes {size} bytes, {self._max_payload} are allowed: store large data elsewhere and "
                "enqueue a reference to it"
            )
        return flat

    def decode(self, id: str, fields: Fields, *, lenient: bool = False) -> Message[Payload]:
        """The message in a hash; when `lenient`, a payload that does not fit the queue's Struct is given as a dict.

        Raises:
            InvalidMessage: the payload does not fit the queue's Struct.
        """
        status = STATUSES.get(fields.get("status", b""), Status.QUEUED)  # or an outsider's word for it
        retries, crashes = _whole(fields, "retry_count"), _whole(fields, "_sq_crashes")
        error, reason = fields.get("error") or fields.get("last_error"), text(fields.get("_sq_reason"))
        # A dead letter's last run is in neither count, unless its worker died in it.
        last_run = status is Status.PROCESSING or (status is Status.ERROR and reason != "crash")
        return Message(
            id=id,
            data=self._typed(id, _decode_payload(fields), lenient),
            status=status,
            attempts=retries + crashes + last_run,
            deliveries=_whole(fields, "_sq_deliveries"),
            retries=retries,
            priority=_PRIORITIES.get(fields.get("_sq_entry", b"")[:1], "normal"),
            enqueued_at=number(fields.get("timestamp")),
            error=text(error),
            reason=reason,
            due_at=number(fields.get("next_retry")) if status is Status.RETRY else None,
            died_at=number(fields.get("moved_to_dlq_at")) if status is Status.ERROR else None,
        )

    def _mapping(self, payload: Payload | Mapping[str, Any]) -> Mapping[str, Any]:
        if self._payload is not None:
            if not isinstance(payload, self._payload):
                raise InvalidMessage(
                    f"payload is a {type(payload).__name__}: this queue takes {self._payload.__name__}"
                )
            return self._validated(payload)
        if not isinstance(payload, Mapping):
            raise InvalidMessage(f"payload is a {type(payload).__name__}: give a dict, or the queue a payload type")
        return payload

    def _validated(self, payload: Payload) -> dict[str, Any]:
        # msgspec checks on the way back only: what a worker could not read must not get in.
        try:
            values = msgspec.to_builtins(payload, str_keys=True)
            msgspec.convert(values, self._payload, str_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidMessage(f"payload: {error}") from error
        return cast(dict[str, Any], values)

    def _typed(self, id: str, values: dict[str, Any], lenient: bool) -> Payload:
        if self._payload is None:
            return cast(Payload, values)
        try:
            return msgspec.convert(values, self._payload, str_keys=True)
        except (msgspec.ValidationError, RecursionError) as error:
            if lenient:
                return cast(Payload, values)
            raise InvalidMessage(f"message {id}: {error}") from error


def _is_struct_with_names(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct) and not kind.__struct_config__.array_like
