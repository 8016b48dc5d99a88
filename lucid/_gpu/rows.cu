// Rows taken out of a matrix, and put into one. A block for each row.
// KERNEL take_rows<T>
// KERNEL put_rows<T>
#include "common.cuh"

template <typename T> __device__ __forceinline__ void copy_row(const T* from, T* to, int n, bool wide) {
  const int N = Wide<T>::N;
  for (int i = threadIdx.x * N; i < n; i += blockDim.x * N) {
    if (wide) {
      *reinterpret_cast<Wide<T>*>(to + i) = *reinterpret_cast<const Wide<T>*>(from + i);
    } else {
      for (int j = i; j < min(n, i + N); ++j) to[j] = from[j];
    }
  }
}

// y[p] = x[rows[p]]
template <typename T> __global__ void take_rows(const T* x, const int* rows, T* y, int n) {
  const int64_t p = blockIdx.x;
  copy_row(x + static_cast<int64_t>(rows[p]) * n, y + p * n, n, is_wide<T>(n, x, y));
}

// y[rows[p]] = x[p]; no row is named twice
template <typename T> __global__ void put_rows(const T* x, const int* rows, T* y, int n) {
  const int64_t p = blockIdx.x;
  copy_row(x + p * n, y + static_cast<int64_t>(rows[p]) * n, n, is_wide<T>(n, x, y));
}
