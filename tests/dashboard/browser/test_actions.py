"""Each action of the dashboard, done by hand: clicks and keys in a real browser, a real queue behind it."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import expect

from dashboard.serving import PREFIX, serving
from helpers import Held, running, work, worker_of
from streams_queue import Limits, Rate, Reject

QUEUE = f"queues/{PREFIX}"
DEAD = f"{QUEUE}/dead"


def count(page, word):
    """The number above or below a word, as `waiting` or `dead`."""
    return page.locator("dl.counts div").filter(has=page.get_by_text(word, exact=True)).locator("dd")


def button(page, name):
    return page.get_by_role("button", name=name)


def link(page, name):
    return page.get_by_role("link", name=name, exact=True)


async def give_up(queue, *payloads, reason="no stock"):
    """Dead letters d1, d2, ..., by a real worker."""
    for n, payload in enumerate(payloads, 1):
        await queue.enqueue(payload, id=f"d{n}")

    async def handle(message):
        raise Reject(f"{reason}: {message.data.get('sku')}")

    await work(queue, handle)


@pytest.fixture
async def dead(queue):
    await give_up(queue, *[{"sku": f"A-{n}", "user_id": f"u{n}", "response_token": f"hidden-{n}"} for n in range(1, 5)])


async def test_overview_and_queue(visit, board, queue, shoot):
    await queue.enqueue_many([{"sku": f"A-{n}"} for n in range(5)])
    held = Held()
    async with running(worker_of(queue, held.handle, concurrency=2)):
        await held.holds(2)
        page = await visit(board.address)
        for word, number in {"waiting": "3", "working": "2", "retry": "0", "scheduled": "0", "dead": "0"}.items():
            await expect(count(page, word)).to_have_text(number)
        await shoot(page, "all")
        await link(page, PREFIX).click()
        await expect(page.get_by_role("heading", name=PREFIX, level=1)).to_be_visible()
        await expect(count(page, "waiting")).to_have_text("3")
        worker = page.locator("#workers tbody tr")
        await expect(worker).to_have_count(1)
        await expect(worker.locator("a.id")).to_have_count(2)
        await expect(page.locator("#head tbody tr")).to_have_count(5)
        await expect(page.locator("svg.chart")).to_have_count(4)
        await page.get_by_text("The same as a table").click()
        await expect(page.get_by_role("columnheader", name="Minute")).to_be_visible()
        await shoot(page, "one")
        held.go.set()


async def test_search_by_id_and_a_messages_story(visit, board, queue, shoot):
    await queue.enqueue_many([{}] * 3)
    await queue.enqueue({"sku": "A-1", "api_key": "hidden-word"}, id="mine", priority="high")
    page = await visit(board / f"{QUEUE}/messages")
    await expect(page.locator("tbody tr")).to_have_count(4)
    await page.get_by_label("Message", exact=True).fill("mine")
    await page.get_by_label("Message", exact=True).press("Enter")
    await expect(page.get_by_role("heading", name="mine")).to_be_visible()
    story = page.locator("dl.story")
    await expect(story).to_contain_text("queued")
    await expect(story).to_contain_text("high")
    await expect(page.locator("pre")).to_contain_text('"sku": "A-1"')
    assert "hidden-word" not in await page.content()
    await shoot(page)
    await page.go_back()
    await page.get_by_label("Message", exact=True).fill("nobody")
    await button(page, "Find").first.click()
    await expect(page.get_by_text("Nothing is known of nobody")).to_be_visible()


async def test_search_by_user(visit, board, queue, shoot):
    for n in range(6):
        await queue.enqueue({"user_id": f"u{n % 3}"}, id=f"m{n}")
    page = await visit(board / f"{QUEUE}/messages")
    await page.get_by_label("User", exact=True).fill("u1")
    await button(page, "Find").last.click()
    await expect(page.locator("a.id")).to_have_text(["m1", "m4"])
    await shoot(page)
    await link(page, "m4").click()
    await expect(page.get_by_role("heading", name="m4")).to_be_visible()


async def test_dead_letters_filtered_and_looked_at(visit, board, dead, shoot):
    page = await visit(board.address)
    await count(page, "dead").get_by_role("link").click()
    await expect(page.get_by_text("4 dead letters")).to_be_visible()
    await page.get_by_label("Words in the error or payload").fill("a-3")
    await page.get_by_label("Reason").select_option("rejected")
    await page.get_by_label("Dead for less than").fill("1h")
    await button(page, "Filter").click()
    await expect(page.locator("tbody a.id")).to_have_text(["d3"])
    await shoot(page, "filtered")
    async with page.expect_download() as download:
        await link(page, "CSV").click()
    text = (await (await download.value).path()).read_text()
    assert "no stock: A-3" in text
    assert "hidden-3" not in text
    await link(page, "d3").click()
    await expect(page.locator("pre.error")).to_have_text("no stock: A-3\n")
    await shoot(page, "one")
    await page.go_back()
    await link(page, "Clear").click()
    await expect(page.locator("tbody a.id")).to_have_count(4)


async def test_a_dead_letter_requeued_from_its_page(visit, board, queue, dead, shoot):
    page = await visit(board / f"{QUEUE}/message?id=d2")
    await button(page, "Requeue").click()
    await expect(page.get_by_role("status")).to_contain_text("1 requeued.")
    await shoot(page)
    assert (await queue.get("d2")).status == "queued"


async def test_edit_and_requeue(visit, board, queue, dead, shoot):
    page = await visit(board / f"{QUEUE}/message?id=d1")
    await link(page, "Edit and requeue").click()
    payload = page.get_by_label("Payload, as JSON")
    shown = json.loads(await payload.input_value())
    assert shown == {"sku": "A-1", "user_id": "u1", "response_token": "***"}
    await payload.fill("{")
    await button(page, "Save and requeue").click()
    await expect(page.get_by_role("alert")).to_contain_text("this is no JSON")
    await expect(payload).to_have_value("{")
    await shoot(page, "refused")
    await payload.fill(json.dumps(shown | {"sku": "B-1"}))
    await button(page, "Save and requeue").click()
    await expect(page.get_by_role("status")).to_contain_text("1 requeued.")
    await shoot(page, "requeued")
    message = await queue.get("d1")
    assert message.status == "queued"
    assert message.data == {"sku": "B-1", "user_id": "u1", "response_token": "hidden-1"}


async def test_a_dead_letter_deleted(visit, board, queue, dead, shoot):
    page = await visit(board / f"{QUEUE}/message?id=d2")
    await button(page, "Delete …").click()
    await expect(page.get_by_role("heading", name="Delete 1 dead letter")).to_be_visible()
    await shoot(page)
    assert (await queue.stats()).dead == 4, "nothing happened so far"
    await button(page, "Delete 1 dead letter").click()
    await expect(page.get_by_role("status")).to_contain_text("1 deleted.")
    assert await queue.get("d2") is None


async def test_dead_letters_in_bulk(visit, board, queue, dead, shoot):
    page = await visit(board / DEAD)
    await page.get_by_label("Mark d1").check()
    await page.get_by_label("Mark d3").check()
    assert await page.get_by_label("Mark all").evaluate("box => box.indeterminate")
    await shoot(page, "marked")
    marked = page.get_by_role("group", name="Those that are marked")
    await button(marked, "Delete …").click()
    await expect(page.locator("ul.ids li")).to_have_text(["d3", "d1"])
    await shoot(page, "asked")
    await link(page, "Cancel").click()
    assert (await queue.stats()).dead == 4
    await page.get_by_label("Mark all").check()
    await page.get_by_label("Mark d3").uncheck()
    await page.get_by_label("Mark d4").uncheck()
    await button(marked, "Requeue …").click()
    await button(page, "Requeue 2 dead letters").click()
    await expect(page.get_by_role("status")).to_contain_text("2 requeued.")
    await shoot(page, "requeued")
    await page.get_by_label("Words in the error or payload").fill("A-4")
    await button(page, "Filter").click()
    await button(page.get_by_role("group", name="All that the filters leave"), "Delete …").click()
    await button(page, "Delete 1 dead letter").click()
    await expect(page.get_by_role("status")).to_contain_text("1 deleted.")
    stats = await queue.stats()
    assert (stats.main, stats.dead) == (2, 1)


async def test_pause_and_resume(visit, board, queue, shoot):
    await queue.enqueue({})
    page = await visit(board / QUEUE)
    await button(page, "Pause").click()
    await expect(page.get_by_text("Paused: workers take nothing new.")).to_be_visible()
    await shoot(page, "paused")
    assert (await queue.stats()).paused
    await button(page, "Resume").click()
    await expect(button(page, "Pause")).to_be_visible()
    await expect(page.get_by_text("Paused: workers take nothing new.")).to_be_hidden()
    assert not (await queue.stats()).paused


async def test_limits(visit, board, queue, shoot):
    page = await visit(board / QUEUE)
    await link(page, "Limits").click()
    await page.get_by_label("max-length").fill("none of your business")
    await page.get_by_label("work", exact=True).fill("30/s")
    await button(page, "Save").click()
    await expect(page.get_by_role("alert")).to_contain_text("is no number")
    await expect(page.get_by_label("work", exact=True)).to_have_value("30/s")
    await shoot(page, "refused")
    await page.get_by_label("max-length").fill("1000")
    await page.get_by_label("key", exact=True).fill("user_id")
    await page.get_by_label("concurrency-per-key").fill("1")
    await page.get_by_label("concurrency-per-key").press("Enter")
    await expect(page.get_by_role("status").filter(has_text="4 limits changed.")).to_be_visible()
    assert await queue.limits() == Limits(max_length=1000, work=Rate(30), key="user_id", concurrency_per_key=1)
    await expect(page.get_by_text("No message waits for its key.")).to_be_visible()
    await page.get_by_label("accept", exact=True).fill("half written")
    await queue.enqueue_many([{"user_id": f"user-{n % 2}", "n": n} for n in range(7)])
    held = Held()
    async with running(worker_of(queue, held.handle, concurrency=5)):
        await held.holds(2)
        rows = page.locator("#keys tbody tr")
        await expect(rows).to_have_count(2)  # by itself
        await expect(rows.first).to_contain_text("its key's turn")
        await expect(page.get_by_label("accept", exact=True)).to_have_value("half written")
        await shoot(page, "keys")
        await rows.first.locator("a.id").click()
        await expect(page.locator("dl.story")).to_contain_text("its key's turn")
        await shoot(page, "a message that waits")
        await page.goto(board / QUEUE)
        parked = page.locator("dl.facts div").filter(has=page.get_by_text("parked")).get_by_role("link")
        await expect(parked).to_have_text("5")
        await shoot(page, "now")
        await page.goto(board.address)
        await shoot(page, "overview")
        held.go.set()


async def test_a_waiting_messages_priority(visit, board, queue, shoot):
    await queue.enqueue({"sku": "A-1"}, id="m1")
    page = await visit(board / f"{QUEUE}/message?id=m1")
    await button(page, "Make it high").click()
    await expect(page.get_by_role("status").filter(has_text="The priority was changed.")).to_be_visible()
    await expect(page.locator("dl.story")).to_contain_text("high")
    await expect(button(page, "Make it high")).to_be_hidden()
    await shoot(page)
    assert (await queue.get("m1")).priority == "high"


async def test_pages_change_without_loading_again(visit, board, queue, shoot):
    """A worker begins, works and stops while somebody looks at two pages, one of them with a selection on it."""
    await queue.enqueue_many([{}] * 3)
    everything, one = await visit(board.address), await visit(board / QUEUE)
    for page in (everything, one):
        await expect(count(page, "waiting")).to_have_text("3")
        await expect(page.locator("#live-state")).to_have_text("live")
        await page.evaluate("window.loadedOnce = true")
    await link(everything, PREFIX).focus()
    await queue.enqueue_many([{}] * 1234)
    await expect(count(everything, "waiting")).to_have_text("1,237")
    await expect(count(one, "waiting")).to_have_text("1,237")
    await expect(link(everything, PREFIX)).to_be_focused()
    held = Held()
    async with running(worker_of(queue, held.handle, concurrency=3)):
        await held.holds(3)
        await expect(count(one, "working")).to_have_text("3")
        await expect(count(one, "waiting")).to_have_text("1,234")
        await expect(one.locator("#workers a.id")).to_have_count(3)
        await shoot(one)
        held.go.set()
        await queue.transitions.pause(True)
        await expect(one.get_by_text("Paused: workers take nothing new.")).to_be_visible()
    assert await everything.evaluate("loadedOnce") and await one.evaluate("loadedOnce")


async def test_read_only(visit, server, queue, dead, shoot):
    await queue.enqueue({}, id="m1")
    with serving(server, "--read-only") as board:
        page = await visit(board / QUEUE)
        await expect(page.get_by_text("read-only")).to_be_visible()
        await expect(page.locator("#live-state")).to_have_text("live")
        await expect(page.locator("form[method=post]")).to_have_count(0)
        await shoot(page, "queue")
        for address in (DEAD, f"{QUEUE}/message?id=d1"):
            await page.goto(board / address)
            await expect(page.get_by_text("read-only")).to_be_visible()
            await expect(page.locator("form[method=post], input[type=checkbox]")).to_have_count(0)
        await shoot(page, "letter")


async def test_log_in(visit, server, queue, chromium, shoot):
    await queue.enqueue({}, id="m1")
    with serving(server, "--user", "kim", STREAMS_QUEUE_DASHBOARD_PASSWORD="hidden-word") as board:
        page = await visit(board.address, http_credentials={"username": "kim", "password": "hidden-word"})
        await expect(page.get_by_text("kim")).to_be_visible()
        await link(page, PREFIX).click()
        await button(page, "Pause").click()
        await expect(button(page, "Resume")).to_be_visible()
        await expect(page.locator("#live-state")).to_have_text("live")
        await shoot(page, "in")
        stranger = await visit(board.address, http_credentials={"username": "kim", "password": "guessed"})
        await expect(stranger.get_by_text("a name and a password are needed")).to_be_visible()
        await shoot(stranger, "refused")
        log = board.log
    assert "pause by kim from 127.0.0.1" in log
    assert "refused GET /" in log
    assert "hidden-word" not in log and "guessed" not in log
