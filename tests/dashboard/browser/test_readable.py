"""Whoever reads it: without a mouse, on a phone, by night, without scripts; and whatever messages have in them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, expect

from dashboard.serving import PREFIX, Board
from helpers import Held, running, work, worker_of
from streams_queue import Limits, Reject

QUEUE = f"queues/{PREFIX}"
LONG = "long" * 32
"""An id of the greatest length."""

MARKUP = """<script>complained("ran")</script><img src=x onerror=complained("ran")><svg onload=complained("ran")>"""
HOSTILE = (
    MARKUP + """"'><a href='javascript:complained("ran")'>a</a>{{7*7}}${7*7}&lt;b&gt;\x1b[31m\u202egnp.exe\r\nX: y"""
)

PAGES = [
    "", QUEUE, f"{QUEUE}/messages", f"{QUEUE}/messages?user=u1", f"{QUEUE}/messages?id=nobody", f"{QUEUE}/dead",
    f"{QUEUE}/message?id={LONG}", f"{QUEUE}/message?id=d1", f"{QUEUE}/dead/edit?id=d1", f"{QUEUE}/dead?text=nothing",
    f"{QUEUE}/dead?reason=boredom", f"{QUEUE}/limits", f"{QUEUE}/nowhere",
]  # fmt: skip

CONTRASTS = """
() => {
  const channels = color => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(channels(getComputedStyle(e).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0, 1] : [255, 255, 255, 1];
    return layers.reduceRight((under, top) => over(top, under), canvas);
  };
  const luminance = color => {
    const [r, g, b] = color.map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const measure = (element, style, words) => {
    const under = ground(element);
    const [a, b] = [luminance(over(channels(style.color), under)), luminance(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, `${element.localName}.${element.className}: ${words.slice(0, 40)}`]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, words = walker.currentNode.data.trim();
    if (words && element.checkVisibility()) measure(element, getComputedStyle(element), words);
  }
  for (const input of document.querySelectorAll("input[placeholder]"))
    measure(input, getComputedStyle(input, "::placeholder"), input.placeholder);
  return found;
}
"""

FOCUS = """
() => {
  const element = document.activeElement, style = getComputedStyle(element), box = element.getBoundingClientRect();
  const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  const inside = box.width > 0 && box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth;
  const hit = document.elementFromPoint(box.left + Math.min(box.width / 2, 5), box.top + box.height / 2);
  return [element.localName + " " + (element.getAttribute("aria-label") || element.textContent || element.name).trim(),
          outlined && inside && element.contains(hit)];
}
"""


@pytest.fixture
async def full(queue, server):
    """Something to read on every page: a line, a worker at work, retries, and dead letters with long words."""
    await queue.enqueue({"user_id": "u1", "sku": "A-1"}, id=LONG)
    for n in range(3):
        await queue.enqueue({"user_id": "u1", "sku": "x" * 200}, id=f"d{n}")

    async def refuse(message):
        if message.id == LONG:
            raise RuntimeError("later")
        raise Reject(f"no stock {'x' * 300}")

    await work(queue, refuse, retry_delay=600.0)
    await queue.set_limits(Limits(key="user_id", concurrency_per_key=2, max_length=1000))
    await queue.enqueue_many([{"user_id": "u1"}] * 5)
    held = Held()
    async with running(worker_of(queue, held.handle, concurrency=2)):
        await held.holds(2)
        yield
        held.go.set()


