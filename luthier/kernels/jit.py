"""Row loops compiled on this machine by numba, and the threads that share them.

torch runs a row-wise formula as one pass over memory per operator; compiled here it is one pass in all, which is most
of the cost beside the matrix products (quantising a row to int8: 0.8 ms against 4.8 ms, 1024 x 1536, one thread). numba
brings its own compiler, so that no C compiler is needed. Where it is absent every kernel has its plain-torch twin.
The machine code is kept beside the source or in the user's cache ($NUMBA_CACHE_DIR); where neither can be written it is
made at every start, also where the disk is full, and files that a power cut tore are made again.
"""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from pickle import UnpicklingError  # numba keeps its code pickled; here only the error is named
from typing import Any

import numpy as np
import torch

try:
    import numba
except ImportError:  # no wheel for this platform: the twins run
    numba = None

log = logging.getLogger(__name__)
MIN_ELEMENTS_PER_THREAD = 1 << 16  # below this, handing work to another thread costs more than it saves
_LOOPS_IN_A_LOOP = 32  # at least as many as any compiled loop calls, itself included


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as machine code that runs without the interpreter's lock; unchanged where numba is absent.

    Not fastmath as a whole: NaN and infinity must come out as they went in, so that the non-finite guard sees them.
    """
    if numba is None:
        return function
    compile_it = numba.njit(nogil=True, error_model="numpy", fastmath=FASTMATH)(function)
    with contextlib.suppress(RuntimeError):  # "no locator available": no folder for it can be written
        compile_it.enable_caching()
        if _others_can_write(Path(compile_it.stats.cache_path or "")):
            return numba.njit(nogil=True, error_model="numpy", fastmath=FASTMATH)(function)
    return compile_it


def _others_can_write(folder: Path) -> bool:
    """Whether any user of this machine could plant machine code there (numba unpickles and runs what it finds)."""
    with contextlib.suppress(OSError):
        return bool(folder.stat().st_mode & stat.S_IWOTH)
    return False


FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


def can_run(*tensors: torch.Tensor) -> bool:
    """Whether the compiled loops take these: float32 on the CPU, rows contiguous, more than one row's worth of work."""
    return numba is not None and all(
        x.dtype is torch.float32 and x.device.type == "cpu" and x.is_contiguous() for x in tensors
    )


@cache
def _pool(num_workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_workers, thread_name_prefix="rows")


def over_rows(kernel: Callable[..., Any], num_rows: int, row_elements: int, *args: Any) -> None:
    """kernel(first, last, *args) over all rows, in as many pieces as torch has threads. Pieces never share a row."""
    pieces = max(1, min(torch.get_num_threads(), num_rows, num_rows * row_elements // MIN_ELEMENTS_PER_THREAD))
    over_pieces(kernel, [num_rows * i // pieces for i in range(pieces + 1)], *args)


def over_pieces(kernel: Callable[..., Any], bounds: Sequence[int], *args: Any) -> None:
    """kernel(bounds[i], bounds[i + 1], *args) for every i, each by a thread of its own."""
    arrays = [x.detach().numpy() if isinstance(x, torch.Tensor) else x for x in args]
    pieces = len(bounds) - 1
    others = [_pool(pieces - 1).submit(_run, kernel, bounds[i], bounds[i + 1], *arrays) for i in range(1, pieces)]
    _run(kernel, bounds[0], bounds[1], *arrays)
    for other in others:
        other.result()


def _run(kernel: Callable[..., Any], *args: Any) -> None:
    """Calls it. Machine code is fetched and kept before a row is touched, so what fails there can be done again: kept
    code that is torn is made anew; code that cannot be kept (a full disk) stays in memory, a loop and each loop that
    it calls by an error of its own."""
    for _ in range(_LOOPS_IN_A_LOOP):
        try:
            return kernel(*args)
        except (EOFError, UnpicklingError):
            for index in Path(kernel.stats.cache_path).glob("*.nbi"):  # type: ignore[attr-defined]
                index.unlink(missing_ok=True)
        except OSError as error:
            _say_not_kept(kernel.stats.cache_path, error.strerror or str(error))  # type: ignore[attr-defined]
    kernel(*args)


@cache
def _say_not_kept(folder: str, reason: str) -> None:
    """Once a folder and reason."""
    log.warning("compiled loops cannot be kept in %s (%s): every start compiles them again", folder, reason)


@compiled
def exp32(x: np.float32) -> np.float32:
    """exp in float32, relative error below 3e-7, without a call: so the loops around it become vector code.

    2^n by writing the exponent's bits, the rest by a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf). Arguments are
    taken to [-87, 88]; NaN stays NaN.
    """
    clamped = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(clamped * np.float32(1.44269504088896341) + np.float32(0.5))
    f = clamped - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * f + np.float32(1.3981999507e-3)
    p = p * f + np.float32(8.3334519073e-3)
    p = p * f + np.float32(4.1665795894e-2)
    p = p * f + np.float32(1.6666665459e-1)
    p = p * f + np.float32(5.0000001201e-1)
    p = p * f * f + f + np.float32(1.0)
    bits = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
    return p * bits.view(np.float32)


@compiled
def largest32(x_D: np.ndarray) -> np.float32:
    """Largest number of a float32 row, NaN when one of a plain sign is in it.

    Through the bits, which in two's complement order as the numbers do once those of negative ones are turned over: a
    maximum of integers becomes vector code, one of floats does not (eleven times slower), because of NaN.
    """
    largest = np.int32(-(2**31))
    for j in range(len(x_D)):
        bits = np.float32(x_D[j]).view(np.int32)
        largest = np.int32(
            max(largest, np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF))))
        )
    return np.int32(largest ^ np.int32(np.int32(largest >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)
