// The chunks of a block of frames as Blosc-1 frames, byte-shuffled and compressed by LZ4, and the frames' checksums.
//
//   frame   | versions, flags, sizes: 16 | where each block starts: 4 | … | block | block | … | last block |
//   block   | stream of byte plane 0 | of plane 1 | …        a last block that is shorter has all planes in one stream
//   stream  | size: 4 | LZ4, or the bytes as they are if that takes no fewer |
//   LZ4     | token | rest of the number of literals | literals | offset: 2 | rest of the match's length | token | …
//
// A warp makes a stream, in a slot of its own. When all sizes are known, the streams are put together, and sent. The
// formats: README_CHUNK_FORMAT.rst of c-blosc, lz4_Block_format.md of lz4.

typedef unsigned char byte;

#define ALL 0xffffffffu
#define STREAM 8192        // bytes before compression, at most: STREAM_BYTES in gsio/staging.py
#define LEAST 128          // bytes of a plane: Blosc does not split blocks of smaller ones
#define HASH_BITS 10
#define AT_ONCE 8          // cells a lane loads
#define REACH 16           // bytes of a match that a lane finds alone
#define BEYOND 136         // the end, that the last look at a match can read
#define BEFORE_END 12      // where the last match has to begin, and
#define LITERALS_AT_END 5  // where it has to end

struct Plan {              // as in gsio/compute/cuda.py
    long long cells;       // of a plane of a frame
    long long chunk_slot;  // bytes from one chunk to the next
    int itemsize;          // bytes of a cell
    int count;             // frames
    int fields;
    int frames;            // of a chunk
    int slabs;             // chunks along the first axis of a plane
    int slab;              // cells of a frame in a chunk
    int blocks;            // of a chunk
    int block;             // cells of a block
    int slot;              // bytes from one stream to the next
};

__device__ inline unsigned four_bytes(const unsigned* source, int at)
{
    return __funnelshift_r(source[at / 4], source[at / 4 + 1], at % 4 * 8);
}

__device__ inline int rest(int length) { return length < 15 ? 0 : (length - 15) / 255 + 1; }  // bytes after the token

__device__ inline byte* put_rest(byte* to, int length)
{
    for (length -= 15; length >= 0; length -= 255) *to++ = min(length, 255);
    return to;
}

// Compresses n bytes to `out` and returns how many they became, or n if not fewer. The 32 lanes look at places `step`
// apart: where were the same four bytes last, by a table and among the 32? Then matches are chosen from the left, and
// every lane puts down its own match, and one byte in 32 of the literals: one sequence at a time was several times slower.
__device__ int compress(const unsigned* source, int n, unsigned short* table, byte* out)
{
    const byte* bytes = (const byte*)source;
    const int lane = threadIdx.x, last = n - BEFORE_END;
    int size = 0, done = 0, step = 1;
    for (int at = 0; at <= last;) {
        const int here = min(at + lane * step, last);
        const unsigned value = four_bytes(source, here);
        const unsigned hash = value * 2654435761u >> (32 - HASH_BITS);
        const unsigned same = __match_any_sync(ALL, hash), before = same & ((1u << lane) - 1);
        const int there = before ? at + (31 - __clz(before)) * step : table[hash];
        const bool found = there < here && four_bytes(source, there) == value;
        unsigned hits = __ballot_sync(ALL, found), chosen = 0;
        if (same >> lane == 1) table[hash] = here;
        __syncwarp();
        int length = 4, literals = 0;
        for (unsigned differ = 0; found && !differ && length < REACH;) {
            differ = four_bytes(source, here + length) ^ four_bytes(source, there + length);
            length += differ ? (__ffs(differ) - 1) / 8 : 4;
        }
        length = min(length, n - LITERALS_AT_END - here);
        const int begin = done;
        while (hits) {
            const int first = __ffs(hits) - 1, start = min(at + first * step, last);
            int end = start + __shfl_sync(ALL, length, first);
            if (end - start == REACH) {
                const int offset = start - __shfl_sync(ALL, there, first);
                for (unsigned differ = 0; !differ && end < n - LITERALS_AT_END;) {
                    const int mine = end + 4 * lane;
                    const unsigned difference = four_bytes(source, mine) ^ four_bytes(source, mine - offset);
                    differ = __ballot_sync(ALL, difference != 0);
                    const int place = differ ? __ffs(differ) - 1 : 31;
                    end += 4 * place + __shfl_sync(ALL, difference ? (__ffs(difference) - 1) / 8 : 4, place);
                }
                end = min(end, n - LITERALS_AT_END);
            }
            if (lane == first) length = end - start, literals = start - done;
            done = end;
            chosen |= 1u << first;
            const int covered = step == 1 ? end - at : 32;
            hits = covered < 32 ? hits >> covered << covered : 0;
        }
        if (chosen) {
            const bool mine = chosen >> lane & 1;
            const int nbytes = mine ? 3 + literals + rest(literals) + rest(length - 4) : 0;
            int total = nbytes;
            for (int i = 1; i < 32; i *= 2) {
                const int behind = __shfl_up_sync(ALL, total, i);
                if (lane >= i) total += behind;
            }
            byte* to = out + size + total - nbytes;
            size += __shfl_sync(ALL, total, 31);
            if (size >= n) return n;
            if (mine) *to = min(literals, 15) << 4 | min(length - 4, 15);
            byte* literal = mine ? put_rest(to + 1, literals) : to;
            if (mine) {
                literal[literals] = here - there;
                literal[literals + 1] = (here - there) >> 8;
                put_rest(literal + literals + 2, length - 4);
            }
            const int shift = literal - out - (here - literals);
            for (int i = begin; i < at + (31 - __clz(chosen)) * step; i += 32) {
                const int covered = step == 1 ? max(i + lane - at, 0) : 0;  // lanes that are before this literal
                const int of = covered < 32 ? __ffs(chosen >> covered) - 1 + covered : 31;
                const int until = __shfl_sync(ALL, here, of), from = until - __shfl_sync(ALL, literals, of);
                const int moved = __shfl_sync(ALL, shift, of);
                if (i + lane >= from && i + lane < until) out[i + lane + moved] = bytes[i + lane];
            }
        }
        at = chosen && step > 1 ? done : max(at + 32 * step, done);
        step = chosen ? 1 : step + 1;  // ever faster through noise
    }
    const int literals = n - done, more = rest(literals);
    if (size + 1 + more + literals >= n) return n;
    out += size;
    if (lane == 0) *out = min(literals, 15) << 4, put_rest(out + 1, literals);
    for (int i = lane; i < literals; i += 32) out[1 + more + i] = bytes[done + i];
    return size + 1 + more + literals;
}

