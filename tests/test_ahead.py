"""Work ahead: in order, one item at most, on one thread, and it ends when it is told to."""

import threading
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebm_encode.bulk.ahead import ahead


@given(items=st.lists(st.integers()))
def test_the_items_come_in_their_order(items):
    assert list(ahead(iter(items), "test")) == items


def test_the_next_item_is_made_while_one_is_in_use():
    made = [threading.Event() for _ in range(3)]

    def source():
        for i, event in enumerate(made):
            event.set()
            yield i

    items = ahead(source(), "test")
    assert next(items) == 0
    assert made[1].wait(10), "made without being asked for"
    assert not made[2].wait(0.2), "but no more than one"
    assert list(items) == [1, 2]


def test_all_of_it_runs_on_one_other_thread():
    def source():
        for _ in range(5):
            yield threading.current_thread().name

    names = set(ahead(source(), "worker"))
    assert len(names) == 1
    assert names.pop().startswith("worker")


def test_an_error_comes_after_the_items_before_it():
    def source():
        yield 1
        raise LookupError("the second")

    items = ahead(source(), "test")
    assert next(items) == 1
    with pytest.raises(LookupError, match="the second"):
        next(items)


def test_closing_ends_the_thread_and_the_source():
    closed = []

    def source():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    with closing(ahead(source(), "to-end")) as items:
        assert next(items) == 0
    assert closed == [True]
    assert not [t for t in threading.enumerate() if t.name.startswith("to-end")]


def test_stages_may_be_chained():
    inner = ahead(iter(range(20)), "first")
    outer = ahead((i * i for i in inner), "second")
    assert list(outer) == [i * i for i in range(20)]
