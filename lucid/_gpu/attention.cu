// Multi-head scaled dot-product attention (Vaswani et al. 2017, eq. 1) over packed sequences, with the online softmax of
// Milakov & Gimelshein 2018: the plain form, for every head width and type; products are float32. attention_mma.cu has the
// form for tensor cores.
//
// A block has one tile of queries (or keys) of one head of one sequence, and SLICE columns of the result. Tiles are counted
// from the sequence's start and its sums run in one order, so neither the batch nor the grid can change a result.
#include "attention.cuh"

// KERNEL attention_forward<T>
// KERNEL attention_backward_queries<T>
// KERNEL attention_backward_keys<T>

constexpr int SLICE = 64;        // columns of the result
constexpr int CHUNK = 32;        // columns of two tiles in shared memory for their product
constexpr int THREADS = 256;     // 16 x 16, each with 4 x 4 of a tile
constexpr int PITCH = TILE + 4;  // of rows in shared memory: whole float4, and fewer bank conflicts

template <typename T>
struct Attention {
  const T *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;  // in numbers
  int n_heads, width;
  float scale;
  PairDropout drop;
};

#define ATTENTION_ARGUMENTS                                                                                                    \
  const int *tiles, const T *q, int64_t q_stride, const T *k, int64_t k_stride, const T *v, int64_t v_stride,                  \
      const int *query_starts, const int *key_starts, int n_heads, int width, float scale, const int *query_columns,           \
      const int *key_columns, const int *examples, uint64_t key, uint32_t stream, uint32_t threshold, float keep_scale

#define ATTENTION                                                                                                              \
  {                                                                                                                            \
    q, k, v, q_stride, k_stride, v_stride, n_heads, width, scale, {                                                            \
      query_columns, key_columns, examples, key, stream, threshold, keep_scale                                                 \
    }                                                                                                                          \
  }

// Products of tiles. Thread (y, x) has rows 4 y to 4 y + 3 and columns 4 x to 4 x + 3.

__device__ inline int row_of_thread() { return threadIdx.x / 16 * 4; }
__device__ inline int column_of_thread() { return threadIdx.x % 16 * 4; }

__device__ inline void add_products(float (&c)[4][4], const float* a, const float* b, int n) {
  // c[i][j] += sum over d < n of a[d][row i] b[d][column j]
  for (int d = 0; d < n; ++d) {
    const float4 rows = *reinterpret_cast<const float4*>(a + d * PITCH + row_of_thread());
    const float4 columns = *reinterpret_cast<const float4*>(b + d * PITCH + column_of_thread());
    const float x[4] = {rows.x, rows.y, rows.z, rows.w}, y[4] = {columns.x, columns.y, columns.z, columns.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) c[i][j] = fmaf(x[i], y[j], c[i][j]);
  }
}

template <typename T>
__device__ void load_turned(float* to, const T* rows, int64_t stride, int n_rows, int width) {
  // to[d][row] = rows[row][d], zeros beyond n_rows and width
  for (int i = threadIdx.x; i < TILE * CHUNK; i += THREADS) {
    const int d = i % CHUNK, row = i / CHUNK;
    to[d * PITCH + row] = row < n_rows && d < width ? to_float(rows[row * stride + d]) : 0;
  }
}

template <typename T>
__device__ void load_rows(float* to, const T* rows, int64_t stride, int n_rows, int width) {
  for (int i = threadIdx.x; i < TILE * SLICE; i += THREADS) {
    const int d = i % SLICE, row = i / SLICE;
    to[row * PITCH + d] = row < n_rows && d < width ? to_float(rows[row * stride + d]) : 0;
  }
}

template <typename T>
__device__ void row_products(
    float (&c)[4][4], const T* a, int64_t a_stride, int n_a, const T* b, int64_t b_stride, int n_b, int width, float* staged) {
  // c = a . b transposed, over all columns
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) c[i][j] = 0;
  for (int d = 0; d < width; d += CHUNK) {
    __syncthreads();
    load_turned(staged, a + d, a_stride, n_a, width - d);
    load_turned(staged + CHUNK * PITCH, b + d, b_stride, n_b, width - d);
    __syncthreads();
    add_products(c, staged, staged + CHUNK * PITCH, min(CHUNK, width - d));
  }
}

template <bool of_queries>
__device__ void store_weights(float* weights, const float (&p)[4][4]) {
  // The sum runs over rows of `weights`: keys where results belong to queries, else queries.
  float* at = weights + (of_queries ? column_of_thread() * PITCH + row_of_thread() : row_of_thread() * PITCH + column_of_thread());
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<float4*>(at + i * PITCH) =
        of_queries ? make_float4(p[0][i], p[1][i], p[2][i], p[3][i]) : make_float4(p[i][0], p[i][1], p[i][2], p[i][3]);
}

