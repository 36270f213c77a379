// Chunks as Blosc-1 frames, byte-shuffled and compressed by LZ4; compiled after chunks.cu, with
// -DSEGMENT (bytes before compression, at most).
//
//   frame   | versions, flags, sizes: 16 | where each block starts: 4 | … | block | block | … | last block |
//   block   | stream of byte plane 0 | of plane 1 | …        a last block that is shorter has all planes in one stream
//   stream  | size: 4 | LZ4, or the bytes as they are if that takes no fewer |
//   LZ4     | token | rest of the number of literals | literals | offset: 2 | rest of the match's length | token | …
//
// A warp makes a stream. The formats: README_CHUNK_FORMAT.rst of c-blosc, lz4_Block_format.md of lz4.

#define LEAST 128          // bytes of a plane: Blosc does not split a block with smaller planes
#define HASH_BITS 9        // 10 bits make chunks 0.6 % smaller, but fewer streams fit into shared memory
#define AT_ONCE 16         // cells a lane loads
#define REACH 16           // bytes of a match that a lane finds alone
#define BEYOND 136         // bytes past the end that the last search for a match can read
#define BEFORE_END 12      // bytes before the end where the last match begins at the latest
#define LITERALS_AT_END 5  // and where it ends at the latest

__device__ inline int rest(int length) { return length < 15 ? 0 : (length - 15) / 255 + 1; }  // bytes after the token

__device__ inline byte* put_rest(byte* to, int length)
{
    for (length -= 15; length >= 0; length -= 255) *to++ = min(length, 255);
    return to;
}

// Compresses n bytes to `out`, and returns the compressed size, or n if it is not smaller. The 32 lanes look at places
// `step` apart. Each searches a table and the other lanes for the last place with the same four bytes. Matches are
// chosen from the left. Each lane writes its own match and every 32nd literal: one sequence at a time was several times
// slower.
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
        __syncwarp();
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
                const int covered = step == 1 ? max(i + lane - at, 0) : 0;  // lanes before this literal
                const int of = covered < 32 ? __ffs(chosen >> covered) - 1 + covered : 31;
                const int until = __shfl_sync(ALL, here, of), from = until - __shfl_sync(ALL, literals, of);
                const int moved = __shfl_sync(ALL, shift, of);
                if (i + lane >= from && i + lane < until) out[i + lane + moved] = bytes[i + lane];
            }
        }
        at = chosen && step > 1 ? done : max(at + 32 * step, done);
        step = chosen ? 1 : step + 1;  // The search speeds up in noise.
    }
    const int literals = n - done, more = rest(literals);
    if (size + 1 + more + literals >= n) return n;
    out += size;
    if (lane == 0) *out = min(literals, 15) << 4, put_rest(out + 1, literals);
    for (int i = lane; i < literals; i += 32) out[1 + more + i] = bytes[done + i];
    return size + 1 + more + literals;
}

// Appends one byte of each of the first `inside` cells to n bytes, and zeros up to `cells`. Returns the new number of
// bytes.
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

// Makes the streams of all chunks, in the order of chunks and of their blocks, and the bytes of each with its size.
// The high bytes of the cells take longest, so that they come first: the last streams should not end late.
extern "C" __global__ void __launch_bounds__(32)
encode(const byte* __restrict__ data, byte* __restrict__ streams, int* __restrict__ sizes, Plan plan)
{
    __shared__ unsigned source[(SEGMENT + BEYOND) / 4];
    __shared__ unsigned short table[1 << HASH_BITS];
    const int of_plane = gridDim.x / plan.itemsize, place = blockIdx.x % of_plane;
    const int lane = threadIdx.x, chunk = place / plan.blocks, block = place % plan.blocks;
    const int first = block * plan.block;
    const int cells = min(plan.block, plan.frames * plan.slab - first);
    const bool split = cells == plan.block && cells >= LEAST;
    int plane = plan.itemsize - 1 - blockIdx.x / of_plane, n = 0;
    const int number = place * plan.itemsize + plane;
    if (plane > 0 && !split) {
        if (lane == 0) sizes[number] = 0;
        return;
    }
    for (const int end = split ? plane + 1 : plan.itemsize; plane < end; ++plane)
        each_frame(plan, chunk, first, cells, [&](long long of, long long cell, int inside, int here) {
            const byte* from = data + (of * plan.cells + cell) * plan.itemsize + plane;
            n = load(from, plan.itemsize, inside, (byte*)source, n, here);
        });
    for (int i = lane; i < 1 << HASH_BITS; i += 32) table[i] = 0;
    __syncwarp();
    int* stream = (int*)(streams + (long long)number * plan.slot);
    const int size = compress(source, n, table, (byte*)(stream + 1));
    __syncwarp();  // An output that did not shrink is overwritten.
    if (size == n)
        for (int i = lane; i < (n + 3) / 4; i += 32) stream[1 + i] = source[i];
    if (lane == 0) sizes[number] = 4 + (*stream = size);
}

// Puts a stream into its chunk, and writes the entry of the stream in the header of the chunk.
extern "C" __global__ void gather(byte* __restrict__ frames, const byte* __restrict__ streams,
                                  const int* __restrict__ sizes, int* __restrict__ ends, Plan plan)
{
    const int of_chunk = plan.blocks * plan.itemsize, chunk = blockIdx.x / of_chunk, stream = blockIdx.x % of_chunk;
    const int start = 16 + 4 * plan.blocks + before(sizes + chunk * of_chunk, stream);
    byte* frame = frames + chunk * plan.chunk_slot;
    if (threadIdx.x == 0) {
        int* header = (int*)frame;
        if (stream % plan.itemsize == 0) header[4 + stream / plan.itemsize] = start;
        if (stream == 0) {
            header[0] = 2 | 1 << 8 | (1 << 5 | 1) << 16 | plan.itemsize << 24;  // the formats' versions; LZ4, shuffled
            header[1] = plan.frames * plan.slab * plan.itemsize;
            header[2] = plan.block * plan.itemsize;
        }
        if (stream == of_chunk - 1) header[3] = ends[chunk] = start + sizes[blockIdx.x];
    }
    move(frame + start, (const unsigned*)(streams + (long long)blockIdx.x * plan.slot), sizes[blockIdx.x]);
}
