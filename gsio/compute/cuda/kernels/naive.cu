// Gray-Scott on the GPU, the first rung of the ladder: one step a launch, and one thread a cell. Every thread reads
// nine cells of both fields from global memory. The grid is periodic, the stencil is Oono-Puri's, and dt is 1.
// The next rung is fused.cu, the last is tiles.cu.

extern "C" __global__ void naive(const float* u, const float* v, float* u_new, float* v_new, int rows, int cols,
                                 float du, float dv, float feed, float decay)
{
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y * blockDim.y + threadIdx.y;
    if (r >= rows || c >= cols) return;
    const int up = r ? r - 1 : rows - 1, down = r + 1 < rows ? r + 1 : 0;
    const int left = c ? c - 1 : cols - 1, right = c + 1 < cols ? c + 1 : 0;
#define AT(f, r, c) f[(size_t)(r) * cols + (c)]
#define LAPLACIAN(f) (0.25f * (AT(f, up, left) + AT(f, up, right) + AT(f, down, left) + AT(f, down, right)) \
                    + 0.5f * (AT(f, up, c) + AT(f, down, c) + AT(f, r, left) + AT(f, r, right)) - 3 * AT(f, r, c))
    const float a = AT(u, r, c), b = AT(v, r, c), reaction = a * b * b;
    AT(u_new, r, c) = a + (du * LAPLACIAN(u) - reaction + feed * (1 - a));
    AT(v_new, r, c) = b + (dv * LAPLACIAN(v) + reaction - decay * b);
}
