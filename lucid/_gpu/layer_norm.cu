// Layer normalisation with the residual sum before it, a warp for each row.
// KERNEL layer_norm_forward<T>
// KERNEL layer_norm_backward<T>
#include "norm.cuh"

// y = LayerNorm(x + residual), (n_rows, n). `residual` may be null; likewise what backward reads: `total`, the sums before the
// normalisation, and `mean` and `rstd` of every row.
template <typename T>
__global__ void layer_norm_forward(const T* x, const T* residual, const float* gain, const float* bias, float eps, T* y, T* total,
                                   float* mean, float* rstd, int n_rows, int n) {
  const int N = Wide<T>::N, lane = threadIdx.x % WARP, row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (row >= n_rows) return;
  DYNAMIC_SHARED(float, rows);
  float* held = rows + threadIdx.x / WARP * held_size(n, WARP * N);
  const bool wide = is_wide<T>(n, x, residual, y, total) && is_wide<float>(n, gain, bias);
  const int64_t first = static_cast<int64_t>(row) * n;
  float sum = 0;
  for (int i = lane * N, k = 0; i < n; i += WARP * N, ++k) {
    float values[N], more[N];
    read(x + first + i, n - i, wide, values);
    if (residual != nullptr) {
      read(residual + first + i, n - i, wide, more);
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] += more[j];
    }
    if (total != nullptr) write(total + first + i, n - i, wide, values);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      held[(k * N + j) * WARP + lane] = values[j];
      sum += values[j];
    }
  }
  normalise(held, sum, n, gain, bias, eps, y + first, mean == nullptr ? nullptr : mean + row, rstd + row, wide);
}

// With g = d_y * gain and normal = (x - mean) * rstd:  d_x = rstd * (g - mean(g) - normal * mean(g * normal)).
//
// d_gain = sum_t d_y * normal and d_bias = sum_t d_y come as sums of `rows_at_once` rows each, (n_blocks, n), for `join_parts`.
template <typename T>
__global__ void layer_norm_backward(const T* x, const float* gain, const float* mean, const float* rstd, const T* d_y, T* d_x,
                                    float* d_gain_parts, float* d_bias_parts, int n_rows, int n, int rows_at_once) {
  const int N = Wide<T>::N, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
  const int size = held_size(n, WARP * N);
  DYNAMIC_SHARED(float, sums);  // of each warp: d_gain, then d_bias
  float *d_gain = sums + 2 * warp * size, *d_bias = d_gain + size;
  const bool wide = is_wide<T>(n, x, d_y, d_x) && is_wide<float>(n, gain);
  for (int i = lane; i < 2 * size; i += WARP) d_gain[i] = 0;
  const int end = min(n_rows, (static_cast<int>(blockIdx.x) + 1) * rows_at_once);
  for (int row = blockIdx.x * rows_at_once + warp; row < end; row += n_warps) {
    const int64_t first = static_cast<int64_t>(row) * n;
    const float mu = mean[row], r = rstd[row];
    float g_sum = 0, gn_sum = 0;
    for (int i = lane * N, k = 0; i < n; i += WARP * N, ++k) {
      float values[N], d[N], g[N];
      read(x + first + i, n - i, wide, values);
      read(d_y + first + i, n - i, wide, d);
      read(gain + i, n - i, wide, g);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float normal = (values[j] - mu) * r;  // behind the row's end, d is 0
        d_gain[(k * N + j) * WARP + lane] += d[j] * normal;
        d_bias[(k * N + j) * WARP + lane] += d[j];
        g_sum += d[j] * g[j];
        gn_sum = fmaf(d[j] * g[j], normal, gn_sum);
      }
    }
    const float g_mean = warp_sum(g_sum) / n, gn_mean = warp_sum(gn_sum) / n;
    for (int i = lane * N; i < n; i += WARP * N) {
      float values[N], d[N], g[N];
      read(x + first + i, n - i, wide, values);
      read(d_y + first + i, n - i, wide, d);
      read(gain + i, n - i, wide, g);
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] = r * (d[j] * g[j] - g_mean - (values[j] - mu) * r * gn_mean);
      write(d_x + first + i, n - i, wide, values);
    }
  }
  __syncthreads();
  for (int place = threadIdx.x; place < size; place += blockDim.x) {
    const int k = place / (WARP * N), column = (k * WARP + place % WARP) * N + place / WARP % N;
    if (column >= n) continue;
    float of_gain = 0, of_bias = 0;
    for (int w = 0; w < n_warps; ++w) {
      of_gain += sums[2 * w * size + place];
      of_bias += sums[(2 * w + 1) * size + place];
    }
    d_gain_parts[static_cast<int64_t>(blockIdx.x) * n + column] = of_gain;
    d_bias_parts[static_cast<int64_t>(blockIdx.x) * n + column] = of_bias;
  }
}
