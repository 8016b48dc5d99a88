// Attention on tensor cores, in the manner of FlashAttention-2 (Dao 2023): for bfloat16 and float16 and head widths of 32, 64 and
// 128. Scores, softmax and sums are float32; probabilities and their gradients are rounded to T where they enter a product.
//
// A block has TILE queries (or keys) of one head of one sequence, 16 for each of its warps, and walks over tiles of the other
// side, which are copied to shared memory while the tile before them is worked on. A warp's own results never leave its
// registers, so there is one order of every sum. Tiles are counted from the sequence's start: the batch changes no bit.
#include "attention.cuh"
#include "mma.cuh"

// KERNEL attention_forward<{__half, __nv_bfloat16}, {32, 64, 128}>
// KERNEL attention_backward_queries<{__half, __nv_bfloat16}, {32, 64, 128}>
// KERNEL attention_backward_keys<{__half, __nv_bfloat16}, {32, 64, 128}>

constexpr int THREADS = 2 * TILE;  // a warp has 16 rows
template <int D>
constexpr int OTHERS = D == 128 ? 32 : 64;  // rows of the other side at once in backward: what registers allow
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

#define ATTENTION_ARGUMENTS                                                                                                    \
  const int *tiles, const T *q, int64_t q_stride, const T *k, int64_t k_stride, const T *v, int64_t v_stride,                  \
      const int *query_starts, const int *key_starts, int n_heads, float scale, const int *query_columns,                      \
      const int *examples, uint64_t key, uint32_t stream, uint32_t threshold, float keep_scale

// q_stride and the like: numbers from row to row; rows begin at multiples of 16 bytes.
// Keys are counted from their sequence's start: so the four of a Philox block are neighbours.
#define PAIR_DROPOUT {query_columns, nullptr, examples, key, stream, threshold, keep_scale}

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int first_row_of_warp() { return threadIdx.x / 32 * 16; }

// Tiles in shared memory. A chunk is 8 numbers, 16 bytes. Chunks of a row change places with its number, so that eight rows'
// chunks of one column, which a matrix load reads at once, lie in different banks.

template <int D>
__device__ __forceinline__ int offset_of(int row, int chunk) {
  return row * D + 8 * (chunk ^ (D == 32 ? row / 2 % 4 : row % 8));
}

template <int D, int ROWS, typename T>
__device__ __forceinline__ void load_tile(T* tile, const T* rows, int64_t stride, int n_rows) {
  // Rows beyond n_rows become zeros: what stands there belongs to others, and may be NaN.
  constexpr int CHUNKS = D / 8;
#pragma unroll
  for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
    const int row = (threadIdx.x + i * THREADS) / CHUNKS, chunk = (threadIdx.x + i * THREADS) % CHUNKS;
    cp_async_16(tile + offset_of<D>(row, chunk), row < n_rows ? rows + row * stride + 8 * chunk : rows, row < n_rows);
  }
}

template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  const struct alignas(4) {
    T low, high;
  } pair = {from_float<T>(low), from_float<T>(high)};
  return reinterpret_cast<const uint32_t&>(pair);
}

template <int D, typename T>
__device__ __forceinline__ void store_rows(T* rows, int64_t stride, int n_rows, const float (&c)[D / 8][4], T* tile) {
  // The warp's 16 rows, by way of its own rows of a tile that nobody reads any more
  const int own = first_row_of_warp(), row = own + lane() / 4, within = lane() % 4 * 2;
  __syncwarp();
#pragma unroll
  for (int j = 0; j < D / 8; ++j) {
    *reinterpret_cast<uint32_t*>(tile + offset_of<D>(row, j) + within) = pack<T>(c[j][0], c[j][1]);
    *reinterpret_cast<uint32_t*>(tile + offset_of<D>(row + 8, j) + within) = pack<T>(c[j][2], c[j][3]);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 16 * (D / 8) / 32; ++i) {
    const int to = own + (lane() + i * 32) / (D / 8), chunk = (lane() + i * 32) % (D / 8);
    if (to < n_rows)
      *reinterpret_cast<Wide<T>*>(rows + to * stride + 8 * chunk) = *reinterpret_cast<const Wide<T>*>(tile + offset_of<D>(to, chunk));
  }
}

