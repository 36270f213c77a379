"""Work on pieces of an output ahead of those who wait for the results, in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from numcodecs import blosc

from gsio.errors import GsioError
from gsio.machine import available_memory, usable_cores
from gsio.processes import check_threads

Piece = TypeVar("Piece")
Result = TypeVar("Result")

AHEAD = 2  # times as many pieces as threads are in work or done


def ahead(
    work: Callable[[Piece], Result], pieces: Iterable[Piece], piece_nbytes: int, most_nbytes: int | None = None
) -> Iterator[Result]:
    """Yield `work(piece)` for all pieces, in their order; what it raises is raised in the place of its result.

    Parameters
    ----------
    piece_nbytes
        The memory that the work on a piece takes.
    most_nbytes
        The memory that all threads together may take; by default what is available.
    """
    most = available_memory() if most_nbytes is None else min(most_nbytes, available_memory())
    at_once = max(1, min(usable_cores(), most // max(1, piece_nbytes)))
    try:
        check_threads(at_once)
    except GsioError:  # the system allows no more: this thread does the work
        blosc.use_threads = False  # it has threads of its own for the main one
        yield from map(work, pieces)
        return
    todo, waiting = iter(pieces), deque[Future[Result]]()
    with ThreadPoolExecutor(at_once) as threads:
        try:
            waiting.extend(threads.submit(work, piece) for piece in islice(todo, AHEAD * at_once))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(threads.submit(work, piece) for piece in islice(todo, 1))
                yield result
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
