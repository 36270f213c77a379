// The staging of a frame: it packs the values, orders their bytes as the codec wants, and takes the statistics.
// Compiled with  -DREAL=float|double, or the name of an integer  -DINTEGER=0|1 (integers are stored as they are)
// -DSHUFFLE=0|1  -DITEMSIZE=1|2|4|8 (of a stored value)  -DLEVELS=0|255|65535 (the integer that stands for 1)
// -DWORDS=4 (cells that a thread takes at once, so that it writes four bytes to each byte plane)
// -DDROPPED (bits of the mantissa; 0: all are kept)  -DLOSSY=0|1 (stored values differ).

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
    double low, high, sum, error, nonfinite;
};

__device__ inline Statistics merge(Statistics a, Statistics b)
{
    return {fmin(a.low, b.low), fmax(a.high, b.high), a.sum + b.sum, fmax(a.error, b.error), a.nonfinite + b.nonfinite};
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

// Merges over a block of STAGE_THREADS threads, always in the same order, so that the mean has the same bits every time.
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

// Packs a field into `data`, as byte planes if SHUFFLE, and leaves one partial result a block in `partial`.
extern "C" __global__ void stage(const real* __restrict__ field, byte* __restrict__ data,
                                 Statistics* __restrict__ partial, long long cells)
{
    Statistics mine = nothing();
    const long long stride = (long long)gridDim.x * blockDim.x * WORDS;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * WORDS; i < cells; i += stride) {
        union { word value[WORDS]; byte bytes[WORDS][sizeof(word)]; } here;
#pragma unroll
        for (int j = 0; j < WORDS; ++j) {
            const real x = field[min(i + j, cells - 1)];
            double found;
            here.value[j] = pack(x, found);
            if (i + j >= cells) continue;
            const double value = x;
            if (INTEGER || isfinite(value))
                mine = merge(mine, {value, value, value, LOSSY ? fabs(found - value) : 0, 0});
            else
                mine.nonfinite += 1;
        }
#if SHUFFLE
#pragma unroll
        for (int plane = 0; plane < sizeof(word); ++plane) {
            byte* out = data + plane * cells + i;
            const uchar4 four = make_uchar4(here.bytes[0][plane], here.bytes[1][plane],
                                            here.bytes[2][plane], here.bytes[3][plane]);
            if (cells % WORDS == 0) {
                *(uchar4*)out = four;
            } else {
                out[0] = four.x;
                if (i + 1 < cells) out[1] = four.y;
                if (i + 2 < cells) out[2] = four.z;
                if (i + 3 < cells) out[3] = four.w;
            }
        }
#else
#pragma unroll
        for (int j = 0; j < WORDS; ++j)
            if (i + j < cells) ((word*)data)[i + j] = here.value[j];
#endif
    }
    mine = merge_block(mine);
    if (threadIdx.x == 0) partial[blockIdx.x] = mine;
}

// Merges the partial results of `parts` blocks, at most STAGE_THREADS, for each plane, and turns the sum into the mean of
// the finite values.
extern "C" __global__ void summarise(const Statistics* __restrict__ partial, Statistics* __restrict__ result,
                                     long long cells, int parts)
{
    const long long plane = blockIdx.x;
    Statistics all = merge_block(threadIdx.x < parts ? partial[plane * parts + threadIdx.x] : nothing());
    if (threadIdx.x != 0) return;
    const double finite = cells - all.nonfinite;
    result[plane] = finite > 0 ? Statistics{all.low, all.high, all.sum / finite, all.error, all.nonfinite}
                         : Statistics{0, 0, 0, 0, all.nonfinite};
}
