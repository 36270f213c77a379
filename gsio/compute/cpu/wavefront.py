"""The time steps and the staging that Numba compiles to vector code for the cores of this machine.

A field does not fit the cache, and a step does little work for each cell, so that single steps would wait for memory.
Therefore the grid is cut into tiles, some hundred columns wide, and up to `PASS_STEPS` steps go over a tile together,
as a wavefront. Depth n holds rows after n steps. Once three of its rows exist, depth n + 1 can make the middle one.
This is the picture for three steps::

    depth 3  . n . . .             n: made at this front, from three rows of the depth below
    depth 2  o o n . .             o: kept, in a ring of three rows; all rings are in the first-level cache
    depth 1  . o o n .
    depth 0  . . o o n             n: copied from the field, or set by the boundary outside it
             row ──▶ └ front

The last depth is written to a second array, which the next pass reads. A tile computes the cells beyond its edges that
it needs, one less for each depth and side. A cell has the same bits wherever the tiles are cut, because the same
instructions compute every copy of it.
"""

import platform
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import binding, ir
from numba import njit, prange, types
from numba.extending import intrinsic, overload, register_jitable

from gsio.compute.statistics import LANES as LANES_OF_SUMS

X86 = "x86_64", "AMD64"
if platform.machine() in X86 and numba.config.CPU_FEATURES is None:  # type: ignore[attr-defined]
    # Use vectors of 512 bits if the machine has them; LLVM prefers 256 bits, which are 12 % slower here.
    features = f"{binding.get_host_cpu_features().flatten()},-prefer-256-bit"
    numba.config.CPU_FEATURES = features  # type: ignore[attr-defined]

PASS_STEPS = (
    6  # steps of a pass: more, or wider tiles, do not fit the first-level cache; fewer read the fields more often
)
PERIODIC, NEUMANN, ZERO = range(3)
AHEAD = 4  # rows to prefetch: the hardware does not foresee where the next row starts
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
    """Set the calling thread's MXCSR register, if the machine has one, and return its previous value.

    With FLUSH, subnormal numbers count as zero. A step with subnormal numbers takes up to sixty times as long.
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
    """Start to fetch the cache line of ``array[index]``."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        function = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [pointer], function)
        place = builder.bitcast(builder.gep(data, [arguments[1]]), pointer)
        builder.call(instruction, [place, i32(0), i32(3), i32(1)])  # for reading, in the nearest cache, data
        return context.get_dummy_value()

    return types.void(array, index), generate


