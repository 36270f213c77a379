// The staging of a frame: its bytes in the order the codec wants them, and its statistics.
// Compiled with  -DREAL=float|double  -DSHUFFLE=0|1.

typedef REAL real;
typedef unsigned char byte;

struct Statistics {  // in the order of gsio/staging.py
    double low, high, sum, nonfinite;
};

__device__ inline Statistics merge(Statistics a, Statistics b)
{
    return {fmin(a.low, b.low), fmax(a.high, b.high), a.sum + b.sum, a.nonfinite + b.nonfinite};
}

#define LARGEST 1.7976931348623157e308

__device__ inline Statistics nothing() { return {LARGEST, -LARGEST, 0, 0}; }

// Merges over a block of 256 threads, always in the same order, so that the mean has the same bits every time.
__device__ inline Statistics merge_block(Statistics mine)
{
    __shared__ Statistics all[256];
    all[threadIdx.x] = mine;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) all[threadIdx.x] = merge(all[threadIdx.x], all[threadIdx.x + half]);
    }
    return all[0];
}

#define WORDS 4  // cells a thread takes at once, so that it writes four bytes to each byte plane

// Copies a field to `data`, as byte planes if SHUFFLE, and leaves one partial result a block in `partial`.
extern "C" __global__ void stage(const real* __restrict__ field, byte* __restrict__ data,
                                 Statistics* __restrict__ partial, long long cells)
{
    Statistics mine = nothing();
    const long long stride = (long long)gridDim.x * blockDim.x * WORDS;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * WORDS; i < cells; i += stride) {
        union { real value[WORDS]; byte bytes[WORDS][sizeof(real)]; } here;
#pragma unroll
        for (int j = 0; j < WORDS; ++j) {
            here.value[j] = field[min(i + j, cells - 1)];
            if (i + j >= cells) continue;
            if (isfinite(here.value[j]))
                mine = merge(mine, {here.value[j], here.value[j], here.value[j], 0});
            else
                mine.nonfinite += 1;
        }
#if SHUFFLE
#pragma unroll
        for (int plane = 0; plane < sizeof(real); ++plane) {
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
            if (i + j < cells) ((real*)data)[i + j] = here.value[j];
#endif
    }
    mine = merge_block(mine);
    if (threadIdx.x == 0) partial[blockIdx.x] = mine;
}

// Merges the partial results of 256 blocks, and turns the sum into the mean of the finite values.
extern "C" __global__ void summarise(const Statistics* __restrict__ partial, Statistics* __restrict__ result,
                                     long long cells)
{
    Statistics all = merge_block(partial[threadIdx.x]);
    if (threadIdx.x != 0) return;
    const double finite = cells - all.nonfinite;
    *result = finite > 0 ? Statistics{all.low, all.high, all.sum / finite, all.nonfinite}
                         : Statistics{0, 0, 0, all.nonfinite};
}
