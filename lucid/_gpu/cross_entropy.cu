// Softmax cross-entropy on given logits: a block takes a row. `stride` is the distance of rows in elements; a label
// below 0 leaves a loss of 0 and gradients of 0. The bias may be null.
// KERNEL cross_entropy_forward<T>
// KERNEL cross_entropy_backward<float, T>
// KERNEL cross_entropy_backward<__half, __half>
// KERNEL cross_entropy_backward<__nv_bfloat16, __nv_bfloat16>
// KERNEL cross_entropy_both<T>
#include "softmax.cuh"

// losses[p] = lse[p] - logits[p, labels[p]], lse[p] = log(sum_j exp(logits[p, j])).
template <typename T>
__global__ void __launch_bounds__(ROW_THREADS)
    cross_entropy_forward(const T* logits, int64_t stride, const float* bias, const int32_t* labels, int n, float* losses, float* lse) {
  const Row<T> logit(logits, stride, bias);
  const double log_sum = log_sum_exp(row_sum(n, logit));
  if (threadIdx.x > 0) return;
  lse[blockIdx.x] = static_cast<float>(log_sum);
  losses[blockIdx.x] = loss_of(logit, labels[blockIdx.x], log_sum);
}

// d_logits[p, j] = (exp(logits[p, j] - lse[p]) - [labels[p] == j]) * d_losses[p]. d_logits may be logits.
template <typename T, typename D>
__global__ void __launch_bounds__(ROW_THREADS)
    cross_entropy_backward(const T* logits, int64_t stride, const float* bias, const int32_t* labels, int n, const float* lse,
                           const float* d_losses, D* d_logits, int64_t d_stride) {
  const int p = blockIdx.x;
  row_gradient(n, Row<T>(logits, stride, bias), labels[p], lse[p], d_losses[p], d_logits + p * d_stride);
}

// Both at once, where every loss has the same gradient: the second look at a row finds it in cache.
template <typename D>
__global__ void __launch_bounds__(ROW_THREADS)
    cross_entropy_both(const float* logits, int64_t stride, const float* bias, const int32_t* labels, int n, float d_loss,
                       float* losses, D* d_logits, int64_t d_stride) {
  const Row<float> logit(logits, stride, bias);
  const int p = blockIdx.x, label = labels[p];
  const double log_sum = log_sum_exp(row_sum(n, logit));
  if (threadIdx.x == 0) losses[p] = loss_of(logit, label, log_sum);
  __syncthreads();  // the gradient may take the place of the label's logit
  row_gradient(n, logit, label, static_cast<float>(log_sum), d_loss, d_logits + p * d_stride);
}