@intrinsic
def _multiply_add(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    """Return a b + c, rounded once if the machine can. The compiler's own choice could differ from cell to cell."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        real = arguments[0].type
        function = ir.FunctionType(real, [real] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fmuladd", [real], function), arguments)

    return a(a, a, a), generate


FLUSH = np.uint32(0x1F80 | 0x8040)  # the default mode, and both bits for subnormal numbers


def _row_of(rates: Any, member: int, ring: Any, start: Any) -> Any:
    """Return the rate of a row: one number, or the ring and the start of the row in it if the rate varies by cell."""


@overload(_row_of)
def _row_of_overload(rates, member, ring, start):  # type: ignore[no-untyped-def]
    if rates.ndim == 1:  # [member]
        return lambda rates, member, ring, start: rates[member]
    return lambda rates, member, ring, start: (ring, start)


def _cell_of(rate: Any, j: Any) -> Any:
    """Return the rate of cell `j` from the result of `_row_of`; a single number is as fast as a constant."""


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

    `u` and `v` are the starts in `ring` of the rows above, at and below the row. `at_u` and `at_v` are the starts of
    the new rows in `to_u` and `to_v`. Indices are unsigned, because NumPy's negative indices would cost a branch each.
    The sums along a column are carried from cell to cell, because the cells on both sides need them too.
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
    """Return the cell of a line of `n` cells that cell `i`, inside or outside the line, copies."""
    if 0 <= i < n or boundary == ZERO:
        return i
    if boundary == PERIODIC:
        return i % n
    i %= 2 * n
    return min(i, 2 * n - 1 - i)


@njit
def _load_row(ring, at, field, grid, shape, row, left, width, boundary):  # type: ignore[no-untyped-def]
    """Copy `width` cells of a row of a grid to the ring; the row and the first column `left` can lie outside the grid.

    Arrays are 1-D in this file, and come with an index of their first cell. A view for each row would count
    references, which takes longer than to advance the row.
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
def _advance_tile(old, new, ring, feeds, keeps, member, k, boundary, shape, tile, steps):  # type: ignore[no-untyped-def]
    """Write the cells [top, bottom) × [left, right) of `new`, u and v, `steps` steps after `old`."""
    (u, v), (u_new, v_new) = old, new
    rows, cols = shape
    top, bottom, left, right = tile
    grid = np.uintp(member * rows * cols)
    map_of = np.uintp(member % feeds.shape[0] * rows * cols)
    start, width = left - steps, right - left + 2 * steps
    first, last = min(max(0, -start), width), min(width, max(0, cols - start))  # the columns inside the grid
    # A few surplus cells cost less than a loop for the last ones.
    whole = np.uintp(1 + (width - 2 + LANES - 1) // LANES * LANES)
    stride = width + PAD
    for front in range(top - steps, bottom + steps):
        for depth in range(min(steps, (front - top + steps) // 2) + 1):
            i = front - depth
            at_u = np.uintp((6 * depth + i % 3) * stride)
            at_v = at_u + np.uintp(3 * stride)
            at_feed = np.uintp((6 * steps + 2 * (i % (steps + 1))) * stride)  # used if the rates vary by cell
            at_keep = at_feed + np.uintp(stride)
            if depth == 0:
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
            depth_below, field = 6 * (depth - 1), np.uintp(3 * stride)
            above = np.uintp((depth_below + (i - 1) % 3) * stride)
            here = np.uintp((depth_below + i % 3) * stride)
            below = np.uintp((depth_below + (i + 1) % 3) * stride)
            rows_u, rows_v = (above, here, below), (above + field, here + field, below + field)
            feed, keep = _row_of(feeds, member, ring, at_feed), _row_of(keeps, member, ring, at_keep)
            if depth < steps:
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
            to = grid + np.uintp(i * cols + start)  # the place of the ring's first column, which can lie before the row
            _step_row(
                ring, rows_u, rows_v, u_new, to, v_new, to, np.uintp(steps), np.uintp(width - steps), feed, keep, k
            )


@register_jitable
def columns(cols: int, x: int, tiles_x: int) -> tuple[int, int]:
    """Return the first column of column `x` of the tiles, a multiple of LANES, and the column after its last."""
    units = cols // LANES
    return units * x // tiles_x * LANES, units * (x + 1) // tiles_x * LANES if x + 1 < tiles_x else cols


@njit(parallel=True, nogil=True, cache=True)
def advance(u, v, u_new, v_new, rings, feeds, keeps, k, boundary, shape, tiles, steps):  # type: ignore[no-untyped-def]
    """Advance `steps` steps, and return the four arrays [cell], the result first."""
    members, rows, cols = shape
    tiles_y, tiles_x = tiles
    while steps > 0:
        together = -(-steps // -(-steps // PASS_STEPS))
        for number in prange(members * tiles_y * tiles_x):
            member, y, x = number // (tiles_y * tiles_x), number // tiles_x % tiles_y, number % tiles_x
            tile = rows * y // tiles_y, rows * (y + 1) // tiles_y, *columns(cols, x, tiles_x)
            ring = rings[numba.get_thread_id()]  # type: ignore[attr-defined]
            mode = _set_float_mode(FLUSH)
            _advance_tile((u, v), (u_new, v_new), ring, feeds, keeps, member, k, boundary, (rows, cols), tile, together)
            _set_float_mode(mode)
        u, v, u_new, v_new = u_new, v_new, u, v
        steps -= together
    return u, v, u_new, v_new


@njit
def _add_lanes(row, first, last, total, low, high, bad):  # type: ignore[no-untyped-def]
    largest = np.finfo(row.dtype).max
    for lane in range(last - first):
        x = row[first + lane]
        low[lane], high[lane] = min(low[lane], x), max(high[lane], x)
        total[lane] += x
        bad[lane] += np.int32(0) if abs(x) <= largest else np.int32(1)


@njit
def _summarise_rows(field, first, last, sums):  # type: ignore[no-untyped-def]
    """Set the `sums` of rows as `row_sums` does, and return their minimum, maximum and non-finite count."""
    cols, lanes = np.uintp(field.shape[1]), np.uintp(LANES_OF_SUMS)
    low, high = np.full(lanes, field[first, 0]), np.full(lanes, field[first, 0])
    total, bad = np.empty(lanes, np.float64), np.zeros(lanes, np.int32)
    for i in range(first, last):
        row = field[i]
        total[:] = 0
        for j in range(np.uintp(0), cols // lanes * lanes, lanes):
            _add_lanes(row, j, j + lanes, total, low, high, bad)
        _add_lanes(row, cols // lanes * lanes, cols, total, low, high, bad)
        half = LANES_OF_SUMS // 2
        while half:
            for lane in range(half):
                total[lane] += total[lane + half]
            half //= 2
        sums[i] = total[0]
    return low.min(), high.max(), bad.sum()


@njit(parallel=True, nogil=True, cache=True)
def stage_plane(field, words, planes, values, shuffle, tasks):  # type: ignore[no-untyped-def]
    """Copy `words` to `planes` [byte, cell] if `shuffle`, else to `values` [cell]; both are the same memory.

    `words` are the stored values of `field` as unsigned integers. Returns the minimum, the maximum, the sums of the
    rows and the non-finite count of `field`.
    """
    rows, cols = field.shape
    low, high = np.empty(tasks, field.dtype), np.empty(tasks, field.dtype)
    sums, bad = np.empty(rows, np.float64), np.empty(tasks, np.int64)
    for task in prange(tasks):
        first, last = rows * task // tasks, rows * (task + 1) // tasks
        low[task], high[task], bad[task] = _summarise_rows(field, first, last, sums)
        for i in range(first, last):
            bits = words[i]
            if shuffle:
                for plane in range(planes.shape[0]):
                    out = planes[plane, i * cols : (i + 1) * cols]
                    for j in range(cols):
                        out[j] = bits[j] >> (8 * plane)
            else:
                for j in range(cols):
                    values[i * cols + j] = bits[j]
    return low.min(), high.max(), sums, bad.sum()
