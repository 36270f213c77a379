// Chunks as plain zlib streams of byte planes, RFC 1950 and 1951; compiled after chunks.cu, with  -DSEGMENT (bytes before
// compression, at most)  -DTHREADS.
//
//   chunk    | 78 01 | segment | segment | … | 03 00, an empty end | Adler-32: 4 |
//   segment  | a block of deflate | an empty one that is stored, to a whole byte |  or  | a block that is stored |
//
// A segment of at most 16 KiB of one plane is encoded by a block of threads, with a Huffman code of its own and, as
// matches, runs of one byte. ISA-L at level 1 also finds other repeats in a field; they save only 2 to 5 %. A segment
// is stored unencoded if encoding does not make it smaller.

#define WINDOW 256      // bytes that a warp reads together: a run that continues in the next window is split there
#define WINDOWS (SEGMENT / WINDOW)
#define LITERALS 286    // symbols of literals, the end, and lengths of matches
#define END 256
#define GROUPS 9        // groups of 32 symbols: all literals, and in the last group the only distance
#define LONGEST 15      // bits of a code
#define HEADER (3 + 5 + 5 + 4 + 3 * 19)  // bits
#define BEFORE 16       // bytes before a segment in its slot: the Adler-32 of the segment alone, started from 0
#define ADLER 65521u

// The code of the code lengths. It is fixed, and was made for fields.
struct LengthCode {
    byte length[19], code[19];
    __device__ constexpr LengthCode()
        : length{4, 5, 5, 5, 5, 4, 4, 3, 3, 4, 4, 4, 5, 5, 5, 5, 0, 4, 4}, code()
    {
        for (int n = 1, next = 0; n <= 5; ++n, next <<= 1)
            for (int i = 0; i < 19; ++i)
                if (length[i] == n) {
                    for (int j = 0; j < n; ++j) code[i] |= (next >> j & 1) << (n - 1 - j);
                    ++next;
                }
    }
};
__constant__ constexpr LengthCode length_code{};
__constant__ constexpr byte length_order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};

// Sets bits of a stream that other threads write to as well. The stream starts as 0.
__device__ inline void put(unsigned* out, int at, unsigned long long bits)
{
    bits <<= at % 32;
    if ((unsigned)bits) atomicOr(out + at / 32, (unsigned)bits);
    if (bits >> 32) atomicOr(out + at / 32 + 1, (unsigned)(bits >> 32));
}

__device__ inline int trailing_ones(unsigned bits) { return ~bits ? __ffs(~bits) - 1 : 32; }

// Returns the bits of `bits` that lie in a run of three or more.
__device__ inline unsigned in_runs(unsigned bits)
{
    const unsigned threes = bits & bits >> 1 & bits >> 2;
    return threes | threes << 1 | threes << 2;
}

// Calls use(symbol, count, bits) for each symbol that the eight bytes of a lane become. The `count` extra bits that
// follow a symbol include the distance.
template <typename Use>
__device__ inline void each_token(const unsigned* bytes, int n, int window, Use use)
{
    const int lane = threadIdx.x % 32, here = window * WINDOW + 8 * lane;
    const unsigned low = bytes[here / 4], high = bytes[here / 4 + 1];
    const unsigned behind = here ? ((const byte*)bytes)[here - 1] : ~low & 255;
    const unsigned same[2] = {__vcmpeq4(low, low << 8 | behind), __vcmpeq4(high, __funnelshift_l(low, high, 8))};
    const unsigned inside = n - here >= 8 ? 255 : n > here ? (1 << (n - here)) - 1 : 0;
    unsigned repeats = 0;
    for (int i = 0; i < 2; ++i) repeats |= (same[i] & 0x08040201) * 0x01010101 >> 24 << 4 * i;  // one bit for each byte
    repeats &= inside;
    const unsigned before = __shfl_up_sync(ALL, repeats, 1), after = __shfl_down_sync(ALL, repeats, 1);
    const unsigned around = (lane > 0 ? before : 0) | repeats << 8 | (lane < 31 ? after << 16 : 0);
    const unsigned run = in_runs(around) >> 7, mine = run >> 1 & 255, starts = mine & ~run;
    // The length of a run that continues past these eight bytes.
    const unsigned whole = __ballot_sync(ALL, mine == 255) >> lane >> 1;
    const int more = trailing_ones(whole), next = lane + 1 + more;
    const int rest = __shfl_sync(ALL, trailing_ones(mine), next % 32);
    const int beyond = 8 * more + (next < 32 ? rest : 0);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (starts >> i & 1) {
            const int ones = trailing_ones(mine >> i), length = ones + (i + ones == 8 ? beyond : 0) - 3;
            const int extra = max(0, 29 - __clz(length));
            use(257 + 4 * extra + (length >> extra), extra + 1, length & ((1 << extra) - 1));
        } else if ((inside & ~mine) >> i & 1) {
            use((i < 4 ? low >> 8 * i : high >> 8 * (i - 4)) & 255, 0, 0);
        }
    }
}

