// The staging of a frame: it packs the values, orders their bytes as the codec wants, and takes the statistics.
// Compiled with  -DREAL=float|double, or the name of an integer  -DINTEGER=0|1 (integers are stored as they are)
// -DSHUFFLE=0|1  -DITEMSIZE=1|2|4|8 (of a stored value)  -DLEVELS=0|255|65535 (the integer that stands for 1)
// -DWORDS=4 (cells that a thread takes at once, so that it writes four bytes to each byte plane)
// -DDROPPED (bits of the mantissa; 0: all are kept)  -DLOSSY=0|1 (stored values differ)  -DSTAGE_THREADS
// -DSUMMARY_THREADS (of a block of stage and of summarise).

typedef REAL real;
typedef unsigned char byte;

#if ITEMSIZE == 8
typedef unsigned long long word;
#elif ITEMSIZE == 4
typedef unsigned int word;
#elif ITEMSIZE == 2
typedef unsigned short word;
#else
typedef byte word;
#endif
#if INTEGER
typedef real stored;
#elif ITEMSIZE == 8
typedef double stored;
#else
typedef float stored;
#endif

struct Statistics {  // in the order of STATISTICS in gsio/frames/layout.py
    double low, high, mean, error, nonfinite;
};

struct Plane {          // filled by sources.py
    long long rows;     // all axes of a field but the last one
    long long cols;
    long long pitch;    // cells from one row of a field to the next; `cols` of the packed values
    int lanes;          // of a warp that share a row; others take the next rows
    int piece, pieces;  // cells of a piece of a row, a multiple of WORDS * lanes, and the pieces of a row
    int whole;          // the plane is a whole one, not that of a band
};

__device__ inline Statistics merge(Statistics a, Statistics b)  // leaves the mean to summarise
{
    return {fmin(a.low, b.low), fmax(a.high, b.high), 0, fmax(a.error, b.error), a.nonfinite + b.nonfinite};
}

#define LARGEST 1.7976931348623157e308

__device__ inline Statistics nothing() { return {LARGEST, -LARGEST, 0, 0, 0}; }

// Returns the bits of a value as it is stored, and sets `found` to the value that a reader finds: see pack in
// gsio/compute/host.py.
__device__ inline word pack(real x, double& found)
{
#if LEVELS
    const double level = rint(fmin(fmax((double)x, 0.0), 1.0) * LEVELS);
    found = (real)level * (real)(1.0 / LEVELS);  // rounded as a reader does
    return (word)level;
#elif ITEMSIZE == 2 && !INTEGER
    word half;
    float value;
    if constexpr (sizeof(real) == 4) asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"((float)x));
    else asm("cvt.rn.f16.f64 %0, %1;" : "=h"(half) : "d"((double)x));
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    found = value;
    return half;
#else
    union { stored value; word bits; } here;
    here.value = (stored)x;
#if DROPPED
    const word one = 1;
    here.bits += (one << (DROPPED - 1)) - 1 + (here.bits >> DROPPED & 1);
    here.bits &= ~((one << DROPPED) - 1);
#endif
    found = here.value;
    return here.bits;
#endif
}

// Merges over a block of threads.
template <int THREADS> __device__ inline Statistics merge_block(Statistics mine)
{
    __shared__ Statistics all[THREADS];
    all[threadIdx.x] = mine;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) all[threadIdx.x] = merge(all[threadIdx.x], all[threadIdx.x + half]);
    }
    return all[0];
}

// Adds neighbours, then neighbours of these sums, and so on. The first lane of each `lanes` lanes gets their sum.
__device__ inline double add_lanes(double sum, int lanes)
{
    for (int i = 1; i < lanes; i *= 2) sum += __shfl_down_sync(0xffffffffu, sum, i);
    return sum;
}

