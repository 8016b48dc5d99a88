// What is asked of a chunk of the decoder's logits, and of their gradients. The products themselves are cuBLAS's.
// KERNEL decoder_top_k
// KERNEL scale_in_place<T>
#include "softmax.cuh"

// A logit and its word as one number: a larger logit gives a larger number, of equal logits the earlier word does, and
// a NaN comes after all others. No number is 0.
__device__ __forceinline__ uint64_t rank_of(float x, int word) {
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);  // one zero
  const uint32_t order = x != x ? 0u : bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(order) << 32 | ~static_cast<uint32_t>(word);
}

__device__ __forceinline__ int word_of(uint64_t rank) { return static_cast<int>(~static_cast<uint32_t>(rank)); }

// The best of this thread's words that rank below `limit`, or 0.
__device__ uint64_t best_below(uint64_t limit, int n, Row<float> logit) {
  uint64_t best = 0;
  for (int j = threadIdx.x; j < n; j += ROW_THREADS) {
    const uint64_t rank = rank_of(logit(j), j);
    if (rank < limit && rank > best) best = rank;
  }
  return best;
}

// The k largest logits of a row, their words and log(sum exp); equal logits by rising word. Every thread offers the best of
// its own words; the one whose offer the block takes looks through its n / ROW_THREADS words for the next.
__global__ void __launch_bounds__(ROW_THREADS) decoder_top_k(const float* logits, int64_t stride, const float* bias, int n, int k,
                                                             float* values, int32_t* ids, float* lse) {
  const Row<float> logit(logits, stride, bias);
  const RowSum sum = row_sum(n, logit);
  if (threadIdx.x == 0) lse[blockIdx.x] = static_cast<float>(log_sum_exp(sum));
  values += static_cast<int64_t>(blockIdx.x) * k;
  ids += static_cast<int64_t>(blockIdx.x) * k;
  uint64_t best = best_below(~uint64_t(0), n, logit);
  for (int i = 0; i < k; ++i) {
    const uint64_t taken = join_block(best);
    if (best == taken) {  // this thread's: no two words rank alike
      values[i] = logit(word_of(taken));
      ids[i] = word_of(taken);
      best = best_below(taken, n, logit);
    }
  }
}

// x *= *factor. The factor stays on the device, and the host need not wait to learn that it is 1.
template <typename T> __global__ void scale_in_place(T* x, int64_t n, const float* factor) {
  if (*factor == 1.0f) return;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
    x[i] = from_float<T>(to_float(x[i]) * *factor);
}
