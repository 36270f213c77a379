"""The time steps that Numba compiles to vector code for the cores of this machine.

A field does not fit the cache, and a step does little work for each cell, so that single steps would wait for memory.
Therefore the grid is cut into tiles, some hundred columns wide, and up to 32 steps go over a tile together, as a
wavefront. Depth n holds rows after n steps. Once three of its rows exist, depth n + 1 can make the middle one. This is
the picture for three steps::

    depth 3  . n . . .             n: made at this front, from three rows of the depth below
    depth 2  o o n . .             o: kept, in a ring of three rows; all rings are in the second-level cache
    depth 1  . o o n .
    depth 0  . . o o n             n: copied from the field, or set by the boundary outside it
             row ──▶ └ front

The last depth is written to a second array, which the next pass reads. A tile computes the cells beyond its edges that
it needs, one less for each depth and side. A cell has the same bits wherever the tiles are cut, because the same
instructions compute every copy of it.

A row of a ring lies so that no instruction shuffles lanes: each lane of a vector has a part of the row of its own. This
is the order of twelve cells in three vectors of four lanes (dimension-lifted transposition: Henretty et al. 2011,
doi:10.1007/978-3-642-19861-8_13)::

    before      0 3 6 9    1 4 7 10    2 5 8 11      behind
    . 2 5 8                                          3 6 9 .

The neighbours of a vector are the vectors beside it. Those of both ends are copies, one lane further.
"""

from typing import Any, NamedTuple

from numba import njit, types
from numba.extending import overload, register_jitable

from gsio.compute.cpu.vectors import (
    FLUSH,
    add,
    ahead,
    inner,
    lanes_of,
    load,
    meet,
    multiply,
    multiply_add,
    negative,
    one_left,
    one_right,
    pointer,
    prefetch,
    set_float_mode,
    splat,
    store,
    subtract,
    transpose,
    zero_of,
)

PERIODIC, NEUMANN, ZERO = range(3)
AHEAD = 2  # rows to prefetch: the hardware does not foresee where the next row starts
LINE = 16  # numbers that are in one or two cache lines, and in one or more vectors


class Constants(NamedTuple):
    """`Coefficients` without the rates, all of the precision of the run; `centre` is None instead of 0.

    The spreads and `rest` are arrays, [member], or those of one member.
    """

    centre: Any
    spread_u: Any
    spread_v: Any
    rest: Any
    dt: Any


@inner
def _across(rows, j):  # type: ignore[no-untyped-def]
    """Return the sum of the cells above and below the cells from `j` on."""
    above, _, below = rows
    return add(load(above, j), load(below, j))


def _column(rows: Any, j: Any, centre: Any) -> Any:
    """Return what the cells on both sides of the cells from `j` on need of them and of the cells above and below."""


@overload(_column)
def _column_overload(rows, j, centre):  # type: ignore[no-untyped-def]
    if centre is types.none:
        return lambda rows, j, centre: load(rows[1], j)
    return lambda rows, j, centre: multiply_add(splat(centre), load(rows[1], j), _across(rows, j))


def _around(left: Any, here: Any, right: Any, rows: Any, j: Any, centre: Any) -> Any:
    """Return the weighted sums of the neighbours of the cells from `j` on, given three `_column`."""


@overload(_around)
def _around_overload(left, here, right, rows, j, centre):  # type: ignore[no-untyped-def]
    if centre is types.none:
        return lambda left, here, right, rows, j, centre: add(add(left, right), _across(rows, j))
    return lambda left, here, right, rows, j, centre: multiply_add(splat(centre), here, add(left, right))


def _of_row(rates: Any, member: int, row: Any) -> Any:
    """Return the rate of a row: one number, or the pointer to the rates of its cells if they vary."""


@overload(_of_row)
def _of_row_overload(rates, member, row):  # type: ignore[no-untyped-def]
    return (lambda rates, member, row: rates[member]) if rates.ndim == 1 else (lambda rates, member, row: row)


