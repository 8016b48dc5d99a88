# The corruption of masked language modelling (Devlin et al. 2019, section 3.1): a token is chosen with
# probability p; of the chosen, 80 % become [MASK], 10 % a random word, 10 % stay. The three numbers of
# a token are words 0, 1 and 2 of its own Philox block, so its fate depends on nothing else.


def mlm_mask_forward(
    const int64_t[::1] ids, const uint8_t[::1] may_mask, const int32_t[::1] columns, const int32_t[::1] examples,
    const int32_t[::1] special_ids, int64_t vocab_size, int64_t mask_token_id, uint64_t key, uint32_t stream,
    double p_choose, double p_mask, double p_random, int64_t ignore_index, int64_t[::1] masked_ids,
    int64_t[::1] labels, int n_threads,
):
    """Fill masked_ids and labels (n,) from ids (n,); a token with may_mask 0 is never chosen.

    Random words are uniform over the vocabulary without `special_ids` (sorted, distinct, in range;
    fewer than vocab_size).
    """
    cdef Py_ssize_t n = ids.shape[0], i
    cdef Py_ssize_t n_special = special_ids.shape[0]
    if n == 0:
        return
    cdef const int64_t *pi = &ids[0]
    cdef const uint8_t *pm = &may_mask[0]
    cdef const int32_t *pc = &columns[0]
    cdef const int32_t *pe = &examples[0]
    cdef const int32_t *ps = &special_ids[0] if n_special else NULL
    cdef int64_t *po = &masked_ids[0]
    cdef int64_t *pl = &labels[0]
    cdef uint64_t choose_below = <uint64_t> (p_choose * 4294967296.0)
    cdef uint64_t mask_below = <uint64_t> (p_mask * 4294967296.0)
    cdef uint64_t random_below = <uint64_t> ((p_mask + p_random) * 4294967296.0)
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        po[i] = pi[i]
        pl[i] = ignore_index
        if pm[i]:
            mask_token(pi[i], po + i, pl + i, pc[i], pe[i], stream, key, choose_below, mask_below, random_below,
                       mask_token_id, vocab_size, ps, n_special)


cdef inline void mask_token(
    int64_t word, int64_t *out, int64_t *label, uint32_t column, uint32_t example, uint32_t stream, uint64_t key,
    uint64_t choose_below, uint64_t mask_below, uint64_t random_below, int64_t mask_token_id, int64_t vocab_size,
    const int32_t *special_ids, Py_ssize_t n_special,
) noexcept nogil:
    cdef uint32_t[4] words
    cdef int64_t drawn
    cdef Py_ssize_t i
    philox(0, column, example, stream, key, words)
    if words[0] >= choose_below:
        return
    label[0] = word
    if words[1] < mask_below:
        out[0] = mask_token_id
    elif words[1] < random_below:
        drawn = <int64_t> ((<uint64_t> words[2] * <uint64_t> (vocab_size - n_special)) >> 32)
        for i in range(n_special):  # step over the special ids below it
            if drawn >= special_ids[i]:
                drawn += 1
        out[0] = drawn
