// Kernels that do what they should.
// KERNEL double_all<T>
// KERNEL block_sums
// KERNEL copy_late
// KERNEL multiply<{__half, __nv_bfloat16}>
// KERNEL load_transposed
#include "../../../../lucid/_gpu/common.cuh"
#include "../../../../lucid/_gpu/mma.cuh"

template <typename T> __global__ void double_all(const T* x, T* y, int n, float factor) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = from_float<T>(factor * to_float(x[i]));
}

// The sum of every block's numbers: over warps by shuffles, over the block through shared memory.
__global__ void block_sums(const float* x, float* sums) {
  __shared__ float of_warp[32];
  const float sum = warp_sum(x[blockIdx.x * blockDim.x + threadIdx.x]);
  if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (int i = 0; i < blockDim.x / WARP; ++i) total += of_warp[i];
    sums[blockIdx.x] = total;
  }
}

// before[t]: what lies in shared memory before its copy is waited for; after[t]: what lies there then.
__global__ void copy_late(const float* x, float* before, float* after) {
  DYNAMIC_SHARED(float, held);
  for (int i = 0; i < 4; ++i) held[4 * threadIdx.x + i] = -1;
  cp_async_16(held + 4 * threadIdx.x, x + 4 * threadIdx.x);
  cp_async_commit();
  before[threadIdx.x] = held[4 * threadIdx.x];
  cp_async_wait<0>();
  __syncthreads();
  after[threadIdx.x] = held[4 * ((threadIdx.x + 1) % blockDim.x)];
}

// c (16, 8) += a (16, 16) . b (8, 16)ᵀ, by one warp.
template <typename T> __global__ void multiply(const T* a, const T* b, float* c) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto pair = [](const T* p) { return *reinterpret_cast<const uint32_t*>(p); };
  const uint32_t of_a[4] = {pair(a + 16 * g + 2 * t), pair(a + 16 * (g + 8) + 2 * t), pair(a + 16 * g + 2 * t + 8),
                            pair(a + 16 * (g + 8) + 2 * t + 8)};
  const uint32_t of_b[2] = {pair(b + 16 * g + 2 * t), pair(b + 16 * g + 2 * t + 8)};
  float sums[4] = {c[8 * g + 2 * t], c[8 * g + 2 * t + 1], c[8 * (g + 8) + 2 * t], c[8 * (g + 8) + 2 * t + 1]};
  mma_m16n8k16<T>(sums, of_a, of_b);
  c[8 * g + 2 * t] = sums[0], c[8 * g + 2 * t + 1] = sums[1], c[8 * (g + 8) + 2 * t] = sums[2], c[8 * (g + 8) + 2 * t + 1] = sums[3];
}

// Four 8 x 8 matrices, each transposed.
__global__ void load_transposed(const uint16_t* x, uint16_t* y) {
  __shared__ __align__(16) uint16_t held[256];
  for (int i = threadIdx.x; i < 256; i += 32) held[i] = x[i];
  __syncthreads();
  uint32_t r[4];
  ldmatrix_x4_trans(r, held + 8 * threadIdx.x);
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  for (int m = 0; m < 4; ++m) {
    y[64 * m + 8 * g + 2 * t] = r[m] & 0xffff;
    y[64 * m + 8 * g + 2 * t + 1] = r[m] >> 16;
  }
}
