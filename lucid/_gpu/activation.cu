// Activations, element by element, and what stands behind a product: bias, activation, residual.
// KERNEL activation_forward<T>
// KERNEL activation_backward<T>
// KERNEL bias_activation<T>
#include "activation.cuh"

// y = activation(x); y may be x.
template <typename T> __global__ void activation_forward(const T* x, T* y, int64_t n, int activation) {
  const int N = Wide<T>::N;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (i >= n) return;
  const int count = static_cast<int>(min(static_cast<int64_t>(N), n - i));
  const bool wide = count == N && is_wide<T>(N, x, y);
  float values[N];
  read(x + i, count, wide, values);
#pragma unroll
  for (int j = 0; j < N; ++j) values[j] = activate(values[j], activation);
  write(y + i, count, wide, values);
}

// d_x = d_y * activation'(x); d_x may be d_y.
template <typename T> __global__ void activation_backward(const T* x, const T* d_y, T* d_x, int64_t n, int activation) {
  const int N = Wide<T>::N;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (i >= n) return;
  const int count = static_cast<int>(min(static_cast<int64_t>(N), n - i));
  const bool wide = count == N && is_wide<T>(N, x, d_y, d_x);
  float values[N], d[N];
  read(x + i, count, wide, values);
  read(d_y + i, count, wide, d);
#pragma unroll
  for (int j = 0; j < N; ++j) d[j] *= slope(values[j], activation);
  write(d_x + i, count, wide, d);
}

// y = activation(z + bias) + residual, (n_rows, n); z + bias goes to `before` too. `bias`, `residual` and `before` may be null;
// y and `before` may be z.
template <typename T>
__global__ void bias_activation(const T* z, const float* bias, const T* residual, T* before, T* y, int activation, int n_rows, int n) {
  const int N = Wide<T>::N, per_row = (n + N - 1) / N;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = i / per_row;
  if (row >= n_rows) return;
  const int column = static_cast<int>(i % per_row) * N;
  const int64_t at = row * n + column;
  const bool wide = is_wide<T>(n, z, residual, before, y) && is_wide<float>(n, bias);
  float values[N], more[N];
  read(z + at, n - column, wide, values);
  if (bias != nullptr) {
    read(bias + column, n - column, wide, more);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] += more[j];
  }
  if (before != nullptr) write(before + at, n - column, wide, values);
#pragma unroll
  for (int j = 0; j < N; ++j) values[j] = activate(values[j], activation);
  if (residual != nullptr) {
    read(residual + at, n - column, wide, more);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] += more[j];
  }
  write(y + at, n - column, wide, values);
}