template <bool of_queries, typename T>
__device__ void add_weighted_rows(
    float (&c)[4][4], const float (&p)[4][4], const T* rows, int64_t stride, int n_rows, int width, float* weights, float* staged) {
  // c += p . rows, or p transposed . rows
  __syncthreads();
  store_weights<of_queries>(weights, p);
  load_rows(staged, rows, stride, n_rows, width);
  __syncthreads();
  add_products(c, weights, staged, n_rows);
}

template <typename T>
__device__ void store_slice(T* rows, int64_t stride, const float (&c)[4][4], int n_rows, int width) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row_of_thread() + i < n_rows && column_of_thread() + j < width)
        rows[(row_of_thread() + i) * stride + column_of_thread() + j] = from_float<T>(c[i][j]);
}

// A row of a tile belongs to 16 lanes of one warp.

__device__ inline float row_sum(float x) {
  for (int lanes = 8; lanes; lanes /= 2) x += __shfl_xor_sync(ALL, x, lanes);
  return x;
}

__device__ inline float row_max(float x) {
  for (int lanes = 8; lanes; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, lanes));
  return x;
}

// Forward

template <typename T>
__global__ void __launch_bounds__(THREADS) attention_forward(ATTENTION_ARGUMENTS, T* out, float* lse) {
  const Attention<T> call = ATTENTION;
  __shared__ __align__(16) float staged[2 * CHUNK * PITCH];
  __shared__ __align__(16) float weights[TILE * PITCH];
  const Place at = place_of(tiles, n_heads, query_starts, query_starts, key_starts);
  const int column = at.head * width, slice = blockIdx.y * SLICE, slice_width = min(SLICE, width - slice);
  float o[4][4] = {}, m[4], l[4] = {};
  for (int i = 0; i < 4; ++i) m[i] = -INFINITY;
  for (int first = at.key_begin; first < at.key_begin + at.n_keys; first += TILE) {
    const int n_keys = min(TILE, at.key_begin + at.n_keys - first);
    float p[4][4];
    row_products(p, q + at.first * q_stride + column, q_stride, at.n_rows, k + first * k_stride + column, k_stride, n_keys, width, staged);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float top = -INFINITY;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        p[i][j] = column_of_thread() + j < n_keys ? p[i][j] * scale : -INFINITY;
        top = fmaxf(top, p[i][j]);
      }
      top = fmaxf(m[i], row_max(top));
      const float alpha = expf(m[i] - top);
      m[i] = top;
      l[i] *= alpha;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        o[i][j] *= alpha;
        p[i][j] = expf(p[i][j] - top);
        l[i] += p[i][j];
      }
      if (threshold && row_of_thread() + i < at.n_rows) {
        float keep[4];
        call.drop.keep(keep, at.first + row_of_thread() + i, first + column_of_thread(), n_keys - column_of_thread(), at.key_begin, at.head,
                       at.sequence);
#pragma unroll
        for (int j = 0; j < 4; ++j) p[i][j] *= keep[j];
      }
    }
    add_weighted_rows<true>(o, p, v + first * v_stride + column + slice, v_stride, n_keys, slice_width, weights, staged);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float sum = row_sum(l[i]);
#pragma unroll
    for (int j = 0; j < 4; ++j) o[i][j] *= 1 / sum;
    if (lse && blockIdx.y == 0 && threadIdx.x % 16 == 0 && row_of_thread() + i < at.n_rows)
      lse[(at.first + row_of_thread() + i) * int64_t(n_heads) + at.head] = m[i] + logf(sum);
  }
  const int64_t stride = int64_t(n_heads) * width;
  store_slice(out + at.first * stride + column + slice, stride, o, at.n_rows, slice_width);
}

// Backward (Dao et al. 2022, algorithm 4): with the log-sum-exp rows saved by forward
//   P = exp(scale Q Kᵀ - lse);  dV = Pᵀ dO;  dP = dO Vᵀ;  dS = scale P (dP - delta);  dQ = dS K;  dK = dSᵀ Q
// and with dropout P in dV, and dP, multiplied by the same mask as in forward. Two kernels, so that every number has one
// writer: by tiles of queries for delta and dQ, then by tiles of keys for dK and dV.
//
// delta is rowsum(P dP) / rowsum(P), not the paper's rowsum(dO O): then a row of dS sums to 0 however lse was
// rounded, and the gradient of the key bias, a sum of such rows, stays the 0 that it is.
//
// lse, delta : [n_queries, n_heads]; the first kernel writes delta, the second reads it
// d_out : [n_queries, n_heads * width]

