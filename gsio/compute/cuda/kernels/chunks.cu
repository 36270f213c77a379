// The code that all encoders of chunks share. A chunk is encoded as streams, each in a slot of its own. Once all sizes
// are known, the streams are put together. Compiled with  -DCHECKSUM_THREADS  -DCHECKSUM_WORDS (words that a thread
// reads, CHECKSUM_THREADS apart).

typedef unsigned char byte;

#define ALL 0xffffffffu

struct Plan {              // filled by encoder.py
    long long cells;       // of a plane of a frame
    long long chunk_slot;  // bytes from one chunk to the next
    int itemsize;          // bytes of a cell
    int count;             // frames
    int fields;
    int frames;            // of a chunk
    int slabs;             // chunks along the first axis of a plane
    int slab;              // cells of a frame in a chunk
    int blocks;            // of a chunk, in each of which every byte of a cell has a stream
    int block;             // cells of a block
    int slot;              // bytes from one stream to the next
};

__device__ inline unsigned four_bytes(const unsigned* source, int at)
{
    return __funnelshift_r(source[at / 4], source[at / 4 + 1], at % 4 * 8);
}

// The sum of `mine` over the lanes before this one.
__device__ inline int sum_before(int mine)
{
    int sum = mine;
    for (int i = 1; i < 32; i *= 2) {
        const int behind = __shfl_up_sync(ALL, sum, i);
        if (threadIdx.x % 32 >= i) sum += behind;
    }
    return sum - mine;
}

// The sum over all threads of a block.
__device__ inline unsigned summed(unsigned mine)
{
    __shared__ unsigned sum;
    __syncthreads();  // All threads have read the previous sum.
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    mine = __reduce_add_sync(ALL, mine);
    if (threadIdx.x % 32 == 0) atomicAdd(&sum, mine);
    __syncthreads();
    return sum;
}

// The bytes of the first n streams of a chunk.
__device__ inline int before(const int* sizes, int n)
{
    int mine = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) mine += sizes[i];
    return summed(mine);
}

// Copies n bytes to any address with all threads of a block. It reads up to a word more.
__device__ inline void move(byte* to, const unsigned* from, int n)
{
    const int head = min(n, (int)(-(size_t)to % 4)), tail = (n - head) / 4 * 4 + head, thread = threadIdx.x;
    if (thread < head) to[thread] = ((const byte*)from)[thread];
    for (int i = head + 4 * thread; i < tail; i += 4 * blockDim.x) *(unsigned*)(to + i) = four_bytes(from, i);
    if (tail + thread < n) to[tail + thread] = ((const byte*)from)[tail + thread];
}

// Calls use(plane, cell, available, wanted) for each frame of a chunk, for its cells from `first` on. `plane` numbers
// the fields of all frames. Cells past `available` are zero padding, up to `wanted`.
template <typename Use>
__device__ inline void each_frame(const Plan& plan, int chunk, int first, int cells, Use use)
{
    const int field = chunk % plan.fields, slab = chunk / plan.fields % plan.slabs;
    const int frame = chunk / plan.fields / plan.slabs * plan.frames;
    for (int i = 0, next; i < cells; i = next) {
        const int behind = (first + i) / plan.slab, place = (first + i) % plan.slab;
        const long long cell = (long long)slab * plan.slab + place, left = max(0ll, plan.cells - cell);
        next = min(cells, i + plan.slab - place);
        const int inside = frame + behind < plan.count ? (int)min((long long)(next - i), left) : 0;
        use((long long)(frame + behind) * plan.fields + field, cell, inside, next - i);
    }
}

// CRC-32C: the remainder of a polynomial over GF(2), of which the highest bit of a word is the lowest coefficient.

__device__ constexpr unsigned product(unsigned a, unsigned b)
{
    unsigned sum = 0;
    for (int i = 0; i < 32; ++i, a <<= 1) {
        if (a >> 31) sum ^= b;
        b = b >> 1 ^ (b & 1 ? 0x82f63b78 : 0);
    }
    return sum;
}

struct Powers {  // x^(8 · 2^i)
    unsigned of[44];
    __device__ constexpr Powers() : of()
    {
        of[0] = 1u << 23;
        for (int i = 1; i < 44; ++i) of[i] = product(of[i - 1], of[i - 1]);
    }
};
__constant__ constexpr Powers powers{};

__device__ inline unsigned shifted(unsigned crc, long long nbytes)  // crc · x^(8 nbytes)
{
    for (int i = 0; nbytes >> i; ++i)
        if (nbytes >> i & 1) crc = product(crc, powers.of[i]);
    return crc;
}

__device__ inline unsigned word_at(const byte* bytes, long long at, bool aligned)
{
    if (aligned) return at < 0 ? 0 : *(const unsigned*)(bytes + at);
    unsigned value = 0;
    for (int i = 0; i < 4; ++i)
        if (at + i >= 0) value |= (unsigned)bytes[at + i] << 8 * i;
    return value;
}

// Adds the checksums of all frames, each of nbytes, to `checksums`, which start as 0. A block of threads takes a piece
// of a frame. Pieces are aligned to the end of the frame. Zeros pad the first one, and do not change the checksum.
extern "C" __global__ void __launch_bounds__(CHECKSUM_THREADS)
checksum(const byte* __restrict__ data, unsigned* __restrict__ checksums, long long nbytes, int pieces)
{
    __shared__ unsigned table[4][256];  // times x^(32 · CHECKSUM_THREADS), by byte
    for (int i = 0; i < 4; ++i) table[i][threadIdx.x] = product(threadIdx.x << 8 * i, powers.of[10]);
    __syncthreads();
    const long long frame = blockIdx.x / pieces, after = pieces - blockIdx.x % pieces;
    const byte* bytes = data + frame * nbytes;
    const bool aligned = nbytes % 4 == 0;
    long long at = nbytes - after * 4 * CHECKSUM_THREADS * CHECKSUM_WORDS + 4 * threadIdx.x;
    unsigned crc = 0;
#pragma unroll 4
    for (int i = 0; i < CHECKSUM_WORDS; ++i, at += 4 * CHECKSUM_THREADS) {
        crc = table[0][crc & 255] ^ table[1][crc >> 8 & 255] ^ table[2][crc >> 16 & 255] ^ table[3][crc >> 24];
        crc ^= word_at(bytes, at, aligned);
    }
    crc = shifted(crc, nbytes - at + 4 * CHECKSUM_THREADS);
    if (after == pieces && threadIdx.x == 0) crc ^= shifted(ALL, nbytes) ^ ALL;
    crc = __reduce_xor_sync(ALL, crc);
    if (threadIdx.x % 32 == 0) atomicXor(checksums + frame, crc);
}
