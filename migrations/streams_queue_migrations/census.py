"""Counting a queue, page by page; writes nothing."""

from streams_queue_migrations.door import NO_ENTRIES, START, Door
from streams_queue_migrations.model import QUEUES, Census, Progress


async def take_census(door: Door, progress: Progress, *, samples: int = 5, texts: bool = False) -> list[Census]:
    """What stands in each set. O(n), in pages of 500.

    Args:
        door: of the queue.
        progress: told after each page.
        samples: ids that are kept as examples of each peculiarity.
        texts: look at each value's encoding too, which reads all bodies.
    """
    sizes = await door.sizes()
    total, done = sum(sizes[queue] for queue in QUEUES), 0
    censuses = []
    for queue in QUEUES:
        census, cursor, last = Census(queue=queue), START, NO_ENTRIES
        while True:
            page = await door.look_at(queue, cursor, last, samples=samples, texts=texts)
            _add(census, page.found, page.examples, samples)
            census.ids += page.ids
            done += page.ids
            cursor, last = page.cursor, page.last
            progress("look", done, max(total, done))
            if cursor == START:
                break
        censuses.append(census)
    return censuses


def _add(census: Census, found: dict[str, int], examples: list[tuple[str, str]], samples: int) -> None:
    for name, times in found.items():
        census.found[name] = census.found.get(name, 0) + times
    for name, id in examples:
        kept = census.examples.setdefault(name, [])
        if len(kept) < samples:
            kept.append(id)
