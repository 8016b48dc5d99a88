// Kernels that do what they should not.
// KERNEL read_beyond
// KERNEL write_before
// KERNEL split_barrier
// KERNEL lonely_shuffle
// KERNEL part_of_a_warp
// KERNEL beyond_shared
// KERNEL beyond_dynamic
// KERNEL spoil_around
#include "../../../../lucid/_gpu/common.cuh"

__global__ void read_beyond(const float* x, float* y, int n) { y[threadIdx.x] = x[threadIdx.x + n]; }

__global__ void write_before(float* y) { y[(int)threadIdx.x - 4096] = 1; }

__global__ void split_barrier(float* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

__global__ void lonely_shuffle(float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(ALL, y[threadIdx.x], 0);
}

__global__ void part_of_a_warp(float* y) { y[threadIdx.x] = __shfl_sync(0xffffu, y[threadIdx.x], 0); }

__global__ void beyond_shared(float* y) {
  __shared__ float held[32];
  held[threadIdx.x] = y[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = held[threadIdx.x + 1];
}

__global__ void beyond_dynamic(float* y) {
  DYNAMIC_SHARED(float, held);
  held[threadIdx.x] = y[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = held[threadIdx.x + 1];
}

__global__ void spoil_around(float* y) { y[-1] = 0; }
