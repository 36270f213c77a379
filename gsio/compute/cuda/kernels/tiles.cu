// Gray-Scott on the GPU: many time steps in one launch.
//
// A block of WARPS warps advances one tile of the grid, which lies in registers: a lane has COLS columns of ROWS rows.
//
//                32 lanes of COLS columns
//     warp 0     . . . . . . . . . . . . .     o  the tile's own cells
//                . o o o o o o o o o o o .     .  its halo, cells of the tiles around it: loaded with it, and stale
//     warp 1     . o o o o o o o o o o o .        from the outside inwards, one cell a step. Before the own cells are
//                . o o o o o o o o o o o .        reached, the pass ends: all tiles store what is theirs.
//     warp 2     . o o o o o o o o o o o .
//                . . . . . . . . . . . . .     In a row, neighbours come from other lanes by shuffles; the rows above
//                                              and below those of a warp from other warps through shared memory.
//
// A launch is one pass, in which a block goes from tile to tile and loads the next while it computes; or many passes, for
// which a flag of each tile counts how often it was stored. Where every tile has a block, its own cells then stay in the
// registers from pass to pass, and only the outermost of them travel; else blocks take turns at the tiles of one pass
// after the other. A cell has the same bits for any tiling, as the same instructions make every copy of it.
//
// The boundary costs nothing during the steps: a halo outside the grid evolves like the cells that it copies. Only the
// boundary `zero` holds its halo at 0.
//
// A row of the grid takes `pitch` cells of memory, a multiple of COLS, and tiles begin and end at multiples of COLS: a
// lane copies its cells of a row as one piece. Nobody needs what lies between the rows. Where a halo continues the grid
// beyond its columns, and its cells do not lie in memory one after another, they are copied one by one.
//
// Compiled with  -DREAL=float|double  -DBOUNDARY=0|1|2  -DCENTRE=0|1|2|4 (Coefficients.centre in gray_scott.py)
// -DRATES=0|1|2  -DUNIT_DT=0|1 (dt is 1)  -DPASSES=0|1|2  -DREST (the columns of the grid modulo COLS, if BOUNDARY is
// `zero`, else 0)  the shape of a block: -DCOLS  -DROWS (2 to 16)  -DWARPS  and -DFLAG_STRIDE: after stencil.cu and
// copies.cu.

// Bit i is set where first <= start + i < last.
__device__ inline unsigned between(int start, int first, int last, unsigned all)
{
    const int low = min(max(first - start, 0), 31), high = min(max(last - start, 0), 31);
    return ((1u << high) - 1) & ~((1u << low) - 1) & all;
}

// The boundary continues a line of n cells beyond its ends with a period of n, or of 2 n if the line is mirrored. These
// functions return the place of cell i in the period, the next place, and the cell that a place copies.
__device__ inline int in_period(int i, int n)
{
    if (BOUNDARY == ZERO) return i;
    const int period = BOUNDARY == NEUMANN ? 2 * n : n;
    i += i < 0 ? period : i < period ? 0 : -period;
    if ((unsigned)i < period) return i;  // A division takes longer, and only small grids need it.
    i %= period;
    return i < 0 ? i + period : i;
}

__device__ inline int following(int i, int n)
{
    const int period = BOUNDARY == NEUMANN ? 2 * n : n;
    return BOUNDARY != ZERO && i + 1 == period ? 0 : i + 1;
}

__device__ inline int source(int i, int n) { return BOUNDARY == NEUMANN ? min(i, 2 * n - 1 - i) : i; }

