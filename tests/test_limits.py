"""Limits as values: what is allowed, how they are written and read."""

from __future__ import annotations

import pytest

from helpers import queue_at
from streams_queue import ConfigurationError, Limits, Rate

EVERYTHING = Limits(
    key="user_id", max_length=10, accept=Rate(30), accept_per_key=Rate(5, per=60), work=Rate(100, per=0.5),
    work_per_key=Rate(1, per=1.5), concurrency_per_key=2, normal_share=0.25, low_share=0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    "text, rate",
    [("30/s", Rate(30)), ("5/10s", Rate(5, per=10)), ("100/1m", Rate(100, per=60)), (" 1 / 1.5h ", Rate(1, per=5400))],
)
def test_a_rate_as_people_write_it(text, rate):
    assert Rate.parse(text) == rate
    assert Rate.parse(str(rate)) == rate


@pytest.mark.parametrize("text", ["", 30, "30", "0/s", "-1/s", "1.5/s", "30/0s", "30/x", "30 per second"])
def test_what_is_no_rate(text):
    with pytest.raises(ConfigurationError, match="rate"):
        Rate.parse(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ""}, {"key": 5}, {"max_length": 0}, {"max_length": True}, {"max_length": 1.5}, {"accept": "30/s"},
        {"key": "a", "concurrency_per_key": 1001}, {"concurrency_per_key": 1}, {"accept_per_key": Rate(1)},
        {"work_per_key": Rate(1)}, {"low_share": -0.1}, {"low_share": 1}, {"low_share": float("nan")},
        {"low_share": 0.5, "normal_share": 0.5}, {"normal_share": "0.1"},
    ],
)  # fmt: skip
def test_bad_limits_are_named(wrong):
    with pytest.raises(ConfigurationError, match=list(wrong)[-1]):
        Limits(**wrong)


async def test_they_are_the_queues_own(server, prefix):
    async with queue_at(server, prefix) as one, queue_at(server, prefix) as another:
        assert await one.limits() == Limits()
        await one.set_limits(EVERYTHING)
        assert await another.limits() == EVERYTHING
        await another.set_limits(Limits(max_length=5))
        assert await one.limits() == Limits(max_length=5)


@pytest.mark.parametrize("wrong", [None, {}, "30/s", Limits])
async def test_what_are_no_limits(server, prefix, redis, wrong):
    async with queue_at(server, prefix) as queue:
        with pytest.raises(ConfigurationError, match="is no Limits"):
            await queue.set_limits(wrong)
        assert not await redis.exists(f"{prefix}:meta")


async def test_what_is_at_its_default_is_not_written(server, prefix, redis):
    async with queue_at(server, prefix) as queue:
        await redis.hset(f"{prefix}:meta", "paused", "0")
        await queue.set_limits(EVERYTHING)
        await queue.set_limits(Limits())
        assert await redis.hgetall(f"{prefix}:meta") == {"paused": "0"}


async def test_a_key_named_like_a_field_of_the_engine(server, prefix, redis):
    async with queue_at(server, prefix) as queue:
        await queue.set_limits(Limits(key="status", concurrency_per_key=1))
        assert await redis.hget(f"{prefix}:meta", "limit_key") == "data:status"
        assert (await queue.limits()).key == "status"


@pytest.mark.parametrize(
    "field, value",
    [
        ("limit_accept", "fast"), ("limit_accept", "0/1.0"), ("limit_max_length", "-1"), ("limit_low_share", "2"),
        ("limit_low_share", "nan"), ("limit_concurrency_per_key", "1"), ("limit_key", ""),
    ],
)  # fmt: skip
async def test_a_limit_that_somebody_wrote_wrongly_is_none(server, prefix, redis, field, value):
    async with queue_at(server, prefix) as queue:
        await redis.hset(f"{prefix}:meta", field, value)
        assert await queue.limits() == Limits()
