// The staging of a frame: it packs the values, orders their bytes as the codec wants, and takes the statistics.
// Compiled with  -DREAL=float|double  -DSHUFFLE=0|1  -DITEMSIZE=1|2|4|8 (of a stored value)  -DLEVELS=0|255|65535 (the
// integer that stands for 1)  -DDROPPED (bits of the mantissa; 0: all are kept)  -DLOSSY=0|1 (stored values differ).

typedef REAL real;
typedef unsigned char byte;

#if ITEMSIZE == 8
typedef unsigned long long word;
typedef double stored;
#elif ITEMSIZE == 4
typedef unsigned int word;
typedef float stored;
#elif ITEMSIZE == 2
typedef unsigned short word;
#else
typedef byte word;
#endif

struct Statistics {  // in the order of STATISTICS in gsio/frames/layout.py
    double low, high, mean, error, nonfinite;
};

struct Plane {          // filled by stage.py
    long long rows;     // all axes of the field but the last one
    long long cols;
    int piece, pieces;  // cells of a piece of a row, a multiple of 32 * WORDS, and the pieces of a row
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
#elif ITEMSIZE == 2
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

// Merges over a block of STAGE_THREADS threads.
__device__ inline Statistics merge_block(Statistics mine)
{
    __shared__ Statistics all[STAGE_THREADS];
    all[threadIdx.x] = mine;
    for (int half = STAGE_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) all[threadIdx.x] = merge(all[threadIdx.x], all[threadIdx.x + half]);
    }
    return all[0];
}

// Adds neighbours, then neighbours of these sums, and so on, over the lanes of a warp. Lane 0 gets the sum.
__device__ inline double add_lanes(double sum)
{
#pragma unroll
    for (int i = 1; i < 32; i *= 2) sum += __shfl_down_sync(0xffffffffu, sum, i);
    return sum;
}

#define WORDS 4  // cells a thread takes at once, so that it writes four bytes to each byte plane
#define WARPS (STAGE_THREADS / 32)

// Packs a field into `data`, as byte planes if SHUFFLE. Leaves one partial result a block in `partial`, and in `sums`
// [piece, row] the sum of the finite values of each piece of a row, which depends on nothing but this piece.
extern "C" __global__ void stage(const real* __restrict__ field, byte* __restrict__ data,
                                 Statistics* __restrict__ partial, double* __restrict__ sums, Plane plane)
{
    Statistics mine = nothing();
    for (long long item = (long long)blockIdx.x * WARPS + threadIdx.x / 32; item < plane.rows * plane.pieces;
         item += (long long)gridDim.x * WARPS) {
        const long long row = item / plane.pieces, piece = item - row * plane.pieces;
        const long long first = row * plane.cols + piece * plane.piece;
        const long long end = min(first + plane.piece, (row + 1) * plane.cols);
        double sum = 0;
        for (long long i = first + threadIdx.x % 32 * WORDS; i < end; i += 32 * WORDS) {
            union { word value[WORDS]; byte bytes[WORDS][sizeof(word)]; } here;
#pragma unroll
            for (int j = 0; j < WORDS; ++j) {
                const real x = field[min(i + j, end - 1)];
                double found;
                here.value[j] = pack(x, found);
                if (i + j >= end) continue;
                if (isfinite(x)) {
                    mine = merge(mine, {x, x, 0, LOSSY ? fabs(found - x) : 0, 0});
                    sum += x;
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
        sum = add_lanes(sum);
        if (threadIdx.x % 32 == 0) sums[piece * plane.rows + row] = sum;
    }
    mine = merge_block(mine);
    if (threadIdx.x == 0) partial[blockIdx.x] = mine;
}

// Merges the partial results of STAGE_THREADS blocks, and sets `row_sums`. If the plane is whole, these are then added
// as a tree (see gsio/compute/host.py) for the mean of the finite values. The rows of a band are only a part of it.
extern "C" __global__ void summarise(const Statistics* __restrict__ partial, const double* __restrict__ sums,
                                     double* row_sums, Statistics* __restrict__ result, Plane plane)
{
    Statistics all = merge_block(partial[threadIdx.x]);
    for (long long row = threadIdx.x; row < plane.rows; row += STAGE_THREADS) {
        double sum = 0;
        for (int piece = 0; piece < plane.pieces; ++piece) sum += sums[piece * plane.rows + row];
        row_sums[row] = sum;
    }
    const double finite = plane.rows * plane.cols - all.nonfinite;
    if (plane.whole && finite == 0) all.low = all.high = all.error = 0;
    for (long long step = 1; plane.whole && step < plane.rows; step *= 32) {
        __syncthreads();
        for (long long at = 32 * step * (threadIdx.x / 32); at < plane.rows; at += 32 * step * WARPS) {
            const long long mine = at + step * (threadIdx.x % 32);
            const double sum = add_lanes(mine < plane.rows ? row_sums[mine] : 0);
            if (threadIdx.x % 32 == 0) row_sums[at] = sum;
        }
    }
    if (threadIdx.x != 0) return;
    if (plane.whole && finite > 0) all.mean = row_sums[0] / finite;
    *result = all;
}
