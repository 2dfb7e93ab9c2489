"""One pure function over a stream of chunks, in several processes, results in the order of the chunks.

What: the first chunks are done here; only when there are more are processes started (each costs a second of imports),
so a small preparation starts none. At most a few chunks are under way, which bounds memory. The function gets its state
once a process and depends on nothing else, so neither the number of processes nor the size of chunks changes a result.
Why spawn: a forked process inherits locks that torch's and the tokenizer's threads hold.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import connection
from typing import Any, TypeVar

from luthier.errors import LuthierError

A = TypeVar("A")
B = TypeVar("B")
ALONE_CHUNKS = 4
MAX_UNDER_WAY = 3
"""Chunks under way for each process."""
_work: dict[str, Any] = {}


def num_workers(wanted: int | None) -> int:
    """Processes to use: as wanted, by default the processors that this process may use, at most 8."""
    return wanted or min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def in_order(work: Callable[[Any, A], B], state: Any, chunks: Iterable[A], workers: int) -> Iterator[B]:
    """work(state, chunk) for every chunk, in order. work: a module's function; state and chunks: picklable."""
    stream = iter(chunks)
    yield from (work(state, chunk) for chunk in (stream if workers < 2 else islice(stream, ALONE_CHUNKS)))
    rest = list(islice(stream, 1))
    if not rest:
        return
    stream = chain(rest, stream)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(work, state)) as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for chunk in stream:
                waiting.append(pool.submit(_do, chunk))
                if len(waiting) >= MAX_UNDER_WAY * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise LuthierError(
                "a worker process ended before its work was done (killed, or out of memory)",
                hint="run again, with fewer processes if memory is short (data.workers: 1); a script of your own "
                "must call this under if __name__ == '__main__'",
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _begin(work: Callable[[Any, Any], Any], state: Any) -> None:
    _work["work"], _work["state"] = work, state
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot stop its pool, and the pool's pipes do not close by themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _do(chunk: Any) -> Any:
    return _work["work"](_work["state"], chunk)
