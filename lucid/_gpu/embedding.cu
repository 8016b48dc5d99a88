// The input of BERT (Devlin et al. 2019, figure 2): word + position + segment vectors, then LayerNorm; and sums of rows by segments.
// KERNEL embedding_forward<T>
// KERNEL sum_segments<T>
#include "norm.cuh"

// y[t] = LayerNorm(words[ids[t]] + positions[position_ids[t]] + types[type_ids[t]]), a warp for each row. What backward reads,
// `total`, `mean` and `rstd`, may be null.
template <typename T>
__global__ void embedding_forward(const T* words, const int* ids, const T* positions, const int* position_ids, const T* types,
                                  const int* type_ids, const float* gain, const float* bias, float eps, T* y, T* total, float* mean,
                                  float* rstd, int n_rows, int n) {
  const int N = Wide<T>::N, lane = threadIdx.x % WARP, row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (row >= n_rows) return;
  DYNAMIC_SHARED(float, rows);
  float* held = rows + threadIdx.x / WARP * held_size(n, WARP * N);
  const bool wide = is_wide<T>(n, words, positions, types, y, total) && is_wide<float>(n, gain, bias);
  const T *word = words + static_cast<int64_t>(ids[row]) * n, *position = positions + static_cast<int64_t>(position_ids[row]) * n,
          *type = types + static_cast<int64_t>(type_ids[row]) * n;
  const int64_t first = static_cast<int64_t>(row) * n;
  float sum = 0;
  for (int i = lane * N, k = 0; i < n; i += WARP * N, ++k) {
    float values[N], of_type[N], of_position[N];
    read(word + i, n - i, wide, values);
    read(type + i, n - i, wide, of_type);
    read(position + i, n - i, wide, of_position);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = values[j] + of_type[j] + of_position[j];
    if (total != nullptr) write(total + first + i, n - i, wide, values);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      held[(k * N + j) * WARP + lane] = values[j];
      sum += values[j];
    }
  }
  normalise(held, sum, n, gain, bias, eps, y + first, mean == nullptr ? nullptr : mean + row, rstd + row, wide);
}

// out[s] = sum of rows[order[i]] for i from starts[s] to starts[s + 1], in that order, a block for each segment. Without `order`,
// of the rows as they stand.
template <typename T> __global__ void sum_segments(const T* rows, const int* order, const int* starts, float* out, int n) {
  const int N = Wide<T>::N, begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
  const bool wide = is_wide<T>(n, rows) && is_wide<float>(n, out);
  for (int column = threadIdx.x * N; column < n; column += blockDim.x * N) {
    float sum[N] = {};
    for (int i = begin; i < end; ++i) {
      float values[N];
      read(rows + static_cast<int64_t>(order == nullptr ? i : order[i]) * n + column, n - column, wide, values);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += values[j];
    }
    write(out + static_cast<int64_t>(blockIdx.x) * n + column, n - column, wide, sum);
  }
}
