// What every kernel here shares: storage types, wide loads, sums over a warp. Arithmetic is in float32, whatever is stored.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef __CUDACC_RTC__  // NVRTC has no C library
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define INFINITY __int_as_float(0x7f800000)
#endif

// The block's dynamic shared memory, as an array of some type. The emulator has its own.
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name)                          \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  type* name = reinterpret_cast<type*>(name##_bytes)
#endif

const int WARP = 32;
const unsigned ALL = 0xffffffffu;  // the lanes of a warp

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// As many numbers as 16 bytes hold: one load, one store.
template <typename T> struct alignas(16) Wide {
  static const int N = 16 / sizeof(T);
  T at[N];
};

// Whether rows of n numbers can be read Wide<T>::N at a time from all of these arrays.
template <typename T> __device__ __forceinline__ bool is_wide(int n, const void* a, const void* b = nullptr, const void* c = nullptr,
                                                              const void* d = nullptr, const void* e = nullptr) {
  const uint64_t places = reinterpret_cast<uint64_t>(a) | reinterpret_cast<uint64_t>(b) | reinterpret_cast<uint64_t>(c) |
                          reinterpret_cast<uint64_t>(d) | reinterpret_cast<uint64_t>(e);
  return n % Wide<T>::N == 0 && places % 16 == 0;
}

// Read N numbers, or the first `count` of them and zeros; 16 bytes at a time if `wide`, and then all.
template <int N, typename T> __device__ __forceinline__ void read(const T* x, int count, bool wide, float (&values)[N]) {
  const int W = Wide<T>::N;
  if (wide) {
#pragma unroll
    for (int i = 0; i < N; i += W) {
      const Wide<T> numbers = *reinterpret_cast<const Wide<T>*>(x + i);
#pragma unroll
      for (int j = 0; j < W; ++j) values[i + j] = to_float(numbers.at[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = i < count ? to_float(x[i]) : 0.0f;
  }
}

template <int N, typename T> __device__ __forceinline__ void write(T* y, int count, bool wide, const float (&values)[N]) {
  const int W = Wide<T>::N;
  if (wide) {
#pragma unroll
    for (int i = 0; i < N; i += W) {
      Wide<T> numbers;
#pragma unroll
      for (int j = 0; j < W; ++j) numbers.at[j] = from_float<T>(values[i + j]);
      *reinterpret_cast<Wide<T>*>(y + i) = numbers;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < count) y[i] = from_float<T>(values[i]);
  }
}

// The sum of a warp's numbers, in every lane: a fixed tree.
template <typename T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL, x, distance);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, distance));
  return x;
}