// How the fields [member, row, col] are cut into tiles, and what one launch does.
struct Plan {
    int rows, cols, pitch, members;
    int tiles_y, height, taller;  // rows of tiles; all are `height` cells high, the last `taller` one cell more
    int tiles_x, width, wider;    // columns of tiles, likewise; in units of COLS cells
    int depth, halo_y, halo_x;    // the most steps of a pass, and the cells of the halo: halo_x in whole lanes
    int outer_x;                  // columns at either side of a tile with all that is copied to a halo
    int closed;                   // a tile is as high as the periodic grid: the last row is above the first, no halo_y
    int tiles;                    // of all members
    int passes, steps, longer;    // the first `longer` passes have one step more than `steps`
    int shift;                    // tiles by which the order of a pass is shifted against the previous pass
    int maps;                     // maps of feed and keep_v: 1, or one for each member
    int first;                    // the first row of the first tile
};

// A tile in a pass: its place in the order of the pass, which tile it is, and its own cells.
struct Tile {
    int pass, position, member, y, x;
    int top, bottom, left, right;
};

__device__ inline Tile tile_at(const Plan& plan, int pass, int position)
{
    const int plain_y = plan.tiles_y - plan.taller, plain_x = plan.tiles_x - plan.wider;
    const int number = (position + pass * plan.shift) % plan.tiles;
    // Along the shorter side first: tiles that need one another are then less far apart.
    const bool down = plan.tiles_y < plan.tiles_x;
    const int along = down ? plan.tiles_y : plan.tiles_x, across = down ? plan.tiles_x : plan.tiles_y;
    const int line = number / along, i = number - line * along;
    Tile tile;
    tile.pass = pass;
    tile.position = position;
    tile.member = line / across;
    const int j = line - tile.member * across;
    tile.y = down ? i : j;
    tile.x = down ? j : i;
    tile.top = plan.first + tile.y * plan.height + max(tile.y - plain_y, 0);
    tile.bottom = tile.top + plan.height + (tile.y >= plain_y);
    tile.left = (tile.x * plan.width + max(tile.x - plain_x, 0)) * COLS;
    tile.right = tile.left + (plan.width + (tile.x >= plain_x)) * COLS;
    return tile;
}

__device__ inline unsigned* flag_of(const Plan& plan, unsigned* flags, int member, int y, int x)
{
    return flags + ((member * plan.tiles_y + y) * plan.tiles_x + x) * FLAG_STRIDE;
}

// Returns the flag of a tile around this one. Each of the first nine lanes gets another tile, the rest the ninth tile.
__device__ inline const unsigned* flag_around(const Plan& plan, const Tile& tile, unsigned* flags)
{
    const int near = min(threadIdx.x % 32, 8);
    int y = tile.y + near / 3 - 1, x = tile.x + near % 3 - 1;
    if (BOUNDARY == PERIODIC) {
        y = y < 0 ? plan.tiles_y - 1 : y == plan.tiles_y ? 0 : y;
        x = x < 0 ? plan.tiles_x - 1 : x == plan.tiles_x ? 0 : x;
    } else {
        y = min(max(y, 0), plan.tiles_y - 1);
        x = min(max(x, 0), plan.tiles_x - 1);
    }
    return flag_of(plan, flags, tile.member, y, x);
}

template <bool VALUE> struct Choice {  // that the compiler sees
    static constexpr bool value = VALUE;
};

