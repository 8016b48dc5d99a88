// Dropout of activations, by counter-based random numbers.
// KERNEL dropout_forward<T>
#include "philox.cuh"

// y = x * scale, or 0 with probability threshold / 2^32 (Srivastava et al. 2014, inverted); y may be x. Row t belongs to token
// columns[t] of example examples[t].
template <typename T>
__global__ void dropout_forward(const T* x, T* y, const int* columns, const int* examples, uint64_t key, uint32_t stream,
                                uint64_t threshold, float scale, int n_rows, int n) {
  const int N = Wide<T>::N, per_row = (n + N - 1) / N;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = i / per_row;
  if (row >= n_rows) return;
  const int column = static_cast<int>(i % per_row) * N;
  const int64_t at = row * n + column;
  const bool wide = is_wide<T>(n, x, y);
  float values[N];
  read(x + at, n - column, wide, values);
#pragma unroll
  for (int j = 0; j < N; j += 4) {
    const Philox random = philox((column + j) / 4, columns[row], examples[row], stream, key);
#pragma unroll
    for (int k = 0; k < 4; ++k) values[j + k] = random.word[k] < threshold ? 0.0f : values[j + k] * scale;
  }
  write(y + at, n - column, wide, values);
}