// Loads one byte of each of the first `inside` cells, appends them to n bytes, with 0 up to `cells`, and returns how many
// there are then.
__device__ inline int load(const byte* from, int itemsize, int inside, byte* to, int n, int cells)
{
    for (int i = threadIdx.x; i < cells; i += 32 * AT_ONCE) {
        byte values[AT_ONCE];
#pragma unroll
        for (int j = 0, k = i; j < AT_ONCE; ++j, k += 32) values[j] = k < inside ? from[(long long)k * itemsize] : 0;
#pragma unroll
        for (int j = 0, k = i; j < AT_ONCE; ++j, k += 32)
            if (k < cells) to[n + k] = values[j];
    }
    return n + cells;
}

// Makes the streams of all chunks, chunk by chunk and of each block by block, and the bytes each takes with its size.
extern "C" __global__ void __launch_bounds__(32)
encode(const byte* __restrict__ data, byte* __restrict__ streams, int* __restrict__ sizes, Plan plan)
{
    __shared__ unsigned source[(STREAM + BEYOND) / 4];
    __shared__ unsigned short table[1 << HASH_BITS];
    const int lane = threadIdx.x, chunk = blockIdx.x / plan.itemsize / plan.blocks;
    const int block = blockIdx.x / plan.itemsize % plan.blocks;
    const int field = chunk % plan.fields, slab = chunk / plan.fields % plan.slabs;
    const int frame = chunk / plan.fields / plan.slabs * plan.frames, first = block * plan.block;
    const int cells = min(plan.block, plan.frames * plan.slab - first);
    const bool split = cells == plan.block && cells >= LEAST;
    int plane = blockIdx.x % plan.itemsize, n = 0;
    if (plane > 0 && !split) {
        if (lane == 0) sizes[blockIdx.x] = 0;
        return;
    }
    for (const int end = split ? plane + 1 : plan.itemsize; plane < end; ++plane)
        for (int i = 0, next; i < cells; i = next) {  // a frame, or what of it is in the block
            const int behind = (first + i) / plan.slab, place = (first + i) % plan.slab;
            const long long cell = (long long)slab * plan.slab + place;
            const long long at = ((long long)(frame + behind) * plan.fields + field) * plan.cells + cell;
            next = min(cells, i + plan.slab - place);
            const int inside = frame + behind < plan.count ? min((long long)(next - i), plan.cells - cell) : 0;
            n = load(data + at * plan.itemsize + plane, plan.itemsize, inside, (byte*)source, n, next - i);
        }
    for (int i = lane; i < 1 << HASH_BITS; i += 32) table[i] = 0;
    __syncwarp();
    int* stream = (int*)(streams + (long long)blockIdx.x * plan.slot);
    const int size = compress(source, n, table, (byte*)(stream + 1));
    __syncwarp();  // what was put down in vain is written over
    if (size == n)
        for (int i = lane; i < (n + 3) / 4; i += 32) stream[1 + i] = source[i];
    if (lane == 0) sizes[blockIdx.x] = 4 + (*stream = size);
}

