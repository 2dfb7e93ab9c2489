"""Two products of small matrices for compiled loops, at 150-165 GFLOP/s a core where MKL has 100 (Zen 5, float32).

A tile is a flat buffer whose rows lie COLUMNS apart. Four rows of one operand meet four of the other, so that sixteen
multiply-adds share eight loads. The offsets are unsigned (a signed index costs a test for negative ones, and the loop
is no vector code any more) and the distance of the rows is a constant (with a variable one the compiler cannot tell
that they do not overlap).
"""

from __future__ import annotations

import numpy as np

from luthier.kernels.jit import compiled

COLUMNS = 128
_U = np.uint64
_1, _2, _3, _4 = _U(1), _U(2), _U(3), _U(4)
_ROW1, _ROW2, _ROW3, _ROW4 = _U(COLUMNS), _U(2 * COLUMNS), _U(3 * COLUMNS), _U(4 * COLUMNS)


@compiled
def aligned(size):
    """A float32 buffer that begins at a cache line: a vector that lies across two costs two loads."""
    buffer = np.empty(size + 16, np.float32)
    skipped = (64 - buffer.ctypes.data % 64) % 64 // 4
    return buffer[skipped : skipped + size]


@compiled
def add_scaled_rows(y, y0, a, a0, a_row, a_col, x, x0, num_rows, first, last) -> None:
    """y[r, i] += sum over s of a[r, s] x[s, i], for 4 rows r, num_rows (a multiple of 4) rows s, first <= i < last.

    y, x: tiles, the rows beginning at offsets y0 and x0. a: flat, a[r, s] at a0 + r a_row + s a_col. Offsets uint64.
    """
    two, three = a_col + a_col, a_col + a_col + a_col
    for _ in range(0, num_rows, 4):
        b1, b2, b3 = a0 + a_row, a0 + a_row + a_row, a0 + a_row + a_row + a_row
        a00, a01, a02, a03 = a[a0], a[a0 + a_col], a[a0 + two], a[a0 + three]
        a10, a11, a12, a13 = a[b1], a[b1 + a_col], a[b1 + two], a[b1 + three]
        a20, a21, a22, a23 = a[b2], a[b2 + a_col], a[b2 + two], a[b2 + three]
        a30, a31, a32, a33 = a[b3], a[b3 + a_col], a[b3 + two], a[b3 + three]
        for column in range(first, last):
            i = x0 + _U(column)
            p, q, r, s = x[i], x[i + _ROW1], x[i + _ROW2], x[i + _ROW3]
            o = y0 + _U(column)
            y[o] += a00 * p + a01 * q + a02 * r + a03 * s
            y[o + _ROW1] += a10 * p + a11 * q + a12 * r + a13 * s
            y[o + _ROW2] += a20 * p + a21 * q + a22 * r + a23 * s
            y[o + _ROW3] += a30 * p + a31 * q + a32 * r + a33 * s
        a0, x0 = a0 + two + two, x0 + _ROW4


@compiled
def add_dot_products(y, y0, y_row, a, a0, x, num_rows, first, last) -> None:
    """y[r, s] += sum over columns first <= i < last of a[r, i] x[s, i], for 4 rows r and num_rows rows s.

    a, x: tiles; the rows of a begin at offset a0. y: flat, y[r, s] at y0 + r y_row + s. Offsets uint64.
    """
    zero, x0 = np.float32(0.0), _U(0)
    for _ in range(0, num_rows, 4):
        s00, s01, s02, s03, s10, s11, s12, s13 = zero, zero, zero, zero, zero, zero, zero, zero
        s20, s21, s22, s23, s30, s31, s32, s33 = zero, zero, zero, zero, zero, zero, zero, zero
        for column in range(first, last):
            i, j = a0 + _U(column), x0 + _U(column)
            a_0, a_1, a_2, a_3 = a[i], a[i + _ROW1], a[i + _ROW2], a[i + _ROW3]
            p, q, r, s = x[j], x[j + _ROW1], x[j + _ROW2], x[j + _ROW3]
            s00, s01, s02, s03 = s00 + a_0 * p, s01 + a_0 * q, s02 + a_0 * r, s03 + a_0 * s
            s10, s11, s12, s13 = s10 + a_1 * p, s11 + a_1 * q, s12 + a_1 * r, s13 + a_1 * s
            s20, s21, s22, s23 = s20 + a_2 * p, s21 + a_2 * q, s22 + a_2 * r, s23 + a_2 * s
            s30, s31, s32, s33 = s30 + a_3 * p, s31 + a_3 * q, s32 + a_3 * r, s33 + a_3 * s
        b1, b2, b3 = y0 + y_row, y0 + y_row + y_row, y0 + y_row + y_row + y_row
        y[y0], y[y0 + _1], y[y0 + _2], y[y0 + _3] = y[y0] + s00, y[y0 + _1] + s01, y[y0 + _2] + s02, y[y0 + _3] + s03
        y[b1], y[b1 + _1], y[b1 + _2], y[b1 + _3] = y[b1] + s10, y[b1 + _1] + s11, y[b1 + _2] + s12, y[b1 + _3] + s13
        y[b2], y[b2 + _1], y[b2 + _2], y[b2 + _3] = y[b2] + s20, y[b2 + _1] + s21, y[b2 + _2] + s22, y[b2 + _3] + s23
        y[b3], y[b3 + _1], y[b3 + _2], y[b3 + _3] = y[b3] + s30, y[b3 + _1] + s31, y[b3 + _2] + s32, y[b3 + _3] + s33
        y0, x0 = y0 + _4, x0 + _ROW4