def _of_cells(rate: Any, j: Any) -> Any:
    """Return the rates of the cells from `j` on, from the result of `_of_row`."""


@overload(_of_cells)
def _of_cells_overload(rate, j):  # type: ignore[no-untyped-def]
    return (lambda rate, j: load(rate, j)) if isinstance(rate, types.CPointer) else (lambda rate, j: splat(rate))


@inner
def _step_row(u, v, to_u, to_v, count, feed, keep, k):  # type: ignore[no-untyped-def]
    """Advance the first `count` numbers of a row of a ring, which are whole vectors.

    `u` and `v` are pointers to the rows above, at and below the row. The sums along a column are carried from vector
    to vector, because the cells on both sides need them too.
    """
    lanes = lanes_of(to_u)
    rest, dt, spread_u, spread_v = splat(k.rest), splat(k.dt), splat(k.spread_u), splat(k.spread_v)
    u_left, v_left = _column(u, -lanes, k.centre), _column(v, -lanes, k.centre)
    u_sum, v_sum = _column(u, 0, k.centre), _column(v, 0, k.centre)
    for j in range(0, count, lanes):
        u_right, v_right = _column(u, j + lanes, k.centre), _column(v, j + lanes, k.centre)
        u_around = _around(u_left, u_sum, u_right, u, j, k.centre)
        v_around = _around(v_left, v_sum, v_right, v, j, k.centre)
        u_here, v_here, fed = load(u[1], j), load(v[1], j), _of_cells(feed, j)
        dt_v = multiply(dt, v_here)
        less = multiply_add(negative(dt_v), v_here, subtract(rest, fed))
        more = multiply_add(dt_v, u_here, _of_cells(keep, j))
        store(to_u, j, multiply_add(spread_u, u_around, multiply_add(less, u_here, fed)))
        store(to_v, j, multiply_add(spread_v, v_around, multiply(more, v_here)))
        u_left, u_sum, v_left, v_sum = u_sum, u_right, v_sum, v_right


@inner
def _copied(i, n, boundary):  # type: ignore[no-untyped-def]
    """Return the row of a grid of `n` rows that row `i`, inside or outside the grid, copies."""
    if 0 <= i < n or boundary == ZERO:
        return i
    if boundary == PERIODIC:
        return i % n
    i %= 2 * n
    return min(i, 2 * n - 1 - i)


