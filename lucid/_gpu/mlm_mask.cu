// The corruption of masked language modelling (Devlin et al. 2019, section 3.1), as lucid/_ext/mlm_mask.pyx does it: the three
// numbers of a token are words 0, 1 and 2 of its own Philox block.
// KERNEL mlm_mask_forward
#include "philox.cuh"

__global__ void mlm_mask_forward(const int64_t* ids, const uint8_t* may_mask, const int* columns, const int* examples,
                                 const int* special_ids, int n_special, int64_t vocab_size, int64_t mask_token_id, uint64_t key,
                                 uint32_t stream, uint64_t choose_below, uint64_t mask_below, uint64_t random_below,
                                 int64_t ignore_index, int64_t* masked_ids, int64_t* labels, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int64_t word = ids[i], label = ignore_index;
  const Philox random = philox(0, columns[i], examples[i], stream, key);
  if (may_mask[i] && random.word[0] < choose_below) {
    label = word;
    if (random.word[1] < mask_below) {
      word = mask_token_id;
    } else if (random.word[1] < random_below) {
      word = static_cast<int64_t>(random.word[2] * static_cast<uint64_t>(vocab_size - n_special) >> 32);
      for (int s = 0; s < n_special; ++s)  // step over the special ids below it
        if (word >= special_ids[s]) ++word;
    }
  }
  masked_ids[i] = word;
  labels[i] = label;
}