// Products. Both are of a warp's 16 rows; an accumulator c[j] is columns 8 j to 8 j + 7 (mma.cuh).

template <typename T>
__device__ __forceinline__ void add_two_tiles(float (&left)[4], float (&right)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  const uint32_t b_left[2] = {b[0], b[1]}, b_right[2] = {b[2], b[3]};
  mma_m16n8k16<T>(left, a, b_left);
  mma_m16n8k16<T>(right, a, b_right);
}

template <int D, int COLUMNS, typename T>
__device__ __forceinline__ void row_products(float (&c)[COLUMNS / 8][4], const T* a, const T* b) {
  // c = the warp's rows of tile a . the rows of tile b, over their D columns
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
#pragma unroll
  for (int d = 0; d < D / 8; d += 2) {
    uint32_t rows[4], columns[4];
    ldmatrix_x4(rows, a + offset_of<D>(first_row_of_warp() + lane() % 16, d + lane() / 16));
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j += 2) {
      ldmatrix_x4(columns, b + offset_of<D>(8 * j + lane() / 16 * 8 + lane() % 8, d + lane() / 8 % 2));
      add_two_tiles<T>(c[j], c[j + 1], rows, columns);
    }
  }
}

template <int D, int ROWS, typename T>
__device__ __forceinline__ void add_weighted_rows(float (&c)[D / 8][4], const float (&p)[ROWS / 8][4], const T* b) {
  // c += p . b: an accumulator's two neighbouring column tiles are an A operand
#pragma unroll
  for (int i = 0; i < ROWS / 8; i += 2) {
    const uint32_t weights[4] = {pack<T>(p[i][0], p[i][1]), pack<T>(p[i][2], p[i][3]), pack<T>(p[i + 1][0], p[i + 1][1]),
                                 pack<T>(p[i + 1][2], p[i + 1][3])};
#pragma unroll
    for (int d = 0; d < D / 8; d += 2) {
      uint32_t columns[4];
      ldmatrix_x4_trans(columns, b + offset_of<D>(8 * i + lane() % 16, d + lane() / 16));
      add_two_tiles<T>(c[d], c[d + 1], weights, columns);
    }
  }
}

// Dropout. A Philox block has the words of four neighbouring keys of one query. Lanes that need words of the same blocks
// make one block each, and give each other what they need; word[e] is then of element e of the lane's accumulator.

__device__ __forceinline__ Philox words_of_query_rows(
    const PairDropout& drop, int key, int head, const uint32_t (&query_columns)[2], uint32_t example) {
  // Rows g and g + 8 are queries, at these columns, and the accumulator's columns are keys from `key` on. Lanes c and c ^ 1
  // share four keys: the even one makes the block of row g, the odd one that of row g + 8.
  const bool is_odd = lane() % 2;
  const uint32_t block = (uint32_t(head) << 14) + key / 4 + lane() % 4 / 2;
  const Philox own = philox(block, is_odd ? query_columns[1] : query_columns[0], example, drop.stream, drop.key);
  const uint32_t first = __shfl_xor_sync(ALL, is_odd ? own.word[0] : own.word[2], 1);
  const uint32_t second = __shfl_xor_sync(ALL, is_odd ? own.word[1] : own.word[3], 1);
  return is_odd ? Philox{{first, second, own.word[2], own.word[3]}} : Philox{{own.word[0], own.word[1], first, second}};
}

