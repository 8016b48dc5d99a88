// Sums of columns: parts of some rows each, added in float32, and then the parts, in order, in float64.
// KERNEL join_parts
// KERNEL column_parts<T>
#include "activation.cuh"

// out[c] = sum_p parts[p, c], a block of (32, 8) threads for 32 columns.
__global__ void join_parts(const float* parts, float* out, int n_parts, int n) {
  __shared__ double sums[8][WARP];
  const int column = blockIdx.x * WARP + threadIdx.x;
  double sum = 0;
  if (column < n)
    for (int p = threadIdx.y; p < n_parts; p += 8) sum += parts[static_cast<int64_t>(p) * n + column];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < n) {
    for (int y = 1; y < 8; ++y) sum += sums[y][threadIdx.x];
    out[column] = static_cast<float>(sum);
  }
}

// parts[p, c] = sum of d[t, c] over the p-th `rows_at_once` rows, where d = d_y * activation'(z) is written to d_z, or d = d_y
// where `z` and `d_z` are null. A block of (32, 8) threads for the columns of 32 lanes of 16 bytes. `parts` may be null.
template <typename T>
__global__ void column_parts(const T* z, const T* d_y, T* d_z, float* parts, int activation, int n_rows, int n, int rows_at_once) {
  const int N = Wide<T>::N;
  __shared__ float sums[8][N][WARP];
  const int column = (blockIdx.x * WARP + threadIdx.x) * N;
  const bool wide = is_wide<T>(n, z, d_y, d_z);
  float sum[N] = {};
  const int end = min(n_rows, (static_cast<int>(blockIdx.y) + 1) * rows_at_once);
  if (column < n)
    for (int row = blockIdx.y * rows_at_once + threadIdx.y; row < end; row += 8) {
      const int64_t at = static_cast<int64_t>(row) * n + column;
      float d[N], before[N];
      read(d_y + at, n - column, wide, d);
      if (z != nullptr) {
        read(z + at, n - column, wide, before);
#pragma unroll
        for (int j = 0; j < N; ++j) d[j] *= slope(before[j], activation);
        write(d_z + at, n - column, wide, d);
      }
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += d[j];
    }
  if (parts == nullptr) return;
#pragma unroll
  for (int j = 0; j < N; ++j) sums[threadIdx.y][j][threadIdx.x] = sum[j];
  __syncthreads();
  if (threadIdx.y == 0) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      for (int y = 1; y < 8; ++y) sum[j] += sums[y][j][threadIdx.x];
      if (column + j < n) parts[static_cast<int64_t>(blockIdx.y) * n + column + j] = sum[j];
    }
  }
}
