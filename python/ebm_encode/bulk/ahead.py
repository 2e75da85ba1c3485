"""Work done some items ahead of its use."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_END: Any = object()


def ahead(
    source: Iterator[T], name: str, stop: Callable[[], None] = lambda: None, *, items: int = 1
) -> Generator[T, None, None]:
    """The items of an iterator, of which the next are made while one is in use.

    The whole iterator runs on one other thread, some items ahead. What it raises is raised
    here, after the items before it. Closing this waits for the item in hand, makes no further one,
    and closes the iterator, if that can be closed.

    Args:
        source: The iterator.
        name: The thread's name.
        stop: Called where this ends early, before the item in hand is waited for.
        items: How many.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
    try:
        waiting = deque(thread.submit(next, source, _END) for _ in range(items))
        while True:
            item = waiting.popleft().result()
            if item is _END:
                return
            waiting.append(thread.submit(next, source, _END))
            yield item
    except BaseException:
        stop()
        raise
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
        if isinstance(source, Generator):
            source.close()
