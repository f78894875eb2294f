"""The pipeline: work on pieces by several threads, the results in order, and never too many under way.

Errors            What a piece's work raises is raised where its result is waited for; nothing new is begun
                  then, and what is under way is waited for.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")

THREADS = max(4, min(16, 2 * (os.cpu_count() or 1)))
"""Enough that some read or write while others compress."""


def in_order(
    work: Callable[[Piece], Result], pieces: Iterable[Piece], threads: int = THREADS
) -> Iterator[Result]:
    """The results of `work` on each piece, in the order of the pieces; twice as many pieces as there are
    threads are under way."""
    with ThreadPoolExecutor(threads, thread_name_prefix="transfer") as pool:
        under_way: deque[Future[Result]] = deque()
        try:
            for piece in pieces:
                under_way.append(pool.submit(work, piece))
                if len(under_way) >= 2 * threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