// Packs a field into `data`, as byte planes if SHUFFLE. Leaves one partial result a block in `partial`, and in `sums`
// [piece, row] the sum of the finite values in each piece of a row, which depends on nothing but these values.
extern "C" __global__ void stage(const real* __restrict__ field, byte* __restrict__ data,
                                 Statistics* __restrict__ partial, double* __restrict__ sums, Plane plane)
{
    constexpr int WARPS = STAGE_THREADS / 32;
    Statistics mine = nothing();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % plane.lanes, together = 32 / plane.lanes;
    const long long items = (plane.rows + together - 1) / together * plane.pieces;
    for (long long item = (long long)blockIdx.x * WARPS + warp; item < items; item += (long long)gridDim.x * WARPS) {
        const long long line = item / plane.pieces, piece = item - line * plane.pieces;
        const long long row = line * together + threadIdx.x % 32 / plane.lanes;
        const long long first = row * plane.cols + piece * plane.piece;
        const long long end = row < plane.rows ? min(first + plane.piece, (row + 1) * plane.cols) : 0;
        const real* values = field + row * (plane.pitch - plane.cols);
        double sum = 0;
        for (long long i = first + lane * WORDS; i < end; i += plane.lanes * WORDS) {
            union { word value[WORDS]; byte bytes[WORDS][sizeof(word)]; } here;
#pragma unroll
            for (int j = 0; j < WORDS; ++j) {
                const real x = values[min(i + j, end - 1)];
                double found;
                here.value[j] = pack(x, found);
                if (i + j >= end) continue;
                const double value = x;
                if (INTEGER || isfinite(value)) {
                    mine = merge(mine, {value, value, 0, LOSSY ? fabs(found - value) : 0, 0});
                    sum += value;
                } else {
                    mine.nonfinite += 1;
                }
            }
#if SHUFFLE
#pragma unroll
            for (int byte_plane = 0; byte_plane < sizeof(word); ++byte_plane) {
                byte* out = data + byte_plane * plane.rows * plane.cols + i;
                const uchar4 four = make_uchar4(here.bytes[0][byte_plane], here.bytes[1][byte_plane],
                                                here.bytes[2][byte_plane], here.bytes[3][byte_plane]);
                if (plane.cols % WORDS == 0) {
                    *(uchar4*)out = four;
                } else {
                    out[0] = four.x;
                    if (i + 1 < end) out[1] = four.y;
                    if (i + 2 < end) out[2] = four.z;
                    if (i + 3 < end) out[3] = four.w;
                }
            }
#else
#pragma unroll
            for (int j = 0; j < WORDS; ++j)
                if (i + j < end) ((word*)data)[i + j] = here.value[j];
#endif
        }
        sum = add_lanes(sum, plane.lanes);
        if (lane == 0 && row < plane.rows) sums[piece * plane.rows + row] = sum;
    }
    mine = merge_block<STAGE_THREADS>(mine);
    if (threadIdx.x == 0) partial[blockIdx.x] = mine;
}

// Merges the partial results of `parts` blocks, at most STAGE_THREADS, for each plane. The sums of rows are added as a
// tree, see gsio/compute/statistics.py, for the mean of the finite values of a plane. Those of a band stay `row_sums`.
extern "C" __global__ void __launch_bounds__(SUMMARY_THREADS, 1)
summarise(const Statistics* __restrict__ partial, const double* __restrict__ sums, double* row_sums,
          Statistics* __restrict__ result, Plane plane, int parts)
{
    constexpr int WARPS = SUMMARY_THREADS / 32;
    const long long number = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Statistics all = threadIdx.x < parts ? partial[number * parts + threadIdx.x] : nothing();
    all = merge_block<SUMMARY_THREADS>(all);
    sums += number * plane.pieces * plane.rows;
    row_sums += number * plane.rows;
#pragma unroll 4
    for (long long at = 32 * warp; at < plane.rows; at += 32 * WARPS) {
        const long long row = at + lane;
        double sum = 0;
        for (int piece = 0; piece < plane.pieces && row < plane.rows; ++piece) sum += sums[piece * plane.rows + row];
        if (plane.whole) sum = add_lanes(sum, 32);
        if (plane.whole ? lane == 0 : row < plane.rows) row_sums[row] = sum;
    }
    for (long long step = 32; plane.whole && step < plane.rows; step *= 32) {
        __syncthreads();
        for (long long at = 32 * step * warp; at < plane.rows; at += 32 * step * WARPS) {
            const long long row = at + step * lane;
            const double sum = add_lanes(row < plane.rows ? row_sums[row] : 0, 32);
            if (lane == 0) row_sums[at] = sum;
        }
    }
    if (threadIdx.x != 0) return;
    const double finite = plane.rows * plane.cols - all.nonfinite;
    if (plane.whole && finite > 0) all.mean = row_sums[0] / finite;
    if (plane.whole && finite == 0) all.low = all.high = 0;
    result[number] = all;
}
