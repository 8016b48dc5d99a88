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

// Whether all of these arrays can be read 16 bytes at a time, in rows of n numbers.
template <typename T> __device__ __forceinline__ bool is_wide(int n, const void* a, const void* b = nullptr, const void* c = nullptr,
                                                              const void* d = nullptr) {
  const auto places = reinterpret_cast<uint64_t>(a) | reinterpret_cast<uint64_t>(b) | reinterpret_cast<uint64_t>(c) |
                      reinterpret_cast<uint64_t>(d);
  return n % Wide<T>::N == 0 && places % 16 == 0;
}

// Read `count` numbers, at most Wide<T>::N of them, zeros behind; at once if `wide`.
template <typename T> __device__ __forceinline__ void read(const T* x, int count, bool wide, float (&values)[Wide<T>::N]) {
  if (wide) {
    const Wide<T> numbers = *reinterpret_cast<const Wide<T>*>(x);
#pragma unroll
    for (int i = 0; i < Wide<T>::N; ++i) values[i] = to_float(numbers.at[i]);
  } else {
#pragma unroll
    for (int i = 0; i < Wide<T>::N; ++i) values[i] = i < count ? to_float(x[i]) : 0.0f;
  }
}

template <typename T> __device__ __forceinline__ void write(T* y, int count, bool wide, const float (&values)[Wide<T>::N]) {
  if (wide) {
    Wide<T> numbers;
#pragma unroll
    for (int i = 0; i < Wide<T>::N; ++i) numbers.at[i] = from_float<T>(values[i]);
    *reinterpret_cast<Wide<T>*>(y) = numbers;
  } else {
#pragma unroll
    for (int i = 0; i < Wide<T>::N; ++i)
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