@inner
def _copy(to, cells, count):  # type: ignore[no-untyped-def]
    """Copy `count` cells."""
    lanes = lanes_of(to)
    for j in range(0, count - lanes + 1, lanes):
        store(to, j, load(cells, j))
    for j in range(max(count, 0) // lanes * lanes, count):
        to[j] = cells[j]


@inner
def _clear(to, count):  # type: ignore[no-untyped-def]
    """Set the first `count` numbers of a row of a ring to 0, and the vectors before and behind them."""
    lanes = lanes_of(to)
    for j in range(-lanes, count + lanes, lanes):
        store(to, j, splat(zero_of(to)))


@inner
def _place(j, span, lanes):  # type: ignore[no-untyped-def]
    """Return the place of cell `j` in a row of a ring whose lanes have `span` cells each."""
    return j % span * lanes + j // span if j < span * lanes else span * lanes


@inner
def _close(row, ends, boundary, edges):  # type: ignore[no-untyped-def]
    """Set the vectors before and behind a row of a ring, which hold the neighbours of both ends of each lane.

    They are the last and the first vector, one lane further. Where the ends of the row are edges of the grid, the cells
    before and behind the row are those that the boundary asks for. `ends` has the numbers of a row, and the places of
    the last cell and of the cell behind the row.
    """
    count, last, behind = ends
    lanes = lanes_of(row)
    if edges[0] or edges[1]:
        at_left, at_right = (row[last], row[0]) if boundary == PERIODIC else (row[0], row[last])
        if boundary == ZERO:
            at_left, at_right = zero_of(row), zero_of(row)
        if edges[1] and behind < count:
            row[behind] = at_right
        store(row, -lanes, one_left(splat(at_left), load(row, count - lanes)))
        store(row, count, one_right(load(row, 0), splat(at_right)))
    else:
        end, start = load(row, count - lanes), load(row, 0)
        store(row, -lanes, one_left(end, end))
        store(row, count, one_right(start, start))


@inner
def _load_row(to, grid, shape, row, columns, boundary, edges, ends, spare):  # type: ignore[no-untyped-def]
    """Copy some columns of a row of a grid to a ring; the row, and columns without edges, can lie outside the grid."""
    (rows, cols), (start, stop) = shape, columns
    lanes = lanes_of(to)
    span = ends[0] // lanes
    if boundary == ZERO and not 0 <= row < rows:
        _clear(to, ends[0])
        return
    line = ahead(grid, _copied(row, rows, boundary) * cols)
    cells = ahead(line, start)
    if start < 0 or stop > cols:
        cells = spare
        _copy(spare, ahead(line, cols + start), -start)
        _copy(ahead(spare, max(-start, 0)), ahead(line, max(start, 0)), min(stop, cols) - max(start, 0))
        _copy(ahead(spare, cols - start), line, stop - cols)
    for j in range(0, span, lanes):
        transpose(ahead(to, j * lanes), lanes, ahead(cells, j), span, span - j)
    _close(to, ends, boundary, edges)
    after = min(max(row + AHEAD, 0), rows - 1) * cols
    for j in range(max(start, 0), min(stop, cols), LINE):
        prefetch(grid, after + j)


@inner
def _save_row(to, row, count, first, last, spare):  # type: ignore[no-untyped-def]
    """Copy the cells [first, last) of a row of a ring, which has `count` numbers, to a row of a grid."""
    lanes = lanes_of(to)
    span = count // lanes
    for j in range((span - 1) // lanes * lanes, -1, -lanes):  # What is stored too much is overwritten by the next ones.
        transpose(ahead(spare, j), span, ahead(row, j * lanes), lanes, lanes)
    _copy(to, ahead(spare, first), last - first)


@register_jitable
def row_stride(width: int) -> int:
    """Return the numbers from one row of a ring to the next: whole vectors, and one more at both ends."""
    return (-(-width // LINE) + 2) * LINE


@register_jitable
def ring_rows(steps: int) -> int:
    """Return the rows of the rings of `steps` steps: three of u and v each, those of rates that vary, and spares."""
    return 6 * steps + 2 * (steps + 1) + 4


@inner
def _advance_tile(old, new, ring, feeds, keeps, member, k, boundary, shape, tile, steps):  # type: ignore[no-untyped-def]
    """Write the cells [top, bottom) × [left, right) of `new`, u and v, `steps` steps after `old`."""
    (u, v), (u_new, v_new), (rows, cols), (top, bottom, left, right) = old, new, shape, tile
    own = Constants(k.centre, k.spread_u[member], k.spread_v[member], k.rest[member], k.dt)
    map_of = member % feeds.shape[0] * rows * cols if feeds.ndim == 2 else 0
    feed_map, keep_map = pointer(feeds, map_of), pointer(keeps, map_of)
    whole = right - left == cols
    edges = left == 0 and (whole or boundary != PERIODIC), right == cols and (whole or boundary != PERIODIC)
    first = 0 if edges[0] else steps
    start, stop = left - first, right if edges[1] else right + steps
    width, lanes = stop - start, lanes_of(ring)
    stride, span = row_stride(width), -(-width // lanes)
    count = span * lanes
    ends = count, _place(width - 1, span, lanes), _place(width, span, lanes)
    rates = ahead(ring, 6 * steps * stride)
    last_u = ahead(rates, 2 * (steps + 1) * stride)
    last_v, spare = ahead(last_u, stride), ahead(last_u, 2 * stride)
    for front in range(top - steps, bottom + steps):
        # All depths put the row that they make at this front into the same of their three places.
        below, here, above = front % 3 * stride, (front - 1) % 3 * stride, (front - 2) % 3 * stride
        to_u = ahead(ring, below)
        _load_row(to_u, u, shape, front, (start, stop), boundary, edges, ends, spare)
        _load_row(ahead(to_u, 3 * stride), v, shape, front, (start, stop), boundary, edges, ends, spare)
        if feeds.ndim == 2:
            feed_row = ahead(rates, front % (steps + 1) * 2 * stride)
            _load_row(feed_row, feed_map, shape, front, (start, stop), boundary, edges, ends, spare)
            _load_row(ahead(feed_row, stride), keep_map, shape, front, (start, stop), boundary, edges, ends, spare)
        for depth in range(1, min(steps, (front - top + steps) // 2) + 1):
            i = front - depth
            from_u = ahead(ring, 6 * (depth - 1) * stride)
            from_v = ahead(from_u, 3 * stride)
            rows_u = ahead(from_u, above), ahead(from_u, here), ahead(from_u, below)
            rows_v = ahead(from_v, above), ahead(from_v, here), ahead(from_v, below)
            rates_row = ahead(rates, i % (steps + 1) * 2 * stride) if feeds.ndim == 2 else rates
            feed, keep = _of_row(feeds, member, rates_row), _of_row(keeps, member, ahead(rates_row, stride))
            to_u = ahead(ring, 6 * depth * stride + below) if depth < steps else last_u
            to_v = ahead(to_u, 3 * stride) if depth < steps else last_v
            if boundary == ZERO and not 0 <= i < rows:
                _clear(to_u, count)
                _clear(to_v, count)
                continue
            _step_row(rows_u, rows_v, to_u, to_v, count, feed, keep, own)
            if depth < steps:
                _close(to_u, ends, boundary, edges)
                _close(to_v, ends, boundary, edges)
                continue
            after = min(i + AHEAD, rows - 1) * cols
            for j in range(left, right, LINE):
                prefetch(u_new, after + j)
                prefetch(v_new, after + j)
            place = i * cols + left
            _save_row(ahead(u_new, place), last_u, count, first, first + right - left, spare)
            _save_row(ahead(v_new, place), last_v, count, first, first + right - left, spare)


@register_jitable
def columns(cols: int, x: int, tiles_x: int) -> tuple[int, int]:
    """Return the first column of column `x` of the tiles, a multiple of LINE, and the column after its last."""
    units = cols // LINE
    return units * x // tiles_x * LINE, units * (x + 1) // tiles_x * LINE if x + 1 < tiles_x else cols


@njit(nogil=True, cache=True)
def advance(old, new, rings, feeds, keeps, k, boundary, shape, tiles, steps, most, share, meeting):  # type: ignore[no-untyped-def]
    """Advance u and v by `steps` steps, at most `most` a pass, together with the other threads of a meeting.

    `old` and `new` are u and v, [member, row, cell]. Each pass reads the pair that the previous pass has written, and
    writes the other pair. The thread of number `share` advances its share of the tiles, with the ring of that number.
    Returns the number of passes.
    """
    members, rows, cols = shape
    tiles_y, tiles_x = tiles
    threads, tiles_of_all = len(rings), members * tiles_y * tiles_x
    ring = pointer(rings, share * rings.shape[1] + LINE)
    mode = set_float_mode(FLUSH)
    passes = 0
    while steps > 0:
        together = -(-steps // -(-steps // most))
        for number in range(tiles_of_all * share // threads, tiles_of_all * (share + 1) // threads):
            member, y, x = number // (tiles_y * tiles_x), number // tiles_x % tiles_y, number % tiles_x
            tile = rows * y // tiles_y, rows * (y + 1) // tiles_y, *columns(cols, x, tiles_x)
            grid = member * rows * cols
            here = pointer(old[0], grid), pointer(old[1], grid)
            there = pointer(new[0], grid), pointer(new[1], grid)
            _advance_tile(here, there, ring, feeds, keeps, member, k, boundary, (rows, cols), tile, together)
        meet(meeting, threads)
        old, new = new, old
        steps -= together
        passes += 1
    set_float_mode(mode)
    return passes
