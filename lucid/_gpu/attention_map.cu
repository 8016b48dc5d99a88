// Attention probabilities, written out: softmax(Q . Kᵀ / sqrt(D)) as arrays of (query column, key column). A warp has one query
// of one head; a row of the result holds the scores on the way, and only their own lane reads them.
#include "common.cuh"

// KERNEL attention_map<T>

template <typename T>
__global__ void attention_map(
    const T* qkv, const int* starts, const int* sequences, const int* columns, int n_tokens, int n_heads, int width, int length,
    float scale, float* maps) {
  const int lane = threadIdx.x % WARP, query = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, head = blockIdx.y;
  if (query >= n_tokens) return;
  const int64_t stride = int64_t(3) * n_heads * width;
  const int sequence = sequences[query], begin = starts[sequence], end = starts[sequence + 1];
  const T* q = qkv + query * stride + head * width;
  float* row = maps + ((int64_t(sequence) * n_heads + head) * length + columns[query]) * length;
  float top = -INFINITY, sum = 0;
  for (int key = begin + lane; key < end; key += WARP) {
    const T* k = qkv + key * stride + int64_t(n_heads + head) * width;
    float score = 0;
    for (int d = 0; d < width; ++d) score = fmaf(to_float(q[d]), to_float(k[d]), score);
    row[columns[key]] = score * scale;
    top = fmaxf(top, score * scale);
  }
  top = warp_max(top);
  for (int key = begin + lane; key < end; key += WARP) {
    row[columns[key]] = expf(row[columns[key]] - top);
    sum += row[columns[key]];
  }
  sum = warp_sum(sum);
  for (int key = begin + lane; key < end; key += WARP) row[columns[key]] /= sum;
}
