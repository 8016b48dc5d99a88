// AdamW (Loshchilov & Hutter 2019, algorithm 2) on many parameters at once, and the norm of their gradients.
// KERNEL square_sums
// KERNEL gradient_norm
// KERNEL adamw_step
#include "common.cuh"

// One parameter, as `UPDATE` in lucid/_gpu/adamw.py lays it out. `copy` holds the weight in another type, or is null.
struct Update {
  float* weight;
  const float* d_weight;
  float *m, *v;
  void* copy;
  int64_t n;
  float keep, rate, root;
  int copy_is_half;
};

const int CHUNK = 16384;  // numbers of one parameter that one block treats

// sums[b] = sum of d^2 over the b-th chunk, in float64: no float32 overflows it.
__global__ void square_sums(const void* updates, const int* chunks, double* sums) {
  __shared__ double of_warp[WARP];
  const Update& update = static_cast<const Update*>(updates)[chunks[2 * blockIdx.x]];
  const int64_t begin = static_cast<int64_t>(chunks[2 * blockIdx.x + 1]) * CHUNK, end = min(update.n, begin + CHUNK);
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const double d = update.d_weight[i];
    sum += d * d;
  }
  sum = warp_sum(sum);
  if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = sum;
  __syncthreads();
  if (threadIdx.x < WARP) {
    sum = warp_sum(threadIdx.x < blockDim.x / WARP ? of_warp[threadIdx.x] : 0.0);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  }
}

// norm[0] = share * sqrt(sum of sums); norm[1] = what gradients are multiplied by, so that the norm is at most `most`. One block.
__global__ void gradient_norm(const double* sums, double* norm, double share, double most, int n) {
  __shared__ double of_warp[WARP];
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
  sum = warp_sum(sum);
  if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = sum;
  __syncthreads();
  if (threadIdx.x < WARP) {
    sum = share * sqrt(warp_sum(threadIdx.x < blockDim.x / WARP ? of_warp[threadIdx.x] : 0.0));
    if (threadIdx.x == 0) {
      norm[0] = sum;
      norm[1] = sum <= most ? share : share * (most / sum);
    }
  }
}

// g = norm[1] * d_weight;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
// weight = keep * weight - rate * m / (root * sqrt(v) + eps). Nothing, if the norm is not finite.
__global__ void adamw_step(const void* updates, const int* chunks, const double* norm, float beta1, float beta2, float a1, float a2,
                           float eps) {
  if (!isfinite(norm[0])) return;
  const float scale = static_cast<float>(norm[1]);
  const Update& update = static_cast<const Update*>(updates)[chunks[2 * blockIdx.x]];
  const int64_t begin = static_cast<int64_t>(chunks[2 * blockIdx.x + 1]) * CHUNK, end = min(update.n, begin + CHUNK);
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const float g = update.d_weight[i] * scale;
    const float m = fmaf(a1, g, beta1 * update.m[i]), v = fmaf(a2 * g, g, beta2 * update.v[i]);
    const float weight = update.keep * update.weight[i] - update.rate * m / fmaf(sqrtf(v), update.root, eps);
    update.m[i] = m;
    update.v[i] = v;
    update.weight[i] = weight;
    if (update.copy == nullptr) continue;
    if (update.copy_is_half) {
      static_cast<__half*>(update.copy)[i] = from_float<__half>(weight);
    } else {
      static_cast<__nv_bfloat16*>(update.copy)[i] = from_float<__nv_bfloat16>(weight);
    }
  }
}