__device__ __forceinline__ Philox words_of_key_rows(
    const PairDropout& drop, int key, int head, const int* query_columns, uint32_t example) {
  // Rows g and g + 8 are keys from `key` on, and the accumulator's columns are queries at these columns. Four lanes, g = 4 r to
  // 4 r + 3 of one c, share keys 4 r to 4 r + 3 and the same 8 further on, for two queries each: four blocks, one a lane, and then
  // the square of 4 lanes x 4 words is turned on its side, first within squares of 2 x 2, then those.
  const int i = lane() / 4 % 4;
  const uint32_t block = (uint32_t(head) << 14) + key / 4 + i / 2 * 2 + lane() / 16;
  Philox w = philox(block, query_columns[lane() % 4 * 2 + i % 2], example, drop.stream, drop.key);
  const bool is_odd = i % 2, is_high = i / 2;
  const uint32_t a = __shfl_xor_sync(ALL, is_odd ? w.word[0] : w.word[1], 4), b = __shfl_xor_sync(ALL, is_odd ? w.word[2] : w.word[3], 4);
  w = is_odd ? Philox{{a, w.word[1], b, w.word[3]}} : Philox{{w.word[0], a, w.word[2], b}};
  const uint32_t c = __shfl_xor_sync(ALL, is_high ? w.word[0] : w.word[2], 8), d = __shfl_xor_sync(ALL, is_high ? w.word[1] : w.word[3], 8);
  return is_high ? Philox{{c, d, w.word[2], w.word[3]}} : Philox{{w.word[0], w.word[1], c, d}};
}

// What a lane needs to know of rows g and g + 8 of its warp, where these are queries.

__device__ __forceinline__ void columns_of_lane(uint32_t (&columns)[2], const PairDropout& drop, const Place& at) {
  for (int h = 0; h < 2; ++h) {
    const int row = first_row_of_warp() + lane() / 4 + 8 * h;
    columns[h] = drop.threshold && row < at.n_rows ? drop.query_columns[at.first + row] : 0;
  }
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(ALL, x, 1);
  return x + __shfl_xor_sync(ALL, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(ALL, x, 1));
  return fmaxf(x, __shfl_xor_sync(ALL, x, 2));
}

// Forward

