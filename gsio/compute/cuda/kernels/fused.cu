// Gray-Scott on the GPU, the second rung of the ladder: up to STEPS steps a launch.
//
// A block of threads loads a tile of TILE x TILE cells and a halo of STEPS cells around it into shared memory, advances
// both there, and stores the tile. The halo becomes stale from the outside inwards, one cell a step, so that the tile
// is right after STEPS steps. A launch reads and writes global memory once; the price is the work on the halo.
//
// The grid is periodic, the stencil is Oono-Puri's, and dt is 1. Compiled with  -DTILE  -DSTEPS.
// The first rung is naive.cu. The last is tiles.cu, which keeps its tiles in registers and takes every option of a run.

#define SIDE (TILE + 2 * STEPS)

struct Fields {
    float u[SIDE][SIDE], v[SIDE][SIDE];
};

__device__ inline int wrapped(int i, int n) { return (i % n + n) % n; }

__device__ inline float laplacian(const float f[SIDE][SIDE], int r, int c)
{
    return 0.25f * (f[r - 1][c - 1] + f[r - 1][c + 1] + f[r + 1][c - 1] + f[r + 1][c + 1])
         + 0.5f * (f[r - 1][c] + f[r + 1][c] + f[r][c - 1] + f[r][c + 1]) - 3 * f[r][c];
}

// Advances u and v [rows, cols] by `steps` steps, at most STEPS; `decay` is feed + kill.
extern "C" __global__ void fused(const float* u, const float* v, float* u_new, float* v_new, int rows, int cols,
                                 float du, float dv, float feed, float decay, int steps)
{
    __shared__ Fields fields[2];  // A step reads one and writes the other.
    const int top = blockIdx.y * TILE - STEPS, left = blockIdx.x * TILE - STEPS;
    for (int i = threadIdx.x; i < SIDE * SIDE; i += blockDim.x) {
        const int r = i / SIDE, c = i % SIDE;
        const size_t from = (size_t)wrapped(top + r, rows) * cols + wrapped(left + c, cols);
        fields[0].u[r][c] = u[from];
        fields[0].v[r][c] = v[from];
    }
    __syncthreads();
    for (int step = 1; step <= steps; ++step) {
        const Fields& old = fields[(step - 1) % 2];
        Fields& next = fields[step % 2];
        const int side = SIDE - 2 * step;  // The cells further out are stale.
        for (int i = threadIdx.x; i < side * side; i += blockDim.x) {
            const int r = step + i / side, c = step + i % side;
            const float a = old.u[r][c], b = old.v[r][c], reaction = a * b * b;
            next.u[r][c] = a + (du * laplacian(old.u, r, c) - reaction + feed * (1 - a));
            next.v[r][c] = b + (dv * laplacian(old.v, r, c) + reaction - decay * b);
        }
        __syncthreads();
    }
    const Fields& last = fields[steps % 2];
    for (int i = threadIdx.x; i < TILE * TILE; i += blockDim.x) {
        const int r = STEPS + i / TILE, c = STEPS + i % TILE;
        if (top + r >= rows || left + c >= cols) continue;
        const size_t to = (size_t)(top + r) * cols + left + c;
        u_new[to] = last.u[r][c];
        v_new[to] = last.v[r][c];
    }
}