// The bits of a symbol's code if `total` symbols share 2^15. Every share is a power of 2, and at least proportional.
__device__ inline int bits_of(int count, int total)
{
    int bits = __clz(count) - __clz(total);
    if (count << max(bits, 0) < total) ++bits;
    return max(bits, 1);
}

// Chooses the lengths of a complete code for symbols with these counts; it is nearly as good as Huffman's. A smaller
// total makes codes shorter. The smallest total that fits is taken, and the rest goes to symbols that can use it.
__device__ inline void choose_lengths(const int* counts, byte* lengths)
{
    __shared__ int shares[32], best;
    const int thread = threadIdx.x, lane = thread % 32;
    int total = 0;
    for (int i = thread; i < LITERALS; i += THREADS) total += counts[i];
    total = summed(total);
    if (thread == 0) best = 31;
    int share = 0;
    for (int i = thread % 8; i < LITERALS; i += 8)  // eight threads try each of 32 totals
        if (counts[i]) share += 1 << LONGEST >> bits_of(64 * counts[i], (33 + thread / 8) * total);
    for (int i = 1; i < 8; i *= 2) share += __shfl_xor_sync(ALL, share, i);
    if (thread % 8 == 0) shares[thread / 8] = share;
    __syncthreads();
    if (thread < 32 && shares[thread] <= 1 << LONGEST) atomicMin(&best, thread);
    __syncthreads();
    for (int i = thread; i < 32 * GROUPS; i += THREADS)
        lengths[i] = i < LITERALS && counts[i] ? bits_of(64 * counts[i], (33 + best) * total) : 0;
    __syncthreads();
    if (thread >= 32) return;
    for (int left = (1 << LONGEST) - shares[best]; left > 0;)  // A symbol with the longest code can always use a part.
        for (int i = lane; i < 32 * GROUPS; i += 32) {
            const int length = lengths[i], half = length > 1 ? 1 << LONGEST >> length : 0;
            const int asked = half <= left ? half : 0, given = asked + sum_before(asked);
            const bool takes = asked && given <= left;
            if (takes) lengths[i] = length - 1;
            left -= __reduce_max_sync(ALL, takes ? given : 0);
        }
}

// Sets the codes for the lengths, by length, then by symbol; the first bit is the lowest. One warp does it.
__device__ inline void assign_codes(const byte* lengths, unsigned short* codes)
{
    __shared__ int used[LONGEST + 1];
    const int lane = threadIdx.x;
    int rank[GROUPS];
    if (lane <= LONGEST) used[lane] = 0;
    __syncwarp();
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        const int length = lengths[32 * group + lane];
        const unsigned same = __match_any_sync(ALL, length);
        rank[group] = used[length] + __popc(same & ((1u << lane) - 1));
        __syncwarp();
        if (same >> lane == 1) used[length] += __popc(same);
        __syncwarp();
    }
    const int mine = lane > 0 && lane <= LONGEST ? used[lane] << (LONGEST - lane) : 0;
    const int first = sum_before(mine) >> (LONGEST - min(lane, LONGEST));
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        const int length = lengths[32 * group + lane];
        const unsigned code = __shfl_sync(ALL, first, length) + rank[group];
        codes[32 * group + lane] = length ? __brev(code) >> (32 - length) : 0;
    }
}