// Puts the streams of a block together, where its chunk is in `frames`; each warp has a plane.
extern "C" __global__ void gather(byte* __restrict__ frames, const byte* __restrict__ streams,
                                  const int* __restrict__ sizes, Plan plan)
{
    __shared__ int sums[32];
    const int chunk = blockIdx.x / plan.blocks, block = blockIdx.x % plan.blocks;
    const int lane = threadIdx.x % 32, plane = threadIdx.x / 32;
    const int *mine = sizes + blockIdx.x * plan.itemsize, *of_chunk = mine - block * plan.itemsize;
    int sum = 0;
    for (int i = threadIdx.x; i < block * plan.itemsize; i += blockDim.x) sum += of_chunk[i];
    sum = __reduce_add_sync(ALL, sum);
    if (lane == 0) sums[plane] = sum;
    __syncthreads();
    int start = 16 + 4 * plan.blocks, total = 0;
    for (int i = 0; i < plan.itemsize; ++i) start += sums[i], total += mine[i];
    byte* frame = frames + chunk * plan.chunk_slot;
    if (threadIdx.x == 0) {
        int* header = (int*)frame;
        header[4 + block] = start;
        if (block == 0) {
            header[0] = 2 | 1 << 8 | (1 << 5 | 1) << 16 | plan.itemsize << 24;  // the formats' versions; LZ4, shuffled
            header[1] = plan.frames * plan.slab * plan.itemsize;
            header[2] = plan.block * plan.itemsize;
        }
        if (block == plan.blocks - 1) header[3] = start + total;
    }
    for (int i = 0; i < plane; ++i) start += mine[i];
    const unsigned* from = (const unsigned*)(streams + ((long long)blockIdx.x * plan.itemsize + plane) * plan.slot);
    byte* to = frame + start;
    const int n = mine[plane], head = min(n, (int)(-(size_t)to % 4)), tail = (n - head) / 4 * 4 + head;
    if (lane < head) to[lane] = ((const byte*)from)[lane];
    for (int i = head + 4 * lane; i < tail; i += 128) *(unsigned*)(to + i) = four_bytes(from, i);
    if (tail + lane < n) to[tail + lane] = ((const byte*)from)[tail + lane];
}

// Copies the first `header` bytes of a block to memory of the host, and of each chunk after them what there is: 16 bytes
// at once, or the link is not used well.
extern "C" __global__ void send(const byte* __restrict__ block, byte* __restrict__ host, long long header,
                                long long chunk_slot)
{
    const long long place = blockIdx.x ? header + (blockIdx.x - 1) * chunk_slot : 0;
    const uint4* from = (const uint4*)(block + place);
    uint4* to = (uint4*)(host + place);
    const long long n = ((blockIdx.x ? ((const int*)from)[3] : header) + 15) / 16;
    for (long long i = blockIdx.y * blockDim.x + threadIdx.x; i < n; i += gridDim.y * blockDim.x) to[i] = from[i];
}

// CRC-32C: the remainder of a polynomial over GF(2), of which the highest bit of a word is the lowest coefficient.
#define THREADS 256
#define WORDS 128  // of a thread, THREADS apart

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

// Adds the checksums of all frames, each of nbytes, to `checksums`, which are 0 before. A block of threads takes a piece
// of a frame; the pieces are counted from its end, and what the first has too much of is 0, which changes nothing.
extern "C" __global__ void __launch_bounds__(THREADS)
checksum(const byte* __restrict__ data, unsigned* __restrict__ checksums, long long nbytes, int pieces)
{
    __shared__ unsigned table[4][256];  // times x^(32 · THREADS), by byte
    for (int i = 0; i < 4; ++i) table[i][threadIdx.x] = product(threadIdx.x << 8 * i, powers.of[10]);
    __syncthreads();
    const long long frame = blockIdx.x / pieces, after = pieces - blockIdx.x % pieces;
    const byte* bytes = data + frame * nbytes;
    const bool aligned = nbytes % 4 == 0;
    long long at = nbytes - after * 4 * THREADS * WORDS + 4 * threadIdx.x;
    unsigned crc = 0;
#pragma unroll 4
    for (int i = 0; i < WORDS; ++i, at += 4 * THREADS) {
        crc = table[0][crc & 255] ^ table[1][crc >> 8 & 255] ^ table[2][crc >> 16 & 255] ^ table[3][crc >> 24];
        crc ^= word_at(bytes, at, aligned);
    }
    crc = shifted(crc, nbytes - at + 4 * THREADS);
    if (after == pieces && threadIdx.x == 0) crc ^= shifted(ALL, nbytes) ^ ALL;
    crc = __reduce_xor_sync(ALL, crc);
    if (threadIdx.x % 32 == 0) atomicXor(checksums + frame, crc);
}
