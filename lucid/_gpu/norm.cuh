// A row held by a warp, and its normalisation (Ba et al. 2016, eq. 3-4).
//
// A lane reads and writes columns (32 k + lane) N to (32 k + lane) N + N - 1 for k = 0, 1, ...; it keeps them in shared memory at
// [(k N + j) 32 + lane], where nobody else looks, so no lane waits for another.
#pragma once
#include "common.cuh"

// Numbers of shared memory for a row of n, as in lucid/_gpu/layer_norm.py.
__device__ __forceinline__ int held_size(int n, int step) { return (n + step - 1) / step * step; }

// y = gain * (row - mean) * rstd + bias, for a row that is held, with its sum known.
template <typename T>
__device__ __forceinline__ void normalise(const float* held, float sum, int n, const float* gain, const float* bias, float eps, T* y,
                                          float* mean, float* rstd, bool wide) {
  const int N = Wide<T>::N, lane = threadIdx.x % WARP;
  const float mu = warp_sum(sum) / n;
  float squares = 0;
  for (int i = lane * N, k = 0; i < n; i += WARP * N, ++k)
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float centred = i + j < n ? held[(k * N + j) * WARP + lane] - mu : 0.0f;
      squares = fmaf(centred, centred, squares);
    }
  const float r = 1.0f / sqrtf(warp_sum(squares) / n + eps);
  for (int i = lane * N, k = 0; i < n; i += WARP * N, ++k) {
    float g[N], values[N];
    read(gain + i, n - i, wide, g);
    read(bias + i, n - i, wide, values);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = fmaf((held[(k * N + j) * WARP + lane] - mu) * r, g[j], values[j]);
    write(y + i, n - i, wide, values);
  }
  if (mean != nullptr && lane == 0) {
    *mean = mu;
    *rstd = r;
  }
}
