// What both forms of attention share: where a block works, and the dropout of probabilities.
#pragma once
#include "philox.cuh"

constexpr int TILE = 64;  // rows of a block

// A tile of queries or keys of one head, and the sequence that it is of.
struct Place {
  int head, sequence;
  int first, n_rows;  // the block's own rows, by their number in the batch
  int query_begin, n_queries, key_begin, n_keys;
};

// `tiles` [n, 2] names a sequence and the first row of a tile; `own_starts` are those of the rows that are tiled.
__device__ __forceinline__ Place place_of(
    const int* tiles, int n_heads, const int* own_starts, const int* query_starts, const int* key_starts) {
  const int* tile = tiles + 2 * (blockIdx.x / n_heads);
  const int sequence = tile[0];
  return {int(blockIdx.x % n_heads),
          sequence,
          tile[1],
          min(TILE, own_starts[sequence + 1] - tile[1]),
          query_starts[sequence],
          query_starts[sequence + 1] - query_starts[sequence],
          key_starts[sequence],
          key_starts[sequence + 1] - key_starts[sequence]};
}

// The element of a pair is head * 65536 + the key's column, its position the query's column, its example the sequence's.
struct PairDropout {
  const int *query_columns, *key_columns, *examples;  // without key_columns, keys are counted from their sequence's start
  uint64_t key;
  uint32_t stream;
  uint32_t threshold;  // a pair is dropped with probability threshold / 2^32; 0 is no dropout
  float scale;         // of what stays

  __device__ __forceinline__ float factor(uint32_t word) const { return word < threshold ? 0.0f : scale; }

  // The factors of four keys from `first` on, of which n are there, for one query.
  __device__ __forceinline__ void keep(float (&to)[4], int query, int first, int n, int key_begin, int head, int sequence) const {
    Philox block;
    uint64_t held = ~uint64_t(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      to[j] = 1;
      if (j >= n) continue;
      const uint64_t element = (static_cast<int64_t>(head) << 16) + (key_columns ? key_columns[first + j] : first + j - key_begin);
      if (element / 4 != held) {
        block = philox(static_cast<uint32_t>(element / 4), query_columns[query], examples[sequence], stream, key);
        held = element / 4;
      }
      // Not word[element % 4]: an index that is unknown to the compiler moves the words to memory.
      const uint32_t low = element & 1 ? block.word[1] : block.word[0], high = element & 1 ? block.word[3] : block.word[2];
      to[j] = factor(element & 2 ? high : low);
    }
  }
};