async def every_page(page: Page, board: Board) -> AsyncIterator[str]:
    """Open one page after the other, each kind of them, and tell its name."""
    for path in PAGES:
        await page.goto(board / path)
        yield path.partition("/")[2].replace(LONG, "long")
    await page.goto(board / f"{QUEUE}/dead")
    await page.get_by_label("Mark d1").check()
    await page.get_by_role("button", name="Delete …").first.click()
    await page.wait_for_load_state()
    yield "confirm"
    await page.goto(board / f"{QUEUE}/limits")
    await page.get_by_label("accept", exact=True).fill("often")
    await page.get_by_role("button", name="Save").click()
    await page.wait_for_load_state()
    yield "limits-refused"
    await page.goto(board / f"{QUEUE}/dead/edit?id=d1")
    await page.get_by_label("Payload, as JSON").fill("{")
    await page.get_by_role("button", name="Save", exact=True).click()
    await page.wait_for_load_state()
    yield "refused"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_word_stands_out_from_its_ground(visit, board, full, shoot, scheme):
    page = await visit(board.address, scheme=scheme)
    grounds = set()
    async for name in every_page(page, board):
        found = await page.evaluate(CONTRASTS)
        assert len(found) > 5, name
        assert [row for row in found if row[0] < 4.5] == [], name
        grounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
        await shoot(page, name)
    (ground,) = grounds
    assert ground == {"light": "rgb(247, 247, 245)", "dark": "rgb(16, 18, 22)"}[scheme]


async def test_on_a_phone_nothing_is_wider_than_it(visit, board, full, shoot):
    page = await visit(board.address, width=360, has_touch=True, is_mobile=True)
    async for name in every_page(page, board):
        widths = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths == [360, 360], name
        await shoot(page, name)


async def _tab_to(page: Page, name: str, most: int = 40) -> None:
    """Press Tab until this has the focus; everything on the way can be seen to have it."""
    await page.wait_for_load_state()  # its style sheet is there
    passed = []
    for _ in range(most):
        await page.keyboard.press("Tab")
        element, is_visible = await page.evaluate(FOCUS)
        passed.append(element)
        assert is_visible, f"{element}: one does not see that it has the focus"
        if element == name:
            return
    raise AssertionError(f"{name} is not among {passed}")


async def test_a_dead_letter_is_found_and_requeued_by_keyboard(visit, board, queue, full, shoot):
    page = await visit(board.address)
    await page.keyboard.press("Tab")
    assert (await page.evaluate(FOCUS))[0] == "a Skip to the content"
    await page.keyboard.press("Enter")
    await _tab_to(page, f"a {PREFIX}")
    await shoot(page, "overview")
    await page.keyboard.press("Enter")
    await page.wait_for_url(board / QUEUE)
    await _tab_to(page, "a Dead letters")
    await page.keyboard.press("Enter")
    await page.wait_for_url(board / f"{QUEUE}/dead")
    await _tab_to(page, "input text")
    await page.keyboard.type("d1 no such")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("No such dead letters.")).to_be_visible()
    await _tab_to(page, "a Clear")
    await page.keyboard.press("Enter")
    await page.wait_for_url(board / f"{QUEUE}/dead")
    await _tab_to(page, "input Mark d1")
    await page.keyboard.press("Space")
    await shoot(page, "marked")
    await _tab_to(page, "button Requeue …")
    await page.keyboard.press("Enter")
    await page.wait_for_url(board / f"{QUEUE}/dead/confirm")
    await _tab_to(page, "button Requeue 1 dead letter")
    await shoot(page, "asked")
    await page.keyboard.press("Space")
    await expect(page.get_by_role("status").filter(has_text="1 requeued.")).to_be_visible()
    assert (await queue.get("d1")).status in {"queued", "processing"}


async def test_without_scripts_all_but_live_pages_works(visit, board, queue, full, shoot):
    page = await visit(board.address, scripts=False)
    await page.get_by_role("link", name=PREFIX, exact=True).click()
    await page.get_by_role("button", name="Pause").click()
    await expect(page.get_by_role("button", name="Resume")).to_be_visible()
    assert (await queue.stats()).paused
    await page.get_by_role("link", name="Messages").click()
    await page.get_by_label("User", exact=True).fill("u1")
    await page.get_by_role("button", name="Find").last.click()
    await expect(page.get_by_role("heading", name="Unfinished messages of u1")).to_be_visible()
    await page.goto(board / f"{QUEUE}/dead")
    await expect(page.get_by_label("Mark all")).to_be_hidden()
    await page.get_by_label("Mark d0").check()
    await page.get_by_role("button", name="Delete …").first.click()
    await page.get_by_role("button", name="Delete 1 dead letter").click()
    await expect(page.get_by_text("1 deleted.")).to_be_visible()
    await page.get_by_role("link", name="d1", exact=True).click()
    await page.get_by_role("link", name="Edit and requeue").click()
    await page.get_by_label("Payload, as JSON").fill('{"sku": "B-1"}')
    await page.get_by_role("button", name="Save and requeue").click()
    await expect(page.get_by_text("1 requeued.")).to_be_visible()
    await shoot(page)
    assert (await queue.get("d1")).data == {"sku": "B-1"}


