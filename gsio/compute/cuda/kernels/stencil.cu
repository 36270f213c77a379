// The update of a row of cells. A lane of a warp has COLS columns, and takes its neighbours in a row from other lanes.

typedef REAL real;
typedef unsigned char byte;

enum { PERIODIC, NEUMANN, ZERO };       // BOUNDARY
enum { CONSTANT, BY_MEMBER, BY_CELL };  // RATES: how feed and keep_v vary
enum { ONE, STAY, TURNS };              // PASSES of a launch: one; or many, where blocks stay at their tiles or take turns

#define THREADS (32 * WARPS)
#define ALL_ROWS ((1u << ROWS) - 1)

struct alignas(sizeof(real) * COLS) Cells {
    real at[COLS];
};

struct Coefficients {  // of gray_scott.py
    real spread_u, spread_v, rest, feed, keep_u, keep_v, dt;
};

__device__ inline real multiply_add(real a, real b, real c)
{
    if constexpr (sizeof(real) == 4) return fmaf(a, b, c);
    else return fma(a, b, c);
}

// With the boundary `zero`, 0 for a side of a lane where the grid ends, and else 1.
struct Sides {
    real left, right;
};

// One row of both fields.
struct Row {
    Cells u, v;
};

// The weighted sums of three rows along the columns. The five-point stencil, CENTRE 0, leaves out the middle row.
__device__ inline Cells sum_columns(const Cells& above, const Cells& here, const Cells& below)
{
    Cells sum;
#pragma unroll
    for (int j = 0; j < COLS; ++j) {
        sum.at[j] = above.at[j] + below.at[j];
        if (CENTRE != 0) sum.at[j] = multiply_add(CENTRE, here.at[j], sum.at[j]);
    }
    return sum;
}

__device__ inline Row sum_columns(const Row& above, const Row& here, const Row& below)
{
    return {sum_columns(above.u, here.u, below.u), sum_columns(above.v, here.v, below.v)};
}

// The weighted sums of the nine cells around each cell of the row `here`, or of four of them.
__device__ inline Cells sum_around(const Cells& columns, const Cells& here, const Sides& open)
{
    const Cells& row = CENTRE != 0 ? columns : here;
    const real left = __shfl_up_sync(~0u, row.at[COLS - 1], 1), right = __shfl_down_sync(~0u, row.at[0], 1);
    Cells sum;
#pragma unroll
    for (int j = 0; j < COLS; ++j) {
        const bool first = j == 0, last = j == COLS - 1;
        const real before = first ? left : row.at[j - 1], after = last ? right : row.at[j + 1];
        const real beside = BOUNDARY != ZERO || !(first || last) ? before + after
                          : first && last ? multiply_add(open.left, before, open.right * after)
                          : first ? multiply_add(open.left, before, after) : multiply_add(open.right, after, before);
        sum.at[j] = CENTRE != 0 ? multiply_add(CENTRE, columns.at[j], beside) : beside + columns.at[j];
    }
    return sum;
}

// Advances a row by one step, given its sums along the columns; `rates` are feed and keep_v of its cells, if they vary.
__device__ inline void advance_row(Row& row, const Row& columns, const Coefficients& k, const Row& rates,
                                   const Sides& open)
{
    const Cells around_u = sum_around(columns.u, row.u, open), around_v = sum_around(columns.v, row.v, open);
#pragma unroll
    for (int j = 0; j < COLS; ++j) {
        const real u = row.u.at[j], v = row.v.at[j], dt_v = UNIT_DT ? v : k.dt * v;
        const real feed = RATES == BY_CELL ? rates.u.at[j] : k.feed;
        const real keep_u = RATES == BY_CELL ? k.rest - feed : k.keep_u;
        const real keep_v = RATES == BY_CELL ? rates.v.at[j] : k.keep_v;
        const real less = multiply_add(-dt_v, v, keep_u), more = multiply_add(dt_v, u, keep_v);
        row.u.at[j] = multiply_add(k.spread_u, around_u.at[j], multiply_add(less, u, feed));
        row.v.at[j] = multiply_add(k.spread_v, around_v.at[j], more * v);
    }
}

