"""Messages to hashes and back: exact, or refused."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import gc
import math
import sys
import tracemalloc
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams_queue.codec import ENGINE_FIELDS, Codec, Fields, encode_values, fields_of
from streams_queue.errors import ConfigurationError, InvalidMessage
from streams_queue.model import Message, Status

MIB = 1 << 20
plain: Codec[dict[str, Any]] = Codec(None, MIB)

AWKWARD_TEXT = [
    "",
    "123",
    "1.5",
    "true",
    "True",
    "null",
    "None",
    "[]",
    "{}",
    '"x"',
    "\x00",
    "a\r\nb",
    "\u202e\u2066x\u2069",
]
AWKWARD_KEYS = [
    *sorted(ENGINE_FIELDS),
    "_sq_types",
    "_sq_entry",
    "_private",
    "_",
    "",
    "data:",
    "data:status",
    "id",
    "self",
]

# Anything that UTF-8 can hold: no lone surrogates.
text = st.one_of(st.sampled_from(AWKWARD_TEXT), st.text(st.characters(exclude_categories=["Cs"])))
whole = st.one_of(st.integers(), st.sampled_from([2**53 + 1, -(2**63) - 1, 2**64, 2**70, -(2**70)]))
json_scalar = st.one_of(st.none(), st.booleans(), whole, st.floats(allow_nan=False, allow_infinity=False), text)
json = st.recursive(json_scalar, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=20)
json_container = st.lists(json) | st.dictionaries(text, json)
value = st.one_of(
    text,
    st.binary(),
    st.none(),
    st.booleans(),
    whole,
    st.floats(),
    json_container,
    st.lists(json).map(tuple),
    st.sets(text | whole | st.none()),
    st.frozensets(text | whole),
)
key = st.one_of(st.sampled_from(AWKWARD_KEYS), text)


def hash_of(payload: Any, codec: Codec[Any] = plain) -> Fields:
    """What Redis would hold, the engine's fields among it."""
    ours = {"timestamp": b"12.5", "status": b"queued", "retry_count": b"0", "_sq_entry": b"n1-0"}
    return {**ours, **fields_of(codec.encode(payload))}


def there_and_back(payload: Any, codec: Codec[Any] = plain) -> Any:
    return codec.decode("m", hash_of(payload, codec)).data