async def test_hostile_words_stay_words(visit, board, queue, redis, shoot):
    """Whatever outsiders choose: payloads, errors, ids, statuses, holders, users; shown, sent live, searched for."""

    async def refuse(message):
        raise Reject(HOSTILE)

    payload = {"user_id": HOSTILE, HOSTILE: [HOSTILE, {"deep": HOSTILE}]}
    await queue.enqueue(payload, id="bad")
    await work(queue, refuse)
    body = {"timestamp": 1, "status": HOSTILE, "_sq_reason": HOSTILE, "error": HOSTILE, "_sq_owner": HOSTILE}
    for where in ("main", "dlq"):
        id = f"{HOSTILE}{where}"
        await redis.zadd(f"{PREFIX}:queue:{where}", {id: 1})
        await redis.hset(f"{PREFIX}:msg:{id}", mapping=body)
        await redis.expire(f"{PREFIX}:msg:{id}", 60)
    await redis.hset(f"{PREFIX}:stats", HOSTILE, 3)
    page = await visit(board / QUEUE)
    await expect(page.locator("#live-state")).to_have_text("live")
    await expect(page.locator("#head tbody tr")).to_have_count(1)
    await shoot(page, "queue")
    for path in (f"{QUEUE}/messages", f"{QUEUE}/dead"):
        await page.goto(board / path)
        await page.locator("a.id").last.click()
        await expect(page.locator("h1")).to_contain_text('<script>complained("ran")')
    await page.goto(board / f"{QUEUE}/message?id=bad")
    await expect(page.locator("pre").last).to_contain_text('<script>complained(\\"ran\\")')
    await shoot(page, "message")
    await page.get_by_role("link", name="Edit and requeue").click()
    assert "<script>" in await page.get_by_label("Payload, as JSON").input_value()
    for name in ("Message", "User"):
        await page.goto(board / f"{QUEUE}/messages")
        await page.get_by_label(name, exact=True).fill(MARKUP)
        await page.get_by_label(name, exact=True).press("Enter")
        await expect(page.locator("h2").first).to_contain_text("<script>")
    await page.goto(board / f"{QUEUE}/dead")
    await page.get_by_label("Words in the error or payload").fill(MARKUP)
    await page.get_by_role("button", name="Filter").click()
    await expect(page.get_by_label("Words in the error or payload")).to_have_value(MARKUP)
    assert await page.locator("script:not([src]), img, a[href^=javascript]").count() == 0


async def test_complaints_are_heard(visit, board, complaints):
    """What the tests here rest on: a page that breaks the content policy, fails, or asks elsewhere is noticed."""
    page = await visit(board.address)
    await page.evaluate("""() => {
        document.body.append(Object.assign(document.createElement("script"), {textContent: "1"}));
        document.body.append(Object.assign(document.createElement("img"), {src: "http://elsewhere.invalid/"}));
        document.body.setAttribute("style", "color: red");
        alert("hello");
        setTimeout(() => { throw new Error("broken"); });
    }""")
    await page.wait_for_timeout(100)
    heard = "\n".join(complaints)
    complaints.clear()
    for words in ("CSP: script-src-elem", "CSP: img-src", "CSP: style-src-attr", "dialog: hello", "broken"):
        assert words in heard, words
