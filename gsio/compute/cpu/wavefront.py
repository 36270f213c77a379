"""The time steps and the staging that Numba compiles to vector code for the cores of this machine.

A field does not fit the cache, and a step does little with each cell: one by one, steps would wait for memory. So the
grid is cut into parts, some hundred columns wide, and up to `LEVELS` steps go over a part together, as a wavefront.
Level n holds rows after n steps; once three of its rows are there, level n + 1 can make the middle one. Here, three
steps together::

    level 3  . n . . .             n: made at this front, from three rows of the level below
    level 2  o o n . .             o: kept, in a ring of three rows; all rings are in the first-level cache
    level 1  . o o n .
    level 0  . . o o n             n: copied from the field, or set by the boundary outside it
             row ──▶ └ front

The last level is written to a second array, which is read the next time. A part makes for itself the cells beyond its
edges that it needs, one less per level and side. A cell has the same bits wherever the parts are cut, as the same
instructions make every copy of it.
"""

import platform
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import binding, ir
from numba import njit, prange, types
from numba.extending import intrinsic, overload, register_jitable

X86 = "x86_64", "AMD64"
if platform.machine() in X86 and numba.config.CPU_FEATURES is None:  # type: ignore[attr-defined]
    # Vectors of 512 bits where there are any; LLVM would take 256, which are 12 % slower here.
    features = f"{binding.get_host_cpu_features().flatten()},-prefer-256-bit"
    numba.config.CPU_FEATURES = features  # type: ignore[attr-defined]

LEVELS = 6  # more of them, or wider parts, would not fit the first-level cache; fewer would read the fields more often
PERIODIC, NEUMANN, ZERO = range(3)
AHEAD = 4  # rows that are fetched before they are needed: the hardware does not foresee where the next one starts
LINE = 64  # bytes of a cache line
PAD = 22  # cells between the rows of a ring
LANES = 16  # cells of the widest vector


class Constants(NamedTuple):
    """The numbers among `Coefficients`, all of the precision of the run."""

    centre: Any
    spread_u: Any
    spread_v: Any
    rest: Any
    dt: Any