def same(one: Any, other: Any) -> bool:
    """Equal in value and type, all the way down; NaN equals itself, -0.0 is not 0.0, 1 is not True."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@given(st.dictionaries(key, value, max_size=8))
@example({name: name for name in AWKWARD_KEYS})
@example({name: name for name in AWKWARD_TEXT})
@example({"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "-0": -0.0, "tiny": 5e-324})
@example({"t": (), "s": set(), "z": frozenset(), "l": [], "d": {}, "b": b""})
def test_every_value_comes_back_as_it_was_put_in(payload):
    assert same(there_and_back(payload), payload)


@pytest.mark.parametrize("given_", [bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_other_buffers_come_back_as_bytes(given_):
    assert there_and_back({"x": given_}) == {"x": b"\x00\xff"}


class Colour(enum.IntEnum):
    RED = 1


class Kind(enum.StrEnum):
    A = "a"


class Loud(int):
    def __str__(self) -> str:
        return "loud"


class Louder(float):
    def __repr__(self) -> str:
        return "louder"


def test_subclasses_come_back_as_what_they_are_based_on():
    payload = {"i": Colour.RED, "s": Kind.A, "loud": Loud(3), "f": Louder(1.5), "d": collections.OrderedDict(a=1)}
    back = there_and_back(payload)
    assert back == {"i": 1, "s": "a", "loud": 3, "f": 1.5, "d": {"a": 1}}
    assert [type(item) for item in back.values()] == [int, str, int, float, dict]


@dataclasses.dataclass
class Point:
    x: int


def nested(depth: int) -> list[Any]:
    innermost: list[Any] = []
    for _ in range(depth - 1):
        innermost = [innermost]
    return innermost


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"x": "a\ud800b"}, "'x' cannot be encoded"),
        ({"\udfff": "x"}, "cannot be encoded"),
        ({"x": ["\ud800"]}, "'x'"),
        ({1: "x"}, "payload key 1 is a int"),
        ({b"k": "x"}, "payload key b'k' is a bytes"),
        ({None: "x"}, "payload key None is a NoneType"),
        ({"x": object()}, "'x' is a object"),
        ({"x": Point(1)}, "'x' is a Point"),
        ({"x": dt.datetime.now(dt.UTC)}, "'x' is a datetime"),
        ({"x": decimal.Decimal(1)}, "'x' is a Decimal"),
        ({"x": uuid.uuid4()}, "'x' is a UUID"),
        ({"x": 1j}, "'x' is a complex"),
        ({"x": [math.nan]}, "'x' would not come back"),
        ({"x": [math.inf]}, "'x' would not come back"),
        ({"x": [b"bytes"]}, "'x' would not come back"),
        ({"x": [(1, 2)]}, "'x' would not come back"),
        ({"x": [{1, 2}]}, "'x' would not come back"),
        ({"x": {1: 2}}, "'x' would not come back"),
        ({"x": {"y": Point(1)}}, "'x' would not come back"),
        ({"x": [dt.date(2020, 1, 1)]}, "'x' would not come back"),
        ({"x": {(1, 2)}}, "'x'"),
        ({"x": [object()]}, "'x'"),
        ({"x": nested(101)}, "'x' is nested deeper than 100"),
        ({"x": {"y": nested(100)}}, "'x' is nested deeper than 100"),
        ({"x": nested(100_000)}, "'x' is nested deeper than 100"),
        ({"x": 10 ** sys.get_int_max_str_digits()}, "'x' cannot be encoded"),
        ({"x": [10**5000]}, "'x'"),
        ([("x", 1)], "payload is a list"),
        ("x", "payload is a str"),
        (None, "payload is a NoneType"),
    ],
)
def test_what_would_not_come_back_is_refused(payload, words):
    with pytest.raises(InvalidMessage) as refusal:
        plain.encode(payload)
    assert words in str(refusal.value)


@pytest.mark.parametrize("payload", [nested(100), {"y": nested(99)}, [nested(99)] * 3])
def test_the_deepest_nesting_comes_back_even_from_a_deep_stack(payload):
    stored = hash_of({"x": payload})

    def deeper(frames: int) -> Any:
        return deeper(frames - 1) if frames else plain.decode("m", stored).data

    assert deeper(500) == {"x": payload}


def test_a_container_that_holds_itself_is_refused():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidMessage, match="nested deeper"):
        plain.encode({"x": loop})


def test_the_limit_counts_names_and_values_in_bytes():
    codec: Codec[Any] = Codec(None, 10)
    assert there_and_back({"ab": "12345678"}, codec) == {"ab": "12345678"}
    for payload in ({"ab": "123456789"}, {"a": "éééé", "b": "x"}):
        with pytest.raises(InvalidMessage, match=r"takes 11 bytes, 10 are allowed"):
            codec.encode(payload)


# ---- as old tools see it


def test_fields_are_readable_as_the_documented_queue_wrote_them():
    payload = {
        "user_id": "u1", "message": "hé\n", "n": 3, "f": 1.5, "yes": True, "none": None, "l": [1, "é"],
        "d": {"a": None}, "t": (1, 2), "b": b"raw", "message_id": 17,
    }  # fmt: skip
    stored = {name: raw.decode() for name, raw in hash_of(payload).items() if not name.startswith("_sq_")}
    assert stored == {
        "timestamp": "12.5", "status": "queued", "retry_count": "0",
        "user_id": "u1", "message": "hé\n", "n": "3", "f": "1.5", "yes": "True", "none": "None", "l": '[1,"é"]',
        "d": '{"a":null}', "t": "[1,2]", "b": "raw", "message_id": "17",
    }  # fmt: skip


def test_keys_that_are_the_engines_are_stored_under_another_name():
    fields = hash_of({"status": "mine", "_x": "mine", "data:y": "mine", "request_id": "r"})
    assert fields["status"] == b"queued"
    assert {name for name, raw in fields.items() if raw == b"mine"} == {"data:status", "data:_x", "data:data:y"}
    assert fields["request_id"] == b"r"


OLD = {
    "request_id": b"123", "user_id": b"7", "message": b"true", "source_id": b"[1]", "response_token": b"1e5",
    "chat_id": b"None", "message_id": b"5", "source_type": b"discord", "chat_type": b"null",
    "timestamp": b"1700000000.25", "status": b"queued", "retry_count": b"2", "_has_callback": b"False",
    "dedup_key": b"p:dedup:x", "number": b"12", "list": b'[1, {"a": "b"}]', "words": b"hello", "none": b"None",
}  # fmt: skip


def test_an_old_producers_hash_is_read_by_the_old_rules():
    message = plain.decode("123", OLD)
    assert message.data == {
        "request_id": "123", "user_id": "7", "message": "true", "source_id": "[1]", "response_token": "1e5",
        "chat_id": "None", "message_id": "5", "source_type": "discord", "chat_type": "null",
        "number": 12, "list": [1, {"a": "b"}], "words": "hello", "none": "None",
    }  # fmt: skip
    assert (message.status, message.retries, message.enqueued_at) == (Status.QUEUED, 2, 1700000000.25)


@given(st.dictionaries(st.sampled_from([*AWKWARD_KEYS, *OLD, "_sq_deliveries", "_sq_crashes", "x"]), st.binary()))
@example({"x": b"[" * 100_000, "_sq_types": b'{"x":"j"}'})
@example({"x": b"[" * 100_000})
@example({"x": b"9" * 5000, "_sq_types": b'{"x":"i"}'})
@example({"x": b"1", "_sq_types": b'{"x":"?"}'})
@example({"x": b"1", "_sq_types": b"[" * 100_000})
@example({"retry_count": b"9" * 400, "_sq_deliveries": b"inf", "timestamp": b"nan", "_sq_crashes": b"1e300"})
@example({"x": b"[[1]]", "_sq_types": b'{"x":"s"}'})
@example({"x": b"5", "_sq_types": b'{"x":"t"}'})
def test_a_damaged_hash_never_raises(fields):
    message = plain.decode("m", {"timestamp": b"1", "_sq_types": b'{"x":"j"}', **fields})
    assert isinstance(message, Message)
    assert repr(message)


def test_a_value_written_over_by_hand_is_text_where_it_has_lost_its_type():
    fields = hash_of({"n": 1, "b": True, "l": [1], "none": None, "text": "x"})
    fields |= {"n": b"one", "b": b"yes", "l": b"[1", "none": b"something", "text": b"\xff"}
    assert plain.decode("m", fields).data == {
        "n": "one", "b": "yes", "l": "[1", "none": "something", "text": "\ufffd",
    }  # fmt: skip


def test_nothing_but_text_needs_no_types():
    assert encode_values({"a": "x", "b": ""}) == ({"a": b"x", "b": b""}, b"")


# ---- typed payloads


class Address(msgspec.Struct):
    street: str
    tags: set[str] = set()


class Email(msgspec.Struct):
    to: Address
    at: dt.datetime
    body: bytes = b""
    subject: str = "no subject"
    status: str = "mine"
    weights: dict[int, float] = {}
    copies: tuple[Address, ...] = ()
    limit: int | None = None


class Folder(msgspec.Struct):
    name: str
    inside: list[Folder] = []


emails: Codec[Email] = Codec(Email, MIB)
AT = dt.datetime(2024, 2, 29, 12, 30, 1, 250000, tzinfo=dt.UTC)


@given(
    st.builds(
        Email,
        to=st.builds(Address, street=text, tags=st.sets(text)),
        at=st.datetimes(timezones=st.just(dt.UTC)),
        body=st.binary(),
        subject=text,
        status=text,
        weights=st.dictionaries(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False)),
        copies=st.lists(st.builds(Address, street=text)).map(tuple),
        limit=st.none() | st.integers(-(2**63), 2**64 - 1),
    )
)
def test_a_struct_comes_back(email):
    assert there_and_back(email, emails) == email


def test_defaults_fill_what_an_older_producer_did_not_write():
    fields = hash_of(Email(Address("s"), AT), emails)
    del fields["subject"], fields["limit"]
    assert emails.decode("m", fields).data == Email(Address("s"), AT)


def test_a_struct_with_names_of_its_own():
    class Named(msgspec.Struct, rename="camel", tag="named", omit_defaults=True, forbid_unknown_fields=True):
        user_id: int
        error: str = ""

    assert there_and_back(Named(7, "e"), Codec(Named, MIB)) == Named(7, "e")


@pytest.mark.parametrize("wrong", [{"to": "x"}, None, Address("s"), "text"])
def test_another_type_is_refused(wrong):
    with pytest.raises(InvalidMessage, match="this queue takes Email"):
        emails.encode(wrong)


def test_a_field_of_the_wrong_type_is_refused_before_it_is_written():
    with pytest.raises(InvalidMessage, match=r"Expected `str`, got `int` - at `\$.to.street`"):
        emails.encode(Email(Address(5), AT))  # type: ignore[arg-type]


def test_a_body_that_does_not_fit_says_where():
    fields = hash_of(Email(Address("s"), AT), emails)
    fields["at"] = b"yesterday"
    with pytest.raises(InvalidMessage, match=r"message m: Invalid RFC3339 encoded datetime - at `\$.at`"):
        emails.decode("m", fields)


@pytest.mark.parametrize(
    "depth",
    [pytest.param(480, marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python can go deeper")), 20_000],
)
def test_a_body_nested_without_end_does_not_fit(depth):
    folders: Codec[Folder] = Codec(Folder, MIB)
    fields = hash_of(Folder("x"), folders)
    fields |= {"inside": b'[{"name":"","inside":' * depth + b"[]" + b"}]" * depth, "_sq_types": b'{"inside":"j"}'}
    with pytest.raises(InvalidMessage, match="message m: "):
        folders.decode("m", fields)


@pytest.mark.parametrize("kind", [dict, int, Point, "Email", msgspec.defstruct("Row", ["x"], array_like=True)])
def test_a_payload_type_that_is_no_struct_with_names_is_refused(kind):
    with pytest.raises(ConfigurationError, match="msgspec Struct"):
        Codec(kind, MIB)


def test_a_struct_nested_too_deep_is_refused():
    folder = Folder("innermost")
    for _ in range(200):
        folder = Folder("outer", [folder])
    with pytest.raises(InvalidMessage, match="nested"):
        Codec(Folder, MIB).encode(folder)


def test_changes_of_a_struct_are_refused():
    with pytest.raises(InvalidMessage, match="validated as a whole"):
        emails.encode_changes({"subject": "x"})


def test_types_that_no_other_message_has_are_not_kept():
    def decode(n: int) -> None:
        fields, types = encode_values({f"{n}_{i}": i for i in range(1000)})
        plain.decode("m", {**fields, "timestamp": b"1", "_sq_types": types})

    decode(0)
    tracemalloc.start()
    try:
        for n in range(1, 100):
            decode(n)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < MIB
    finally:
        tracemalloc.stop()
