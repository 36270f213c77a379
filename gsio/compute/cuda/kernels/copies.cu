// How tiles exchange cells: asynchronous copies to shared memory, the barrier of a block, and the flags of tiles.

#if __CUDA_ARCH__ >= 900
#define TEST_WAIT "mbarrier.try_wait.parity.shared.b64"  // This instruction may sleep.
#else
#define TEST_WAIT "mbarrier.test_wait.parity.shared.b64"
#endif

__device__ inline unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// Returns the place of a row, given that of the first. Both the row and the bytes of a row have 32 bits.
template <class T> __device__ inline T* row_of(T* first, unsigned row, unsigned pitch)
{
    size_t place;
    asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(place) : "r"(row), "r"(pitch * (unsigned)sizeof(T)), "l"((size_t)first));
    return (T*)place;
}

// Copies to shared memory while the thread goes on: the first `read` bytes, and zeros after them. Large copies bypass the
// L1 cache.
template <int BYTES> __device__ inline void copy_async(void* to, const void* from, int read = BYTES)
{
    if constexpr (BYTES >= 16) {
#pragma unroll
        for (int i = 0; i < BYTES; i += 16)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                         ::"r"(shared_address(to) + i), "l"((const byte*)from + i), "r"(min(max(read - i, 0), 16))
                         : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     ::"r"(shared_address(to)), "l"(from), "n"(BYTES), "r"(read) : "memory");
    }
}

// Stores cells if they are `wanted`, without a branch, which would keep instructions before it from those after it.
template <class T> __device__ inline void store(T* to, const T& cells, bool wanted)
{
    constexpr int WORDS = sizeof(T) / 4;
    unsigned words[WORDS];
    memcpy(words, &cells, sizeof(T));
    if constexpr (WORDS == 4)
        asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p st.global.v4.u32 [%0], {%1, %2, %3, %4}; }"
                     ::"l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"((unsigned)wanted)
                     : "memory");
    else if constexpr (WORDS == 2)
        asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p st.global.v2.u32 [%0], {%1, %2}; }"
                     ::"l"(to), "r"(words[0]), "r"(words[1]), "r"((unsigned)wanted) : "memory");
    else if (wanted)
        *to = cells;
}

__device__ inline void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// A barrier of the block's warps in two halves: a warp arrives after it writes, and waits before it reads.
__device__ inline void start_barrier(unsigned long long* barrier, int warps)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(warps));
}

__device__ inline void arrive(unsigned long long* barrier)
{
    asm volatile("{ .reg .b64 token; mbarrier.arrive.shared.b64 token, [%0]; }"
                 ::"r"(shared_address(barrier)) : "memory");
}

__device__ inline void wait(unsigned long long* barrier, unsigned parity)
{
    asm volatile("{ .reg .pred done; again: " TEST_WAIT " done, [%0], %1; @!done bra again; }"
                 ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}

__device__ inline unsigned load_flag(const unsigned* flag)
{
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}

__device__ inline unsigned peek_flag(const unsigned* flag)  // orders nothing, and takes less time
{
    unsigned value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}

// Counts this warp in a flag. A reader that finds the count also sees all that this warp has stored. This warp sees all
// stores that were counted in the flags it has read.
__device__ inline void post(unsigned* flag)
{
    __syncwarp();
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    if (threadIdx.x % 32 == 0) asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(flag) : "memory");
}