// Writes the header of a block, and returns its size in bits. One warp does it.
__device__ inline int put_header(const byte* lengths, unsigned* out)
{
    const int lane = threadIdx.x;
    if (lane == 0) put(out, 0, 2 << 1 | (LITERALS - 257) << 3 | (19 - 4) << 13);
    if (lane < 19) put(out, 17 + 3 * lane, length_code.length[length_order[lane]]);
    int at = HEADER;
    for (int group = 0; group < GROUPS; ++group) {
        const int symbol = 32 * group + lane, length = symbol == LITERALS ? 1 : lengths[symbol];
        const bool known = symbol <= LITERALS;
        const unsigned zero = __ballot_sync(ALL, known && length == 0), runs = in_runs(zero);
        const bool starts = (runs & ~(runs << 1)) >> lane & 1;
        int coded = length, extra = 0, many = 0;
        if (starts) {
            many = trailing_ones(runs >> lane);
            coded = many < 11 ? 17 : 18;
            extra = many < 11 ? 3 : 7;
            many -= many < 11 ? 3 : 11;
        }
        const bool told = starts || (known && !(runs >> lane & 1));
        const int bits = told ? length_code.length[coded] + extra : 0, place = at + sum_before(bits);
        if (told) put(out, place, length_code.code[coded] | many << length_code.length[coded]);
        at += __reduce_add_sync(ALL, bits);
    }
    return at;
}

// Loads the first `inside` of n bytes; the others are 0.
__device__ inline void load(const byte* from, int inside, byte* to, int n)
{
    const int shift = (size_t)from % 4, words = (size_t)to % 4 == 0 ? inside / 4 : 0;
    const unsigned* source = (const unsigned*)(from - shift);
#pragma unroll 4
    for (int i = threadIdx.x; i < words; i += THREADS) ((unsigned*)to)[i] = four_bytes(source, shift + 4 * i);
    for (int i = 4 * words + threadIdx.x; i < n; i += THREADS) to[i] = i < inside ? from[i] : 0;
}

// Makes the segments of all chunks, in the order of chunks and of their planes, and the size of each segment.
extern "C" __global__ void __launch_bounds__(THREADS)
encode(const byte* __restrict__ data, byte* __restrict__ streams, int* __restrict__ sizes, Plan plan)
{
    __shared__ unsigned source[SEGMENT / 4 + 2], out[SEGMENT / 4 + 2];
    __shared__ int counts[32 * GROUPS], window_bits[WINDOWS], header;
    __shared__ unsigned short codes[32 * GROUPS];
    __shared__ byte lengths[32 * GROUPS], lane_bits[SEGMENT / 8];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, warps = THREADS / 32;
    const int plane = blockIdx.x / plan.blocks % plan.itemsize, chunk = blockIdx.x / plan.blocks / plan.itemsize;
    const int first = blockIdx.x % plan.blocks * SEGMENT, n = min(SEGMENT, plan.frames * plan.slab - first);
    const int windows = (n + WINDOW - 1) / WINDOW;
    int at = 0;
    each_frame(plan, chunk, first, n, [&](long long of, long long cell, int inside, int here) {
        load(data + (of * plan.itemsize + plane) * plan.cells + cell, inside, (byte*)source + at, here);
        at += here;
    });
    for (int i = n + thread; i < windows * WINDOW; i += THREADS) ((byte*)source)[i] = 0;
    for (int i = thread; i < SEGMENT / 4 + 2; i += THREADS) out[i] = 0;
    for (int i = thread; i < 32 * GROUPS; i += THREADS) counts[i] = i == END;
    __syncthreads();

    unsigned a = 0, b = 0;
    int bits = 0;
    for (int window = warp; window < windows; window += warps) {
        each_token(source, n, window, [&](int symbol, int more, int) {
            atomicAdd(counts + symbol, 1);
            bits += more;
        });
        const int here = window * WINDOW + 8 * lane;
        const unsigned low = source[here / 4], high = source[here / 4 + 1];
        const unsigned sum = __dp4a(low, 0x01010101u, __dp4a(high, 0x01010101u, 0u));
        a += sum;
        b += (n - here) * sum - __dp4a(low, 0x03020100u, __dp4a(high, 0x07060504u, 0u));
    }
    const unsigned adler = summed(a) % ADLER | summed(b % ADLER) % ADLER << 16;
    choose_lengths(counts, lengths);
    __syncthreads();
    for (int i = thread; i < LITERALS; i += THREADS) bits += counts[i] * lengths[i];
    bits = summed(bits);

    int size = n + 5;
    if (bits < 8 * n) {  // else the segment is noise
        if (warp == 0) {
            assign_codes(lengths, codes);
            const int end = put_header(lengths, out);
            if (lane == 0) header = end;
        }
        for (int window = warp; window < windows; window += warps) {
            int mine = 0;
            each_token(source, n, window, [&](int symbol, int more, int) { mine += lengths[symbol] + more; });
            lane_bits[32 * window + lane] = mine;
            mine = __reduce_add_sync(ALL, mine);
            if (lane == 0) window_bits[window] = mine;
        }
        __syncthreads();
        bits += header;
        size = min(size, (bits + 3 + 7) / 8 + 4);
    }
    const bool stored = size == n + 5;
    if (!stored) {
        for (int window = warp; window < windows; window += warps) {
            int before = 0;
            for (int i = lane; i < window; i += 32) before += window_bits[i];
            const int start = header + __reduce_add_sync(ALL, before) + sum_before(lane_bits[32 * window + lane]);
            unsigned long long held = 0;
            unsigned* to = out + start / 32;
            int filled = start % 32;
            each_token(source, n, window, [&](int symbol, int more, int value) {
                held |= (unsigned long long)(codes[symbol] | value << lengths[symbol]) << filled;
                filled += lengths[symbol] + more;
                if (filled >= 32) {
                    atomicOr(to++, (unsigned)held);
                    held >>= 32;
                    filled -= 32;
                }
            });
            if ((unsigned)held) atomicOr(to, (unsigned)held);
        }
        if (thread == 0) {  // the end of the block, and an empty stored block, which fills the last byte
            put(out, bits - lengths[END], codes[END]);
            put(out, 8 * (size - 2), 0xffff);
        }
        __syncthreads();
    }
    byte* slot = streams + (long long)blockIdx.x * plan.slot;
    unsigned* to = (unsigned*)(slot + BEFORE);
    for (int i = thread; i < (size + 3) / 4; i += THREADS) {
        if (!stored)
            to[i] = out[i];
        else if (i > 1)
            to[i] = four_bytes(source, 4 * i - 5);
        else
            to[i] = i ? (~n >> 8 & 255) | source[0] << 8 : (n | ~(unsigned)n << 16) << 8;
    }
    if (thread == 0) *(unsigned*)slot = adler, sizes[blockIdx.x] = size;
}

