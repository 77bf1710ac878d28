"""apply, as a whole: what was there is there, in its order, and runs once."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import pytest

from migrations.old_state import OldState, as_text, every_damage
from migrations.pictures import differences, exact
from migrations.steps import ids_of, move, move_clean, silent, work_off
from streams_queue import Queue
from streams_queue.errors import MigrationError
from streams_queue_migrations import plan


@pytest.fixture
def damaged(state: OldState) -> OldState:
    every_damage(state, 600)
    state.counter("retry_count", "no number")
    state.flush()
    return state


async def test_an_empty_database(queue: Queue[Any], client: Any):
    applied = await move_clean(queue)
    assert not applied.changed and applied.before == {"main": 0, "retry": 0, "scheduled": 0, "dlq": 0}
    assert client.hget(queue.keys.meta, "migration") == b"done"
    assert await work_off(queue) == []


async def test_every_kind_of_damage_in_one_queue(queue: Queue[Any], client: Any, damaged: OldState):
    counters = client.hgetall(damaged.key("stats"))
    before = {name: client.zrange(damaged.key("queue", name), 0, -1) for name in ("main", "retry", "dlq")}
    told: list[tuple[str, str]] = []
    applied = await move_clean(queue, told=told)
    assert applied.before == {name: len(before.get(name, ())) for name in ("main", "retry", "scheduled", "dlq")}
    assert applied.entered == len(damaged.main)

    assert client.zrange(damaged.key("queue", "main"), 0, -1) == damaged.main
    assert [fields[b"id"] for _, fields in client.xrange(damaged.key("stream"))] == damaged.main
    assert client.zrange(damaged.key("queue", "retry"), 0, -1) == damaged.retry
    assert client.zrange(damaged.key("queue", "dlq"), 0, -1) == damaged.dlq
    assert set(client.zrange(damaged.key("lost"), 0, -1)) == damaged.lost
    assert sorted(id for id, _ in told) == sorted(as_text(id) for id in damaged.lost), "each is told once"
    assert Counter(name for _, name in told) == applied.set_aside
    assert {name for name, ids in before.items() for id in ids if id in damaged.lost} == {"main", "retry", "dlq"}

    after = client.hgetall(damaged.key("stats"))
    assert int(after.pop(b"expired_messages")) == len(damaged.lost)
    damaged_ids = [id for id in damaged.lost if id.startswith((b"timeless", b"list"))]
    assert int(after.pop(b"outside_damaged")) == len(damaged_ids), "something stands there, and it is no body"
    assert after == counters, "carried on as they were, a counter that is no number too"
    for id in damaged.main:
        ttl = client.ttl(damaged.key("msg", id))
        assert ttl == -1 if id.startswith(b"endless") else 3500 < ttl <= 3600
    for id in damaged.dlq:
        assert client.ttl(damaged.key("msg", id)) > 29 * 86400
    for id in damaged.dlq:
        slot = client.hget(damaged.key("msg", id), "dedup_key")
        assert not (slot and client.exists(slot)), "a dead letter holds up nobody"
    for id in damaged.retry:
        assert client.ttl(damaged.key("msg", id)) > 3500


async def test_a_second_run_changes_nothing(queue: Queue[Any], client: Any, damaged: OldState):
    assert (await move_clean(queue)).changed
    before = exact(client)
    report = client.hget(queue.keys.meta, "migration_report")
    told: list[tuple[str, str]] = []
    applied = await move_clean(queue, told=told)
    assert not applied.changed and not told
    assert exact(client) == before, differences(before, exact(client))
    assert client.hget(queue.keys.meta, "migration_report") == report


async def test_a_plan_changes_nothing_at_all(queue: Queue[Any], client: Any, damaged: OldState):
    before = exact(client)
    planned = await plan(queue, silent, watch=0)
    assert exact(client) == before
    main, retry, _, dlq = planned.censuses
    assert main.ids == len(damaged.sets["main"]) and planned.bytes_needed == 150 * len(damaged.main)
    assert main.found["no_entry"] == len(damaged.main)
    assert main.found["bodiless"] + main.found["damaged"] == len(damaged.lost & set(damaged.sets["main"]))
    assert main.found["left_in_work"] == sum(id.startswith((b"left", b"locked")) for id in damaged.main)
    assert main.found["locked"] == sum(id.startswith(b"locked") for id in damaged.main)
    assert main.found["ends_soon"] == sum(id.startswith(b"ends") for id in damaged.main)
    assert main.found["undecodable"] == sum(id.startswith((b"latin", b"\xff")) for id in damaged.main)
    odd = (b"ms", b"negative", b"ahead", b"inf", b"minus-inf")
    assert main.found["no_time"] == sum(id.startswith(odd) for id in damaged.main)
    twice = set(damaged.sets["retry"]) & set(damaged.sets["main"])
    assert retry.found["two_places"] == len(twice)
    assert dlq.found["two_places"] == len(set(damaged.sets["dlq"]) & ({*damaged.sets["main"], *damaged.sets["retry"]}))
    assert dlq.found["bodiless"] == len(damaged.lost & set(damaged.sets["dlq"]))
    assert planned.migrated_at is None and planned.refusals == []
    await move_clean(queue)
    again = await plan(queue, silent, watch=0)
    assert again.migrated_at == pytest.approx(time.time(), abs=60) and again.bytes_needed == 0


async def test_each_message_runs_once_and_in_order(queue: Queue[Any], client: Any, damaged: OldState):
    for key in client.scan_iter(damaged.key("lock", "*")):
        client.delete(key)  # those of dead workers run out in their time
    client.delete(damaged.key("queue", "retry"))
    damaged.sets["retry"].clear()
    await move_clean(queue)
    seen = await work_off(queue)
    assert [message.id for message in seen] == ids_of(damaged, "main")
    assert client.zcard(damaged.key("queue", "main")) == client.xlen(damaged.key("stream")) == 0
    values = next(message.data for message in seen if message.id.startswith("values-"))
    assert {name: values[name] for name in ("number", "items", "table", "flag", "digits")} == {
        "number": 5, "items": [1, "a"], "table": {"a": None}, "flag": "True", "digits": 123,
    }  # fmt: skip


@pytest.mark.parametrize("scores", ["apart", "equal", "few"])
async def test_the_order_of_two_thousand_ids_is_kept(queue: Queue[Any], client, state: OldState, scores: str):
    chosen, now = random.Random(scores), time.time() - 9000
    names = [f"id-{chosen.getrandbits(64):x}" for _ in range(2000)]
    for n, name in enumerate(names):
        state.queued(name, now + {"apart": n / 1000, "equal": 0, "few": chosen.randrange(5)}[scores])
    state.flush()
    ranks = {id: client.zrank(state.key("queue", "main"), id) for id in state.main}
    await move_clean(queue)
    assert [fields[b"id"] for _, fields in client.xrange(state.key("stream"))] == state.main
    assert {id: client.zrank(state.key("queue", "main"), id) for id in state.main} == ranks
    sampled = chosen.sample(ids_of(state, "main"), 50)
    assert [await queue.position(id) for id in sampled] == [ranks[id.encode()] + 1 for id in sampled]
    assert [message.id for message in await work_off(queue)] == ids_of(state, "main")


async def test_chat_requests_are_found_by_their_user_and_stay_text(server, client: Any):
    state = OldState(client, "chat_api")
    now = time.time() - 100
    for n in range(30):
        state.queued(f"r{n}", now + n, chat=(f"{n % 3}", "true" if n < 3 else f"{n}"))
    state.flush()
    async with Queue("chat_api", url=server.url) as queue:
        await move_clean(queue)
        for user in ("0", "1", "2"):
            assert client.zrange(queue.keys.user(user), 0, -1) == [f"r{n}".encode() for n in range(int(user), 30, 3)]
            assert 0 < client.ttl(queue.keys.user(user)) <= 3600
        seen = await work_off(queue)
    assert [message.id for message in seen] == [f"r{n}" for n in range(30)]
    for n, message in enumerate(seen):
        assert message.data["user_id"] == f"{n % 3}" and message.data["message"] == ("true" if n < 3 else f"{n}")
        assert message.data["source_id"] == "-100", "a number of the chat platform stays text"
    assert not list(client.scan_iter("chat_api:dedup:*")) and not list(client.scan_iter("chat_api:user:*"))


async def test_messages_that_arrive_after_the_move_come_behind(queue: Queue[Any], client, damaged: OldState):
    await move_clean(queue)
    await queue.enqueue({"text": "new"}, id="new")
    assert await queue.position("new") == len(damaged.main) + 1
    assert client.zrange(damaged.key("queue", "main"), -1, -1) == [b"new"]


async def test_deleted_streams_are_made_again_in_order(queue: Queue[Any], client, damaged: OldState):
    await move_clean(queue)
    client.delete(damaged.key("stream"))
    applied = await move_clean(queue)
    assert applied.entered == len(damaged.main)
    assert [fields[b"id"] for _, fields in client.xrange(damaged.key("stream"))] == damaged.main


async def test_what_a_killed_producer_left_without_a_place_is_no_fault_of_the_move(queue: Queue[Any], state: OldState):
    state.body("half-done", ttl=None)
    state.body("half-done too")
    state.queued("a")
    state.flush()
    applied = await move_clean(queue)
    assert {check.name: check.examples for check in applied.verified.checks if not check.holds} == {
        "strays": ["half-done"], "passing": ["half-done too"],
    }  # fmt: skip
    await queue.connection.client.delete(queue.keys.message("half-done"))


@pytest.mark.leaks("the list stands where the statistics should, as another program left it")
@pytest.mark.parametrize("key", ["queue:main", "queue:retry", "queue:dlq", "stats", "stream", "meta", "lost"])
async def test_a_key_of_another_type_refuses_forced_or_not(queue: Queue[Any], client, state: OldState, key: str):
    state.queued("a")
    state.flush()
    state.list_instead(key)
    state.flush() if key != "stats" else state._pipeline.execute()
    before = exact(client)
    for force in (False, True):
        with pytest.raises(MigrationError, match=f"{key} is a list, not a .*RENAME"):
            await move(queue, force=force)
    assert (await plan(queue, silent, watch=0)).refusals[0].name == "wrong_type"
    assert exact(client) == before