template <typename T, int D>
__global__ void __launch_bounds__(THREADS) attention_forward(ATTENTION_ARGUMENTS, T* out, float* lse) {
  const PairDropout drop = PAIR_DROPOUT;
  DYNAMIC_SHARED(T, q_tile);
  T *k_tiles = q_tile + TILE * D, *v_tiles = k_tiles + 2 * TILE * D;
  const Place at = place_of(tiles, n_heads, query_starts, query_starts, key_starts);
  const int column = at.head * D, n_tiles = (at.n_keys + TILE - 1) / TILE;
  const T *keys = k + at.key_begin * k_stride + column, *values = v + at.key_begin * v_stride + column;
  load_tile<D, TILE>(q_tile, q + at.first * q_stride + column, q_stride, at.n_rows);
  load_tile<D, TILE>(k_tiles, keys, k_stride, at.n_keys);
  load_tile<D, TILE>(v_tiles, values, v_stride, at.n_keys);
  cp_async_commit();
  const float scale_2 = scale * LOG2_E;  // exponentials are powers of 2
  const uint32_t example = threshold ? examples[at.sequence] : 0;
  uint32_t columns[2];
  columns_of_lane(columns, drop, at);
  float o[D / 8][4] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
  for (int t = 0; t < n_tiles; ++t) {
    const int next = (t + 1) * TILE, now = t % 2 * TILE * D, other = TILE * D - now;
    if (t + 1 < n_tiles) {
      load_tile<D, TILE>(k_tiles + other, keys + next * k_stride, k_stride, at.n_keys - next);
      load_tile<D, TILE>(v_tiles + other, values + next * v_stride, v_stride, at.n_keys - next);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    float p[TILE / 8][4];
    row_products<D, TILE>(p, q_tile, k_tiles + now);
    if (next > at.n_keys) {
#pragma unroll
      for (int j = 0; j < TILE / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (t * TILE + 8 * j + lane() % 4 * 2 + e % 2 >= at.n_keys) p[j][e] = -INFINITY;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = -INFINITY;
#pragma unroll
      for (int j = 0; j < TILE / 8; ++j) top = fmaxf(top, fmaxf(p[j][2 * h], p[j][2 * h + 1]));
      top = fmaxf(m[h], quad_max(top) * scale_2);
      const float alpha = exp2f(m[h] - top);
      m[h] = top;
      l[h] *= alpha;
#pragma unroll
      for (int d = 0; d < D / 8; ++d) o[d][2 * h] *= alpha, o[d][2 * h + 1] *= alpha;
#pragma unroll
      for (int j = 0; j < TILE / 8; ++j) {
        p[j][2 * h] = exp2f(fmaf(p[j][2 * h], scale_2, -top));
        p[j][2 * h + 1] = exp2f(fmaf(p[j][2 * h + 1], scale_2, -top));
        l[h] += p[j][2 * h] + p[j][2 * h + 1];
      }
    }
    if (threshold) {
#pragma unroll
      for (int j = 0; j < TILE / 8; ++j) {
        const Philox words = words_of_query_rows(drop, t * TILE + 8 * j, at.head, columns, example);
#pragma unroll
        for (int e = 0; e < 4; ++e) p[j][e] *= drop.factor(words.word[e]);
      }
    }
    add_weighted_rows<D, TILE>(o, p, v_tiles + now);
    __syncthreads();
  }
  const int64_t stride = int64_t(n_heads) * D;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = quad_sum(l[h]);
    const int row = first_row_of_warp() + lane() / 4 + 8 * h;
#pragma unroll
    for (int d = 0; d < D / 8; ++d) o[d][2 * h] *= 1 / sum, o[d][2 * h + 1] *= 1 / sum;
    if (lse && lane() % 4 == 0 && row < at.n_rows)
      lse[(at.first + row) * int64_t(n_heads) + at.head] = m[h] * LN_2 + logf(sum);
  }
  store_rows<D>(out + at.first * stride + column, stride, at.n_rows, o, q_tile);
}

// Backward: attention.cu has the formulas. Here delta is the paper's, rowsum(dO O): O is rounded to T, and what is left of
// the key bias's gradient, which is 0, is of the size of that rounding.
//
// lse, delta : [n_queries, n_heads]; the first kernel writes delta, the second reads it
// out, d_out : [n_queries, n_heads * D]

template <int D, typename T>
__device__ __forceinline__ float half_row_dot(const T* x, const T* y) {
  // Two neighbouring lanes have a row, half of it each; both get the whole.
  float sum = 0;
#pragma unroll
  for (int i = 0; i < D / 2; i += 8) {
    float a[8], b[8];
    read(x + lane() % 2 * (D / 2) + i, 8, true, a);
    read(y + lane() % 2 * (D / 2) + i, 8, true, b);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum = fmaf(a[j], b[j], sum);
  }
  return sum + __shfl_xor_sync(ALL, sum, 1);
}

template <typename T, int D>
__global__ void __launch_bounds__(THREADS) attention_backward_queries(
    ATTENTION_ARGUMENTS, const float* lse, const T* out, const T* d_out, float* delta, T* d_q, int64_t d_q_stride) {
  constexpr int KEYS = OTHERS<D>;
  const PairDropout drop = PAIR_DROPOUT;
  DYNAMIC_SHARED(T, q_tile);
  T *d_out_tile = q_tile + TILE * D, *k_tiles = d_out_tile + TILE * D, *v_tiles = k_tiles + 2 * KEYS * D;
  const Place at = place_of(tiles, n_heads, query_starts, query_starts, key_starts);
  const int column = at.head * D, n_tiles = (at.n_keys + KEYS - 1) / KEYS;
  const int64_t stride = int64_t(n_heads) * D;
  const T *keys = k + at.key_begin * k_stride + column, *values = v + at.key_begin * v_stride + column;
  load_tile<D, TILE>(q_tile, q + at.first * q_stride + column, q_stride, at.n_rows);
  load_tile<D, TILE>(d_out_tile, d_out + at.first * stride + column, stride, at.n_rows);
  load_tile<D, KEYS>(k_tiles, keys, k_stride, at.n_keys);
  load_tile<D, KEYS>(v_tiles, values, v_stride, at.n_keys);
  cp_async_commit();
  // Two lanes made a row's delta; lane 4 g + c wants those of rows g and g + 8.
  const int row_of_pair = at.first + min(first_row_of_warp() + lane() / 2, at.n_rows - 1);
  const float delta_of_pair = half_row_dot<D>(out + row_of_pair * stride + column, d_out + row_of_pair * stride + column);
  if (lane() % 2 == 0 && first_row_of_warp() + lane() / 2 < at.n_rows) delta[row_of_pair * int64_t(n_heads) + at.head] = delta_of_pair;
  float row_delta[2], row_lse[2];
  for (int h = 0; h < 2; ++h) {
    const int row = first_row_of_warp() + lane() / 4 + 8 * h;
    row_delta[h] = __shfl_sync(ALL, delta_of_pair, 2 * (lane() / 4 + 8 * h));
    row_lse[h] = row < at.n_rows ? lse[(at.first + row) * int64_t(n_heads) + at.head] * LOG2_E : INFINITY;
  }
  const float scale_2 = scale * LOG2_E;  // exponentials are powers of 2
  const uint32_t example = threshold ? examples[at.sequence] : 0;
  uint32_t columns[2];
  columns_of_lane(columns, drop, at);
  float dq[D / 8][4] = {};
  for (int t = 0; t < n_tiles; ++t) {
    const int next = (t + 1) * KEYS, now = t % 2 * KEYS * D, other = KEYS * D - now;
    if (t + 1 < n_tiles) {
      load_tile<D, KEYS>(k_tiles + other, keys + next * k_stride, k_stride, at.n_keys - next);
      load_tile<D, KEYS>(v_tiles + other, values + next * v_stride, v_stride, at.n_keys - next);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    float p[KEYS / 8][4], d_p[KEYS / 8][4];
    row_products<D, KEYS>(p, q_tile, k_tiles + now);
    row_products<D, KEYS>(d_p, d_out_tile, v_tiles + now);
#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j) {
      float keep[4] = {1, 1, 1, 1};
      if (threshold) {
        const Philox words = words_of_query_rows(drop, t * KEYS + 8 * j, at.head, columns, example);
#pragma unroll
        for (int e = 0; e < 4; ++e) keep[e] = drop.factor(words.word[e]);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool is_key = t * KEYS + 8 * j + lane() % 4 * 2 + e % 2 < at.n_keys;
        const float probability = is_key ? exp2f(fmaf(p[j][e], scale_2, -row_lse[e / 2])) : 0;
        p[j][e] = probability * (d_p[j][e] * keep[e] - row_delta[e / 2]);
      }
    }
    add_weighted_rows<D, KEYS>(dq, p, k_tiles + now);
    __syncthreads();
  }
#pragma unroll
  for (int d = 0; d < D / 8; ++d)
#pragma unroll
    for (int e = 0; e < 4; ++e) dq[d][e] *= scale;
  store_rows<D>(d_q + at.first * d_q_stride + column, d_q_stride, at.n_rows, dq, q_tile);
}

template <typename T, int D>
__global__ void __launch_bounds__(THREADS) attention_backward_keys(
    ATTENTION_ARGUMENTS, const float* lse, const T* d_out, const float* delta, T* d_k, int64_t d_k_stride, T* d_v, int64_t d_v_stride) {
  // Everything turned: a warp's rows are keys, and P and dP stand on their sides.
  constexpr int QUERIES = OTHERS<D>;
  const PairDropout drop = PAIR_DROPOUT;
  DYNAMIC_SHARED(T, k_tile);
  T *v_tile = k_tile + TILE * D, *q_tiles = v_tile + TILE * D, *d_out_tiles = q_tiles + 2 * QUERIES * D;
  struct Numbers {
    float lse[QUERIES], delta[QUERIES];
    int columns[QUERIES];
  };
  Numbers* numbers = reinterpret_cast<Numbers*>(d_out_tiles + 2 * QUERIES * D);  // of the two tiles of queries
  const Place at = place_of(tiles, n_heads, key_starts, query_starts, key_starts);
  const int column = at.head * D, n_tiles = (at.n_queries + QUERIES - 1) / QUERIES;
  const int64_t stride = int64_t(n_heads) * D;
  const T *queries = q + at.query_begin * q_stride + column, *d_outs = d_out + at.query_begin * stride + column;
  const auto load_queries = [&](int t) {
    const int first = t * QUERIES, to = t % 2;
    load_tile<D, QUERIES>(q_tiles + to * QUERIES * D, queries + first * q_stride, q_stride, at.n_queries - first);
    load_tile<D, QUERIES>(d_out_tiles + to * QUERIES * D, d_outs + first * stride, stride, at.n_queries - first);
    for (int i = threadIdx.x; i < QUERIES; i += THREADS) {
      const bool is_there = first + i < at.n_queries;
      const int64_t row = (at.query_begin + first + i) * int64_t(n_heads) + at.head;
      numbers[to].lse[i] = is_there ? lse[row] * LOG2_E : INFINITY;  // P is 0 beyond the last query
      numbers[to].delta[i] = is_there ? delta[row] : 0;
      numbers[to].columns[i] = is_there && threshold ? query_columns[at.query_begin + first + i] : 0;
    }
  };
  load_tile<D, TILE>(k_tile, k + at.first * k_stride + column, k_stride, at.n_rows);
  load_tile<D, TILE>(v_tile, v + at.first * v_stride + column, v_stride, at.n_rows);
  if (n_tiles) load_queries(0);
  cp_async_commit();
  const float scale_2 = scale * LOG2_E;  // exponentials are powers of 2
  const uint32_t example = threshold ? examples[at.sequence] : 0;
  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  for (int t = 0; t < n_tiles; ++t) {
    const int now = t % 2;
    if (t + 1 < n_tiles) load_queries(t + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    float p[QUERIES / 8][4], d_p[QUERIES / 8][4];
    row_products<D, QUERIES>(p, k_tile, q_tiles + now * QUERIES * D);
    row_products<D, QUERIES>(d_p, v_tile, d_out_tiles + now * QUERIES * D);
#pragma unroll
    for (int j = 0; j < QUERIES / 8; ++j) {
      float keep[4] = {1, 1, 1, 1};
      if (threshold) {
        const int first_key = at.first - at.key_begin + first_row_of_warp();
        const Philox words = words_of_key_rows(drop, first_key, at.head, numbers[now].columns + 8 * j, example);
#pragma unroll
        for (int e = 0; e < 4; ++e) keep[e] = drop.factor(words.word[e]);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int query = 8 * j + lane() % 4 * 2 + e % 2;
        const float probability = exp2f(fmaf(p[j][e], scale_2, -numbers[now].lse[query]));
        p[j][e] = probability * keep[e];
        d_p[j][e] = probability * (d_p[j][e] * keep[e] - numbers[now].delta[query]);
      }
    }
    add_weighted_rows<D, QUERIES>(dv, p, d_out_tiles + now * QUERIES * D);
    add_weighted_rows<D, QUERIES>(dk, d_p, q_tiles + now * QUERIES * D);
    __syncthreads();
  }
#pragma unroll
  for (int d = 0; d < D / 8; ++d)
#pragma unroll
    for (int e = 0; e < 4; ++e) dk[d][e] *= scale;
  cp_async_wait<0>();  // without queries, nobody has waited for k and v
  __syncthreads();
  store_rows<D>(d_k + at.first * d_k_stride + column, d_k_stride, at.n_rows, dk, k_tile);
  store_rows<D>(d_v + at.first * d_v_stride + column, d_v_stride, at.n_rows, dv, v_tile);
}
