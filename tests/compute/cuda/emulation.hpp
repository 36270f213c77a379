// Runs a kernel of CUDA on the CPU: every thread is a fiber, and all fibers of all blocks take turns. This file stands in
// for the language and for copies.cu; the tests put it before the other files of a kernel.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
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

struct Fiber {
    Block* block;
    int thread;
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    std::vector<std::function<void()>> copies;
    bool done = false;
};

inline Fiber* now;
inline ucontext_t scheduler;
inline std::mt19937 chance;
inline int blocks;
inline std::function<void()> kernel;

inline void yield() { swapcontext(&now->context, &scheduler); }

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
    int sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += shuffle((int)yes, lane);
    return sum;
}

inline void enter()
{
    kernel();
    now->done = true;
    yield();
}

inline void run(int grid, int threads, size_t shared, unsigned seed, std::function<void()> what)
{
    kernel = what;
    blocks = grid;
    chance.seed(seed);
    std::vector<std::unique_ptr<Block>> all;
    std::vector<std::unique_ptr<Fiber>> fibers;
    for (int b = 0; b < grid; ++b) {
        all.push_back(std::make_unique<Block>());
        Block& block = *all.back();
        block.number = b;
        block.all.expected = threads;
        block.memory.assign(shared, 0xff);  // not a number
        for (int t = 0; t < threads; ++t) {
            block.warps[t / 32].expected = 32;
            fibers.push_back(std::make_unique<Fiber>());
            Fiber& fiber = *fibers.back();
            constexpr size_t size = 64 << 10;
            fiber.block = &block, fiber.thread = t, fiber.stack.reset(new char[size]);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get(), fiber.context.uc_stack.ss_size = size;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, enter, 0);
        }
    }
    for (bool busy = true; busy;) {
        busy = false;
        for (const auto& fiber : fibers) {
            if (fiber->done) continue;
            busy = true;
            now = fiber.get();
            swapcontext(&scheduler, &fiber->context);
        }
    }
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
    const auto copy = [=] {
        memcpy(to, from, read);
        memset((char*)to + read, 0, BYTES - read);
    };
    if (emulation::chance() % 2) copy();
    else emulation::now->copies.push_back(copy);
}

inline void wait_copies()
{
    for (const auto& copy : emulation::now->copies) copy();
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
