// Runs a kernel of CUDA on the CPU: every thread is a fiber, and all fibers of all blocks take turns. This file stands in
// for the language and for copies.cu; the tests put it before the other files of a kernel.

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __clz(x) ((x) ? __builtin_clz(x) : 32)
using std::max, std::min;

namespace emulation {

struct Meeting {  // of the threads of a warp or of a block
    int expected = 0, arrived = 0, number = 0;
    unsigned char values[32][8];
};

struct Block {
    int number;
    Meeting all, warps[32];
    std::vector<unsigned char> memory;
    alignas(16) unsigned char statics[1024] = {};
};

struct Copy {
    void* to;
    const void* from;
    int read, nbytes;

    void make() const
    {
        memcpy(to, from, read);
        memset((char*)to + read, 0, nbytes - read);
    }
};

struct Fiber {
    Block* block;
    int thread;
    ucontext_t begin;
    jmp_buf context;
    bool begun = false, done = false;
    std::vector<Copy> copies;
};

inline Fiber* now;
inline jmp_buf scheduler;
inline unsigned random_state;
inline int blocks;
inline const void* kernel;

inline bool by_chance()  // the highest bit of a linear congruential generator
{
    random_state = random_state * 1664525 + 1013904223;
    return random_state >> 31;
}

// swapcontext would ask the system for the signals each time.
inline void yield()
{
    if (_setjmp(now->context) == 0) _longjmp(scheduler, 1);
}

inline void go_on(Fiber& fiber)
{
    now = &fiber;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.context, 1);
    fiber.begun = true;
    setcontext(&fiber.begin);
}

inline void meet(Meeting& meeting)
{
    const int number = meeting.number;
    if (++meeting.arrived == meeting.expected) {
        meeting.arrived = 0;
        ++meeting.number;
    }
    while (meeting.number == number) yield();
}

inline Meeting& warp() { return now->block->warps[now->thread / 32]; }

template <class T> T shuffle(T value, int from)
{
    Meeting& mine = warp();
    memcpy(mine.values[now->thread % 32], &value, sizeof value);
    meet(mine);
    if (from >= 0 && from < 32) memcpy(&value, mine.values[from], sizeof value);
    meet(mine);
    return value;
}

inline int count(bool yes)
{
    Meeting& mine = warp();
    mine.values[now->thread % 32][0] = yes;
    meet(mine);
    int sum = 0;
    for (const auto& value : mine.values) sum += value[0];
    meet(mine);
    return sum;
}

template <class Kernel> void enter()
{
    (*(const Kernel*)kernel)();
    now->done = true;
    yield();
}

template <class Kernel> void run(int grid, int threads, size_t shared, unsigned seed, Kernel what)
{
    constexpr size_t size = 64 << 10;  // of a stack
    kernel = &what, blocks = grid, random_state = seed;
    std::vector<Block> all(grid);
    std::vector<Fiber> fibers(grid * threads);
    char* stacks = (char*)malloc(fibers.size() * size);
    for (int i = 0; i < grid * threads; ++i) {
        Block& block = all[i / threads];
        Fiber& fiber = fibers[i];
        fiber.block = &block, fiber.thread = i % threads;
        block.number = i / threads, block.all.expected = threads, block.warps[fiber.thread / 32].expected = 32;
        if (fiber.thread == 0) block.memory.assign(shared, 0xff);  // not a number
        getcontext(&fiber.begin);
        fiber.begin.uc_stack.ss_sp = stacks + i * size, fiber.begin.uc_stack.ss_size = size;
        makecontext(&fiber.begin, enter<Kernel>, 0);
    }
    for (bool busy = true; busy;) {
        busy = false;
        for (Fiber& fiber : fibers) {
            if (fiber.done) continue;
            busy = true;
            go_on(fiber);
        }
    }
    free(stacks);
}

struct Index {
    int x;
};

}  // namespace emulation

#define threadIdx emulation::Index{emulation::now->thread}
#define blockIdx emulation::Index{emulation::now->block->number}
#define gridDim emulation::Index{emulation::blocks}

template <class T> T __shfl_up_sync(unsigned, T x, int by) { return emulation::shuffle(x, emulation::now->thread % 32 - by); }
template <class T> T __shfl_down_sync(unsigned, T x, int by) { return emulation::shuffle(x, emulation::now->thread % 32 + by); }
inline bool __all_sync(unsigned, bool yes) { return emulation::count(yes) == 32; }
inline bool __any_sync(unsigned, bool yes) { return emulation::count(yes) > 0; }
inline void __syncwarp() { emulation::meet(emulation::warp()); }
inline void __syncthreads() { emulation::meet(emulation::now->block->all); }

// What copies.cu has. An asynchronous copy is made at once or when it is waited for, by chance.
template <class T> T* row_of(T* first, unsigned row, unsigned pitch) { return first + (size_t)row * pitch; }

template <int BYTES> void copy_async(void* to, const void* from, int read = BYTES)
{
    const emulation::Copy copy = {to, from, read, BYTES};
    if (emulation::by_chance()) copy.make();
    else emulation::now->copies.push_back(copy);
}

inline void wait_copies()
{
    for (const emulation::Copy& copy : emulation::now->copies) copy.make();
    emulation::now->copies.clear();
}

template <class T> void store(T* to, const T& cells, bool wanted)
{
    if (wanted) *to = cells;
}

inline void start_barrier(unsigned long long* barrier, int warps) { *barrier = (unsigned long long)warps << 32; }

inline void arrive(unsigned long long* barrier)  // bits: 32 for the warps, 31 for those that have arrived, the phase
{
    *barrier += 2;
    if ((unsigned)*barrier / 2 == *barrier >> 32) *barrier = *barrier >> 32 << 32 | !(*barrier & 1);
}

inline void wait(unsigned long long* barrier, unsigned parity)
{
    while ((*barrier & 1) == parity) emulation::yield();
}

inline unsigned peek_flag(const unsigned* flag) { return *flag; }

inline unsigned load_flag(const unsigned* flag)
{
    emulation::yield();
    return *flag;
}

inline void post(unsigned* flag)
{
    __syncwarp();
    if (emulation::now->thread % 32 == 0) ++*flag;
}