template <typename T>
__device__ void probabilities(
    float (&p)[4][4], float (&kept)[4][4], float (&d_p)[4][4], const Attention<T>& call, const float* lse, const T* d_out, const Place& at,
    int query, int n_queries, int key, int n_keys, float* staged) {
  // P, P times the mask of dropout, and dP of a tile; zeros outside of it
  const int column = at.head * call.width;
  const int64_t stride = int64_t(call.n_heads) * call.width;
  row_products(p, call.q + query * call.q_stride + column, call.q_stride, n_queries, call.k + key * call.k_stride + column, call.k_stride,
               n_keys, call.width, staged);
  row_products(d_p, d_out + query * stride + column, stride, n_queries, call.v + key * call.v_stride + column, call.v_stride, n_keys,
               call.width, staged);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = query + row_of_thread() + i;
    const bool is_row = row_of_thread() + i < n_queries;
    const float row_lse = is_row ? lse[row * int64_t(call.n_heads) + at.head] : INFINITY;
    float keep[4] = {1, 1, 1, 1};
    if (call.drop.threshold && is_row)
      call.drop.keep(keep, row, key + column_of_thread(), n_keys - column_of_thread(), at.key_begin, at.head, at.sequence);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      p[i][j] = is_row && column_of_thread() + j < n_keys ? expf(fmaf(p[i][j], call.scale, -row_lse)) : 0;
      kept[i][j] = p[i][j] * keep[j];
      d_p[i][j] *= keep[j];
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(THREADS) attention_backward_queries(
    ATTENTION_ARGUMENTS, const float* lse, const T* d_out, float* delta, T* d_q, int64_t d_q_stride) {
  const Attention<T> call = ATTENTION;
  __shared__ __align__(16) float staged[2 * CHUNK * PITCH];
  __shared__ __align__(16) float weights[TILE * PITCH];
  const Place at = place_of(tiles, n_heads, query_starts, query_starts, key_starts);
  const int slice = blockIdx.y * SLICE, column = at.head * width + slice, slice_width = min(SLICE, width - slice);
  float p[4][4], kept[4][4], d_p[4][4], sum[4] = {}, row_delta[4] = {}, dq[4][4] = {};
  for (int first = at.key_begin; first < at.key_begin + at.n_keys; first += TILE) {
    probabilities(p, kept, d_p, call, lse, d_out, at, at.first, at.n_rows, first, min(TILE, at.key_begin + at.n_keys - first), staged);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[i] += p[i][j];
        row_delta[i] = fmaf(p[i][j], d_p[i][j], row_delta[i]);
      }
  }
  for (int i = 0; i < 4; ++i) {
    row_delta[i] = row_sum(row_delta[i]) / row_sum(sum[i]);
    if (blockIdx.y == 0 && threadIdx.x % 16 == 0 && row_of_thread() + i < at.n_rows)
      delta[(at.first + row_of_thread() + i) * int64_t(n_heads) + at.head] = row_delta[i];
  }
  for (int first = at.key_begin; first < at.key_begin + at.n_keys; first += TILE) {
    const int n_keys = min(TILE, at.key_begin + at.n_keys - first);
    probabilities(p, kept, d_p, call, lse, d_out, at, at.first, at.n_rows, first, n_keys, staged);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) p[i][j] = scale * p[i][j] * (d_p[i][j] - row_delta[i]);
    add_weighted_rows<true>(dq, p, k + first * k_stride + column, k_stride, n_keys, slice_width, weights, staged);
  }
  store_slice(d_q + at.first * d_q_stride + column, d_q_stride, dq, at.n_rows, slice_width);
}

template <typename T>
__global__ void __launch_bounds__(THREADS) attention_backward_keys(
    ATTENTION_ARGUMENTS, const float* lse, const T* d_out, const float* delta, T* d_k, int64_t d_k_stride, T* d_v, int64_t d_v_stride) {
  const Attention<T> call = ATTENTION;
  __shared__ __align__(16) float staged[2 * CHUNK * PITCH];
  __shared__ __align__(16) float weights[TILE * PITCH];
  const Place at = place_of(tiles, n_heads, key_starts, query_starts, key_starts);
  const int slice = blockIdx.y * SLICE, column = at.head * width + slice, slice_width = min(SLICE, width - slice);
  const int64_t stride = int64_t(n_heads) * width;
  float p[4][4], kept[4][4], d_p[4][4], dk[4][4] = {}, dv[4][4] = {};
  for (int first = at.query_begin; first < at.query_begin + at.n_queries; first += TILE) {
    const int n_queries = min(TILE, at.query_begin + at.n_queries - first);
    probabilities(p, kept, d_p, call, lse, d_out, at, first, n_queries, at.first, at.n_rows, staged);
    add_weighted_rows<false>(dv, kept, d_out + first * stride + column, stride, n_queries, slice_width, weights, staged);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = row_of_thread() + i;
      const float row_delta = row < n_queries ? delta[(first + row) * int64_t(n_heads) + at.head] : 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) p[i][j] = scale * p[i][j] * (d_p[i][j] - row_delta);
    }
    add_weighted_rows<false>(dk, p, q + first * q_stride + column, q_stride, n_queries, slice_width, weights, staged);
  }
  store_slice(d_k + at.first * d_k_stride + column, d_k_stride, dk, at.n_rows, slice_width);
  store_slice(d_v + at.first * d_v_stride + column, d_v_stride, dv, at.n_rows, slice_width);
}
