"""The pipeline: work on pieces by several threads, with ordered results and a bounded number in progress.

Errors            An exception of a piece's work is raised where its result is awaited; then no new piece is
                  begun, and those in progress are awaited.
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
    """The results of `work` on each piece, in the order of the pieces; twice as many pieces as threads are in
    progress."""
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
