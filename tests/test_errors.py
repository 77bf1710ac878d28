import pickle

import pytest

from streams_queue import errors


def every(root: type[BaseException]) -> set[type[BaseException]]:
    return {root}.union(*(every(child) for child in root.__subclasses__()))


TREE = sorted((e for e in every(errors.StreamsQueueError) if e.__module__ == errors.__name__), key=str)


def test_the_module_exports_the_tree_and_draws_it():
    assert {error.__name__ for error in TREE} == set(errors.__all__)
    assert all(error.__name__ in (errors.__doc__ or "") for error in TREE)
    assert all(error.__doc__ for error in TREE)


@pytest.mark.parametrize("kind", TREE)
def test_errors_survive_pickling(kind):
    arguments = {errors.HandlerFailed: ("boom", "retries exhausted")}.get(kind, ("no",))
    error = kind(*arguments)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_what_errors_carry():
    full = errors.QueueFull("full", retry_after=1.5)
    assert (str(full), full.retry_after) == ("full", 1.5)
    assert errors.RateLimited("slow").retry_after is None
    failed = errors.HandlerFailed("ValueError: x", "max_retries")
    assert (failed.error, failed.reason, str(failed)) == (
        "ValueError: x",
        "max_retries",
        "max_retries: ValueError: x",
    )