@intrinsic
def _set_float_mode(typing_context, mode):  # type: ignore[no-untyped-def]
    """Set the calling thread's MXCSR register, where there is one, and return what it was.

    With FLUSH set, numbers too small to be normal count as zero: a step that meets them takes up to sixty times
    as long.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        if platform.machine() not in X86:
            return arguments[0]
        pointer = ir.IntType(8).as_pointer()
        function = ir.FunctionType(ir.VoidType(), [pointer])
        old, new = builder.alloca(ir.IntType(32)), builder.alloca(ir.IntType(32))
        builder.store(arguments[0], new)
        for name, place in (("stmxcsr", old), ("ldmxcsr", new)):
            instruction = builder.module.declare_intrinsic(f"llvm.x86.sse.{name}", (), function)
            builder.call(instruction, [builder.bitcast(place, pointer)])
        return builder.load(old)

    return types.uint32(types.uint32), generate


@intrinsic
def _prefetch(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Have the cache line of ``array[index]`` fetched."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        function = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [pointer], function)
        place = builder.bitcast(builder.gep(data, [arguments[1]]), pointer)
        builder.call(instruction, [place, i32(0), i32(3), i32(1)])  # to read, keep it near, data
        return context.get_dummy_value()

    return types.void(array, index), generate


@intrinsic
def _multiply_add(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    """Return a b + c, rounded once where the machine can; left to the compiler, one cell might get other bits."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        real = arguments[0].type
        function = ir.FunctionType(real, [real] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fmuladd", [real], function), arguments)

    return a(a, a, a), generate


FLUSH = np.uint32(0x1F80 | 0x8040)  # the mode a thread starts with, and both bits for such numbers


def _row_of(rates: Any, member: int, ring: Any, start: Any) -> Any:
    """Return a rate for a row: one number, or where it varies by cell, the part of the ring that holds its row."""


@overload(_row_of)
def _row_of_overload(rates, member, ring, start):  # type: ignore[no-untyped-def]
    if rates.ndim == 1:  # [member]
        return lambda rates, member, ring, start: rates[member]
    return lambda rates, member, ring, start: (ring, start)


def _cell_of(rate: Any, j: Any) -> Any:
    """Return the rate of cell `j`, of what `_row_of` gave; one number costs nothing more than a constant."""


@overload(_cell_of)
def _cell_of_overload(rate, j):  # type: ignore[no-untyped-def]
    return (lambda rate, j: rate[0][rate[1] + j]) if isinstance(rate, types.BaseTuple) else (lambda rate, j: rate)


@njit
def _make_cell(ring, u, v, to_u, at_u, to_v, at_v, u_around, v_around, feed, keep, j, k):  # type: ignore[no-untyped-def]
    """Advance cell `j` of a row, given the sums around it."""
    u_here, v_here, fed = ring[u + j], ring[v + j], _cell_of(feed, j)
    dt_v = k.dt * v_here
    less, more = _multiply_add(-dt_v, v_here, k.rest - fed), _multiply_add(dt_v, u_here, _cell_of(keep, j))
    to_u[at_u + j] = _multiply_add(k.spread_u, u_around, _multiply_add(less, u_here, fed))
    to_v[at_v + j] = _multiply_add(k.spread_v, v_around, more * v_here)


@njit
def _step_row(ring, u, v, to_u, at_u, to_v, at_v, first, last, feed, keep, k):  # type: ignore[no-untyped-def]
    """Advance the cells [first, last) of a row.

    `u` and `v` are where the rows above, at and below it start in `ring`, `at_u` and `at_v` where the new ones start in
    `to_u` and `to_v`. Numbers of cells are unsigned, since NumPy's negative indices would cost a branch for each. Sums
    along a column serve the cells on both sides too; they are carried from cell to cell.
    """
    (u0, u1, u2), (v0, v1, v2), one = u, v, np.uintp(1)
    if k.centre == 0:
        for j in range(first, last):
            u_around = (ring[u1 + j - one] + ring[u1 + j + one]) + (ring[u0 + j] + ring[u2 + j])
            v_around = (ring[v1 + j - one] + ring[v1 + j + one]) + (ring[v0 + j] + ring[v2 + j])
            _make_cell(ring, u1, v1, to_u, at_u, to_v, at_v, u_around, v_around, feed, keep, j, k)
        return
    j = first - one
    u_left = _multiply_add(k.centre, ring[u1 + j], ring[u0 + j] + ring[u2 + j])
    v_left = _multiply_add(k.centre, ring[v1 + j], ring[v0 + j] + ring[v2 + j])
    u_sum = _multiply_add(k.centre, ring[u1 + first], ring[u0 + first] + ring[u2 + first])
    v_sum = _multiply_add(k.centre, ring[v1 + first], ring[v0 + first] + ring[v2 + first])
    for j in range(first, last):
        right = j + one
        u_right = _multiply_add(k.centre, ring[u1 + right], ring[u0 + right] + ring[u2 + right])
        v_right = _multiply_add(k.centre, ring[v1 + right], ring[v0 + right] + ring[v2 + right])
        u_around = _multiply_add(k.centre, u_sum, u_left + u_right)
        v_around = _multiply_add(k.centre, v_sum, v_left + v_right)
        _make_cell(ring, u1, v1, to_u, at_u, to_v, at_v, u_around, v_around, feed, keep, j, k)
        u_left, u_sum, v_left, v_sum = u_sum, u_right, v_sum, v_right


@njit
def _copied(i, n, boundary):  # type: ignore[no-untyped-def]
    """Return the cell of a line of `n` that cell `i`, inside or outside, is a copy of; it evolves like that one."""
    if 0 <= i < n or boundary == ZERO:
        return i
    if boundary == PERIODIC:
        return i % n
    i %= 2 * n
    return min(i, 2 * n - 1 - i)


@njit
def _load_row(ring, at, field, grid, shape, row, left, width, boundary):  # type: ignore[no-untyped-def]
    """Copy `width` cells of a row of a grid to the ring; the row, and the first column `left`, can be outside the grid.

    Here as everywhere, arrays are 1-D and come with the place where something begins: a view of an array for each row
    would count references, which takes longer than to advance the row.
    """
    rows, cols = shape
    if boundary == ZERO and not 0 <= row < rows:
        for j in range(np.uintp(width)):
            ring[at + j] = 0
        return
    start = grid + np.uintp(_copied(row, rows, boundary) * cols)
    first, last = min(max(0, -left), width), min(width, max(0, cols - left))
    for j in range(np.uintp(first), np.uintp(last)):
        ring[at + j] = field[start + np.uintp(left) + j]
    ahead = grid + np.uintp(min(max(row + AHEAD, 0), rows - 1) * cols + left)
    for j in range(np.uintp(first), np.uintp(last), np.uintp(LINE // field.itemsize)):
        _prefetch(field, ahead + j)
    for j in range(first):
        copied = np.uintp(_copied(left + j, cols, boundary))
        ring[at + np.uintp(j)] = 0 if boundary == ZERO else field[start + copied]
    for j in range(last, width):
        copied = np.uintp(_copied(left + j, cols, boundary))
        ring[at + np.uintp(j)] = 0 if boundary == ZERO else field[start + copied]


@njit
def _clear(ring, at, first, last):  # type: ignore[no-untyped-def]
    for j in range(np.uintp(first), np.uintp(last)):
        ring[at + j] = 0


@njit
def _advance_part(old, new, ring, feeds, keeps, member, k, boundary, shape, part, steps):  # type: ignore[no-untyped-def]
    """Write the cells [top, bottom) × [left, right) of `new`, u and v, which are `steps` steps on from `old`."""
    (u, v), (u_new, v_new) = old, new
    rows, cols = shape
    top, bottom, left, right = part
    grid = np.uintp(member * rows * cols)
    map_of = np.uintp(member % feeds.shape[0] * rows * cols)
    start, width = left - steps, right - left + 2 * steps
    first, last = min(max(0, -start), width), min(width, max(0, cols - start))  # that are inside the grid
    # Some cells too many cost less than a loop for the last few.
    whole = np.uintp(1 + (width - 2 + LANES - 1) // LANES * LANES)
    stride = width + PAD
    for front in range(top - steps, bottom + steps):
        for level in range(min(steps, (front - top + steps) // 2) + 1):
            i = front - level
            at_u = np.uintp((6 * level + i % 3) * stride)
            at_v = at_u + np.uintp(3 * stride)
            at_feed = np.uintp((6 * steps + 2 * (i % (steps + 1))) * stride)  # used if the rates vary by cell
            at_keep = at_feed + np.uintp(stride)
            if level == 0:
                _load_row(ring, at_u, u, grid, shape, i, start, width, boundary)
                _load_row(ring, at_v, v, grid, shape, i, start, width, boundary)
                if feeds.ndim == 2:
                    _load_row(ring, at_feed, feeds.reshape(-1), map_of, shape, i, start, width, boundary)
                    _load_row(ring, at_keep, keeps.reshape(-1), map_of, shape, i, start, width, boundary)
                continue
            if boundary == ZERO and not 0 <= i < rows:
                _clear(ring, at_u, 0, width)
                _clear(ring, at_v, 0, width)
                continue
            level_below, field = 6 * (level - 1), np.uintp(3 * stride)
            above = np.uintp((level_below + (i - 1) % 3) * stride)
            here = np.uintp((level_below + i % 3) * stride)
            below = np.uintp((level_below + (i + 1) % 3) * stride)
            rows_u, rows_v = (above, here, below), (above + field, here + field, below + field)
            feed, keep = _row_of(feeds, member, ring, at_feed), _row_of(keeps, member, ring, at_keep)
            if level < steps:
                _step_row(ring, rows_u, rows_v, ring, at_u, ring, at_v, np.uintp(1), whole, feed, keep, k)
                if boundary == ZERO:
                    for at in (at_u, at_v):
                        _clear(ring, at, 0, first)
                        _clear(ring, at, last, width)
                continue
            ahead = grid + np.uintp(min(i + AHEAD, rows - 1) * cols + left)
            for j in range(np.uintp(0), np.uintp(right - left), np.uintp(LINE // ring.itemsize)):
                _prefetch(u_new, ahead + j)
                _prefetch(v_new, ahead + j)
            to = grid + np.uintp(i * cols + start)  # the ring's first column; it can lie before the row
            _step_row(
                ring, rows_u, rows_v, u_new, to, v_new, to, np.uintp(steps), np.uintp(width - steps), feed, keep, k
            )


@register_jitable
def columns(cols: int, chunk: int, chunks: int) -> tuple[int, int]:
    """Return where a chunk of the columns begins, at a multiple of LANES, and ends."""
    units = cols // LANES
    return units * chunk // chunks * LANES, units * (chunk + 1) // chunks * LANES if chunk + 1 < chunks else cols


@njit(parallel=True, nogil=True, cache=True)
def advance(u, v, u_new, v_new, rings, feeds, keeps, k, boundary, shape, parts, steps):  # type: ignore[no-untyped-def]
    """Advance `steps` steps, and return the four arrays [cell], those with the result first."""
    members, rows, cols = shape
    bands, chunks = parts
    while steps > 0:
        together = -(-steps // -(-steps // LEVELS))
        for number in prange(members * bands * chunks):
            member, band, chunk = number // (bands * chunks), number // chunks % bands, number % chunks
            part = rows * band // bands, rows * (band + 1) // bands, *columns(cols, chunk, chunks)
            ring = rings[numba.get_thread_id()]  # type: ignore[attr-defined]
            mode = _set_float_mode(FLUSH)
            _advance_part((u, v), (u_new, v_new), ring, feeds, keeps, member, k, boundary, (rows, cols), part, together)
            _set_float_mode(mode)
        u, v, u_new, v_new = u_new, v_new, u, v
        steps -= together
    return u, v, u_new, v_new


@njit(parallel=True, nogil=True, fastmath={"reassoc", "nsz"}, cache=True)
def stage_plane(field, words, planes, values, shuffle, bands):  # type: ignore[no-untyped-def]
    """Copy `words` to `planes` [byte, cell] if `shuffle`, else to `values` [cell]; the two are the same memory.

    `words` are the values of `field` as they are stored, as unsigned integers. Returns of `field` minimum, maximum, sum
    (float64, summed per row: the same for any number of bands) and non-finite count.
    """
    rows, cols = field.shape
    low, high = np.empty(rows, field.dtype), np.empty(rows, field.dtype)
    total, bad = np.empty(rows, np.float64), np.empty(rows, np.int64)
    largest = np.finfo(field.dtype).max
    for band in prange(bands):
        for i in range(rows * band // bands, rows * (band + 1) // bands):
            row, bits = field[i], words[i]
            smallest, biggest, added, wrong = row[0], row[0], 0.0, 0
            for j in range(cols):
                x = row[j]
                smallest, biggest = min(smallest, x), max(biggest, x)
                added += x
                wrong += 0 if abs(x) <= largest else 1
            low[i], high[i], total[i], bad[i] = smallest, biggest, added, wrong
            if shuffle:
                for plane in range(planes.shape[0]):
                    out = planes[plane, i * cols : (i + 1) * cols]
                    for j in range(cols):
                        out[j] = bits[j] >> (8 * plane)
            else:
                for j in range(cols):
                    values[i * cols + j] = bits[j]
    return low.min(), high.max(), total.sum(), bad.sum()