// Waits until the flags of all lanes show `count`; the lanes stay together.
__device__ inline void await(const unsigned* flag, unsigned count)
{
    while (!__all_sync(~0u, (int)(load_flag(flag) - count) >= 0)) {}
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
advance(real* u_even, real* v_even, real* u_odd, real* v_odd, const real* feed, const real* keep_v, unsigned* flags,
        const Plan plan, const Coefficients constants)
{
    extern __shared__ Cells shared[];
    __shared__ unsigned long long published;  // a barrier: the outermost rows of all warps are in shared memory
    __shared__ Tile places[3];         // the tile of the block, the next one, and the previous one for late warps
    __shared__ unsigned counted;       // the value of all flags at the start
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // [step % 2][top, bottom][field][warp][lane]: the outermost rows of each warp.
    const auto rim = [&](int parity, int side, int field, int of) -> Cells& {
        return shared[((parity * 2 + side) * 2 + field) * THREADS + of * 32 + lane];
    };
    // [array][row][thread]: the slots for the cells of u and v, and of the maps of feed and keep_v.
    const auto slot = [&](int array, int i) -> Cells& {
        return shared[8 * THREADS + (array * ROWS + i) * THREADS + threadIdx.x];
    };
    // The first row and column of this lane's cells. They can lie outside the grid.
    const auto first_row = [&](const Tile& tile) { return tile.top - plan.halo_y + warp * ROWS; };
    const auto first_col = [&](const Tile& tile) { return tile.left - plan.halo_x + lane * COLS; };

    // Starts to load the `count` columns of a tile from the column `from` on, cell by cell, into two slots of each lane:
    // these cells copy others that can lie in any order and at any place in a row. All lanes share the work.
    const auto load_cells = [&](const Tile& tile, int array, const real* a, const real* b, int from, int count) {
        const int wide = 1 << (32 - __clz(count - 1)), at = lane % wide;  // so many lanes share a row
        const int place = from - tile.left + plan.halo_x + at, row = first_row(tile);
        const int col = source(in_period(from + at, plan.cols), plan.cols);
        Cells* to = &shared[8 * THREADS + array * ROWS * THREADS + warp * 32 + place / COLS];
        for (int i = at < count ? lane / wide : ROWS; i < ROWS; i += 32 / wide) {
            const size_t cell = (size_t)source(in_period(row + i, plan.rows), plan.rows) * plan.pitch + col;
            copy_async<sizeof(real)>(&to[i * THREADS].at[place % COLS], a + cell);
            copy_async<sizeof(real)>(&to[(ROWS + i) * THREADS].at[place % COLS], b + cell);
        }
    };

    // Starts to load the rows `wanted`, a bit each, of two arrays into the slots `array` and `array` + 1.
    const auto load = [&](const Tile& tile, int array, const real* a, const real* b, int member, unsigned wanted) {
        const int row = first_row(tile), col = first_col(tile);
        const size_t grid = (size_t)member * plan.rows * plan.pitch;
        const int cut = plan.cols % COLS;  // The last lane of the grid has so many of its columns, unless all.
        const bool wraps = BOUNDARY == PERIODIC && cut == 0;  // The cells of a lane lie together, also of the halo.
        const int start = wraps ? in_period(col, plan.cols) : col;
        unsigned inside = ALL_ROWS, nbytes = sizeof(Cells);
        if (BOUNDARY == ZERO) {
            inside = col < 0 || col >= plan.cols ? 0 : between(row, 0, plan.rows, ALL_ROWS);
            nbytes = min(plan.cols - col, COLS) * sizeof(real);
        } else if (!wraps && (col < 0 || col + COLS > plan.cols)) {
            wanted = 0;
        }
        int position = in_period(row, plan.rows);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const unsigned line = source(position, plan.rows);
            if (wanted >> i & 1) {
                const unsigned read = BOUNDARY != ZERO || inside >> i & 1 ? nbytes : 0;
                copy_async<sizeof(Cells)>(&slot(array, i), row_of(a + grid + start, line, plan.pitch), read);
                copy_async<sizeof(Cells)>(&slot(array + 1, i), row_of(b + grid + start, line, plan.pitch), read);
            }
            position = following(position, plan.rows);
        }
        if (BOUNDARY == ZERO || wraps) return;
        __syncwarp();  // No lane needs what lies in the slots any more.
        if (tile.left == 0) load_cells(tile, array, a + grid, b + grid, -plan.halo_x, plan.halo_x);
        if (tile.right >= plan.cols)
            load_cells(tile, array, a + grid, b + grid, plan.cols - cut, cut + plan.depth);
    };

    const auto load_tile = [&](const Tile& tile) {
        const bool odd = PASSES != ONE && tile.pass % 2;
        load(tile, 0, odd ? u_odd : u_even, odd ? v_odd : v_even, tile.member, ALL_ROWS);
    };

    if (threadIdx.x == 0) {
        start_barrier(&published, WARPS);
        places[0] = tile_at(plan, 0, blockIdx.x);
        if (PASSES != ONE) counted = load_flag(flag_of(plan, flags, places[0].member, places[0].y, places[0].x));
    }
    __syncthreads();
    load_tile(places[0]);
    unsigned parity = 0;
    for (int turn = 0;; turn = turn == 2 ? 0 : turn + 1) {
        Row rows[ROWS];
        const Tile& tile = places[turn];
        Coefficients k = constants;
        if (RATES == BY_MEMBER) k = reinterpret_cast<const Coefficients*>(feed)[tile.member];
        if (RATES == BY_CELL) load(tile, 2, feed, keep_v, plan.maps > 1 ? tile.member : 0, ALL_ROWS);

        // The next tile of this block, unless the block keeps the tile it has.
        const bool wraps = tile.position + gridDim.x >= plan.tiles;
        const bool more = PASSES == TURNS ? tile.pass + wraps < plan.passes : PASSES == ONE && !wraps;
        Tile next;
        const unsigned* around = flags;
        unsigned found = 0;
        if (more) {
            next = PASSES == ONE ? tile_at(plan, 0, tile.position + gridDim.x)
                 : tile_at(plan, tile.pass + wraps, tile.position + gridDim.x - (wraps ? plan.tiles : 0));
            if (threadIdx.x == 0) places[turn == 2 ? 0 : turn + 1] = next;
            if (PASSES == TURNS && next.pass > 0) {
                around = flag_around(plan, next, flags);
                found = peek_flag(around);
            }
        }

        const auto take = [&](unsigned wanted) {
            wait_copies();
            __syncwarp();
#pragma unroll
            for (int i = 0; i < ROWS; ++i)
                if (wanted >> i & 1) rows[i] = {slot(0, i), slot(1, i)};
        };
        take(ALL_ROWS);

        // With the boundary `zero`, the cells beside the grid have to stay 0. Those in other lanes count as 0. Those in the
        // rows of a warp, and in the last lane of the grid, are cleared after each step.
        Sides open = {1, 1};
        unsigned rows_inside = ALL_ROWS;
        bool is_cut = false, ragged = false;
        if (BOUNDARY == ZERO) {
            const int col = first_col(tile);
            open = {real(col != 0), real(col + COLS != plan.cols)};
            is_cut = REST && col < plan.cols && col + COLS > plan.cols;
            rows_inside = between(first_row(tile), 0, plan.rows, ALL_ROWS);
            ragged = __any_sync(~0u, is_cut || rows_inside != ALL_ROWS);
        }

        const auto publish = [&] {
            rim(parity, 0, 0, warp) = rows[0].u;
            rim(parity, 0, 1, warp) = rows[0].v;
            rim(parity, 1, 0, warp) = rows[ROWS - 1].u;
            rim(parity, 1, 1, warp) = rows[ROWS - 1].v;
            __syncwarp();
            if (lane == 0) arrive(&published);
        };
        if (PASSES == TURNS) {
            if (tile.pass > 0 || tile.position >= gridDim.x) {  // there was a tile before this one
                const Tile& before = places[turn == 0 ? 2 : turn - 1];
                post(flag_of(plan, flags, before.member, before.y, before.x));
            }
            if (more && next.pass > 0) {
                const unsigned count = counted + next.pass * WARPS;
                if (!__all_sync(~0u, (int)(found - count) >= 0)) await(around, count);
            }
        }
        if (more) load_tile(next);
        __syncwarp();

        const auto rates = [&](int i) { return RATES == BY_CELL ? Row{slot(2, i), slot(3, i)} : Row(); };
        for (int pass = PASSES == ONE ? 0 : tile.pass;; ++pass) {
            const bool exchange = PASSES == STAY && pass + 1 < plan.passes;
            real* u_to = PASSES != ONE && pass % 2 ? u_even : u_odd;
            real* v_to = PASSES != ONE && pass % 2 ? v_even : v_odd;
            const int row = first_row(tile), col = first_col(tile);
            const unsigned own_rows = between(row, tile.top, tile.bottom, ALL_ROWS);
            const bool owns = col >= tile.left && col < tile.right, whole = col + COLS <= plan.cols;
            unsigned stored = owns ? own_rows : 0;
            if (exchange && col >= tile.left + plan.outer_x && col + COLS <= tile.right - plan.outer_x)  // the outermost
                stored &= ~between(row, tile.top + plan.halo_y, tile.bottom - plan.halo_y, ALL_ROWS);
            const size_t first = ((size_t)tile.member * plan.rows + row) * plan.pitch + col;

            const auto step = [&](auto edge, auto last) {
                const int up = warp > 0 ? warp - 1 : plan.closed ? WARPS - 1 : 0;
                const int down = warp < WARPS - 1 ? warp + 1 : plan.closed ? 0 : WARPS - 1;
                wait(&published, parity);
                const Row above = {rim(parity, 1, 0, up), rim(parity, 1, 1, up)};
                const Row below = {rim(parity, 0, 0, down), rim(parity, 0, 1, down)};
                parity ^= 1;
                const auto advance_row_at = [&](int i, const Row& columns) {
                    advance_row(rows[i], columns, k, rates(i), open);
#pragma unroll
                    for (int j = 0; j < COLS; ++j) {
                        const bool is_outside = !(rows_inside >> i & 1) || (REST && j >= REST && is_cut);
                        if (edge.value && is_outside) rows[i].u.at[j] = rows[i].v.at[j] = 0;
                    }
                    if (last.value) {
                        store((Cells*)row_of(u_to + first, i, plan.pitch), rows[i].u, stored >> i & 1);
                        store((Cells*)row_of(v_to + first, i, plan.pitch), rows[i].v, stored >> i & 1);
                    }
                };
                // A row is overwritten once the sums that need its old cells have been taken. The two rows that other
                // warps wait for come first.
                const Row lowest = sum_columns(rows[ROWS - 2], rows[ROWS - 1], below);
                const Row lower = sum_columns(ROWS > 2 ? rows[ROWS - 3] : above, rows[ROWS - 2], rows[ROWS - 1]);
                advance_row_at(ROWS - 1, lowest);
                Row columns = ROWS > 2 ? sum_columns(above, rows[0], rows[1]) : lower;
#pragma unroll
                for (int i = 0; i < ROWS - 1; ++i) {
                    const Row next_columns = i < ROWS - 3 ? sum_columns(rows[i], rows[i + 1], rows[i + 2]) : lower;
                    advance_row_at(i, columns);
                    if (i == 0 && !last.value) publish();
                    columns = next_columns;
                }
            };
            const auto advance_by = [&](int steps, auto edge) {
#pragma unroll 2
                for (int i = 1; i < steps; ++i) step(edge, Choice<false>());
                step(edge, Choice<true>());  // It stores each row as soon as it is ready.
            };
            const int steps = plan.steps + (PASSES != ONE && pass < plan.longer);
            publish();
            if (BOUNDARY == ZERO && ragged) advance_by(steps, Choice<true>());
            else advance_by(steps, Choice<false>());
            if (!exchange) break;

            post(flag_of(plan, flags, tile.member, tile.y, tile.x));
            await(flag_around(plan, tile, flags), counted + (pass + 1) * WARPS);
            const unsigned foreign = owns && whole ? ~own_rows & ALL_ROWS : ALL_ROWS;
            load(tile, 0, u_to, v_to, tile.member, foreign);
            take(foreign);
            __syncwarp();  // tells the compiler that the lanes are together again
        }
        if (!more) {
            if (PASSES != ONE) post(flag_of(plan, flags, tile.member, tile.y, tile.x));
            break;
        }
    }
}
