// Dropout of attention probabilities. The element of a pair is head * 65536 + the key's column, its position the query's
// column, its example the sequence's.
#pragma once
#include "philox.cuh"

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
