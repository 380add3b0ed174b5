"""Work that is done in a thread before it is asked for."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def prefetch(make: Callable[[], Made], count: int, depth: int) -> Generator[Made, None, None]:
    """What ``count`` calls return, in their order; up to ``depth`` of them are made before they are asked for.

    One thread makes all calls, so they need not be safe from each other. What a call raises is raised in its place. Closing
    the iterator waits for the call under way and makes no other.
    """
    with ThreadPoolExecutor(1, "prefetch") as thread:
        coming: deque[Future[Made]] = deque()
        try:
            for _ in range(count):
                coming.append(thread.submit(make))
                if len(coming) > depth:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)
