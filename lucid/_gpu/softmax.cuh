// Softmax cross-entropy of one row of logits, worked on by one block: loss = log(sum_j exp(x_j)) - x_label. The bias,
// where there is one, is added to what is read. A sum has one order, which the number of columns gives: the same bits
// on every run, whatever rows are beside it.
#pragma once
#include "common.cuh"

const int ROW_THREADS = 256;  // of a block; `ROW_THREADS` in cross_entropy.py
const int AT_ONCE = 8;        // logits that a thread reads before it uses them

// The block's row. `stride` is the distance of rows, in elements.
template <typename T> struct Row {
  const T* x;
  const float* bias;
  __device__ Row(const T* logits, int64_t stride, const float* bias) : x(logits + blockIdx.x * stride), bias(bias) {}
  __device__ float operator()(int j) const { return to_float(x[j]) + (bias ? bias[j] : 0.0f); }
};

// What some logits leave: the largest, and the sum of exp(logit - largest).
struct RowSum {
  float top, total;
};

__device__ __forceinline__ float moved(RowSum sum, float top) {
  // A word may be excluded by a logit of -inf; where all are, the total is 0, or NaN if one is NaN.
  return sum.top > -INFINITY ? sum.total * expf(sum.top - top) : sum.total;
}

__device__ __forceinline__ RowSum join(RowSum a, RowSum b) {
  const float top = fmaxf(a.top, b.top);
  return {top, moved(a, top) + moved(b, top)};
}

__device__ __forceinline__ uint64_t join(uint64_t a, uint64_t b) { return a > b ? a : b; }

// One value of every thread, joined by a tree; every thread gets the result.
template <typename Value> __device__ Value join_block(Value mine) {
  __shared__ Value values[ROW_THREADS];
  values[threadIdx.x] = mine;
  __syncthreads();
  for (unsigned half = ROW_THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) values[threadIdx.x] = join(values[threadIdx.x], values[threadIdx.x + half]);
    __syncthreads();
  }
  const Value all = values[0];
  __syncthreads();  // the next call writes there
  return all;
}

// This thread's next logits, -inf behind the end of the row: loads that do not wait for each other.
template <typename T> __device__ __forceinline__ void read_logits(int begin, int n, Row<T> logit, float (&x)[AT_ONCE]) {
#pragma unroll
  for (int i = 0; i < AT_ONCE; ++i) x[i] = begin + i * ROW_THREADS < n ? logit(begin + i * ROW_THREADS) : -INFINITY;
}

template <typename T> __device__ RowSum row_sum(int n, Row<T> logit) {
  RowSum sum = {-INFINITY, 0.0f};
  for (int begin = threadIdx.x; begin < n; begin += AT_ONCE * ROW_THREADS) {
    float x[AT_ONCE];
    read_logits(begin, n, logit, x);
    RowSum part = {-INFINITY, 0.0f};
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) part.top = fmaxf(part.top, x[i]);
    const float base = part.top > -INFINITY ? part.top : 0.0f;
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) part.total += expf(x[i] - base);
    sum = join(sum, part);
  }
  return join_block(sum);
}

// log(sum exp), in float64: there is one in a row.
__device__ __forceinline__ double log_sum_exp(RowSum sum) {
  return sum.top > -INFINITY ? sum.top + log(static_cast<double>(sum.total)) : static_cast<double>(sum.top) + sum.total;
}

template <typename T> __device__ __forceinline__ float loss_of(Row<T> logit, int label, double log_sum) {
  return label < 0 ? 0.0f : static_cast<float>(log_sum - logit(label));
}

// d_logit(j) = (exp(logit(j) - lse) - [j == label]) * d_loss, 0 for a label below 0. The row may be the logits' own: a
// place is written by the thread that read it.
template <typename T, typename D> __device__ void row_gradient(int n, Row<T> logit, int label, float lse, float d_loss, D* d_row) {
  for (int begin = threadIdx.x; begin < n; begin += AT_ONCE * ROW_THREADS) {
    float x[AT_ONCE];
    read_logits(begin, n, logit, x);
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const int j = begin + i * ROW_THREADS;
      const float d = label < 0 ? 0.0f : (expf(x[i] - lse) - (j == label ? 1.0f : 0.0f)) * d_loss;
      if (j < n) d_row[j] = from_float<D>(d);
    }
  }
}