// Puts a segment into its chunk. The last segment adds the header and the end of the chunk.
extern "C" __global__ void gather(byte* __restrict__ frames, const byte* __restrict__ streams,
                                  const int* __restrict__ sizes, int* __restrict__ ends, Plan plan)
{
    const int of_chunk = plan.blocks * plan.itemsize, chunk = blockIdx.x / of_chunk, stream = blockIdx.x % of_chunk;
    const int start = 2 + before(sizes + chunk * of_chunk, stream), size = sizes[blockIdx.x];
    const byte* mine = streams + (long long)blockIdx.x * plan.slot;
    byte* slot = frames + chunk * plan.chunk_slot;
    move(slot + start, (const unsigned*)(mine + BEFORE), size);
    if (stream < of_chunk - 1) return;
    const long long cells = plan.frames * plan.slab, total = cells * plan.itemsize;
    unsigned long long a = 0, b = 0;
    for (int i = threadIdx.x; i < of_chunk; i += blockDim.x) {
        const unsigned adler = *(const unsigned*)(mine + (long long)(i - stream) * plan.slot), low = adler & 0xffff;
        const long long end = i / plan.blocks * cells + min(cells, (i % plan.blocks + 1ll) * SEGMENT);
        a = (a + low) % ADLER;
        b = (b + (adler >> 16) + low * (unsigned long long)(total - end)) % ADLER;
    }
    a = (1 + summed(a)) % ADLER;
    b = (total + summed(b)) % ADLER;
    if (threadIdx.x > 0) return;
    byte* after = slot + start + size;
    const byte end[] = {3, 0, (byte)(b >> 8), (byte)b, (byte)(a >> 8), (byte)a};
    for (int i = 0; i < 6; ++i) after[i] = end[i];
    slot[0] = 0x78;
    slot[1] = 1;
    ends[chunk] = start + size + 6;
}
