# The product with the vocabulary, fused with what is asked of it: cross-entropy or the k best words.
# A task is one block of VOCABULARY_BLOCK words for all rows, 64 rows at a time: the block's weights
# (1.2 MB at width 768) stay in cache, and the logits [P, V] never exist.

cdef struct DecoderCall:
    const float *x
    Py_ssize_t x_stride
    Py_ssize_t n_rows
    const float *panels
    Py_ssize_t width
    Py_ssize_t n_words
    Py_ssize_t n_blocks
    const float *bias
    BlockSum *sums             # [n_rows, n_blocks]
    const int32_t *labels      # [n_rows] or NULL
    float *label_logits        # [n_rows] or NULL
    Py_ssize_t k               # candidates kept of every block, 0 for none
    float *best                # [n_rows, n_blocks, k]
    int32_t *best_ids


cdef inline void keep_best(float value, int32_t word, float *best, int32_t *best_ids, Py_ssize_t k) noexcept nogil:
    """Insert into a list sorted by falling value; the earlier word stays first among equals."""
    cdef Py_ssize_t i = k - 1
    if not value > best[i] and best_ids[i] >= 0:
        return
    while i > 0 and (best_ids[i - 1] < 0 or value > best[i - 1]):
        best[i] = best[i - 1]
        best_ids[i] = best_ids[i - 1]
        i -= 1
    best[i] = value
    best_ids[i] = word


cdef void decode_block(const DecoderCall *call, Py_ssize_t block, float *logits) noexcept nogil:
    cdef Py_ssize_t word = block * VOCABULARY_BLOCK, n = min(VOCABULARY_BLOCK, call.n_words - word)
    cdef Py_ssize_t p0, n_rows, p, i, j, n_chunk, slot
    cdef Epilogue epilogue
    cdef float *row
    # The next block's first panel: mostly this thread's, too, and wanted when the last rows are done.
    cdef const float *next_block = call.panels + (word + n) * call.width if block + 1 < call.n_blocks else NULL
    epilogue.bias = call.bias + word if call.bias is not NULL else NULL
    epilogue.residual = NULL
    epilogue.residual_stride = 0
    epilogue.activation = NONE
    for n_chunk in range((call.n_rows + M_BLOCK - 1) // M_BLOCK):
        p0 = n_chunk * M_BLOCK
        n_rows = min(M_BLOCK, call.n_rows - p0)
        product(call.x + p0 * call.x_stride, call.x_stride, False, call.panels, call.width, logits, VOCABULARY_BLOCK,
                0, n_rows, word, word // PANEL, (word + n + PANEL - 1) // PANEL, n, False, &epilogue, NULL, next_block if p0 + n_rows == call.n_rows else NULL)
        for i in range(n_rows):
            p = p0 + i
            row = logits + i * VOCABULARY_BLOCK
            slot = p * call.n_blocks + block
            if call.labels is not NULL and word <= call.labels[p] < word + n:
                call.label_logits[p] = row[call.labels[p] - word]
            if call.k:
                for j in range(call.k):
                    call.best_ids[slot * call.k + j] = -1
                for j in range(n):
                    keep_best(row[j], <int32_t> (word + j), call.best + slot * call.k, call.best_ids + slot * call.k, call.k)
            sum_block(row, n, call.sums + slot)


cdef int run_decoder(DecoderCall *call, int n_threads) except -1 nogil:
    cdef Py_ssize_t block
    cdef float *logits = <float *> malloc(<size_t> n_threads * M_BLOCK * VOCABULARY_BLOCK * sizeof(float))
    if logits is NULL:
        with gil:
            raise MemoryError("decoder: no memory for a block of logits")
    for block in prange(call.n_blocks, schedule="static", num_threads=n_threads):
        decode_block(call, block, logits + threadid() * M_BLOCK * VOCABULARY_BLOCK)
    free(logits)
    return 0


cdef int open_call(
    DecoderCall *call, const float[:, ::1] x, const float[:, :, ::1] panels, const float[::1] bias, Py_ssize_t n_words,
) except -1:
    call.x = &x[0, 0]
    call.x_stride = x.shape[1]
    call.n_rows = x.shape[0]
    call.panels = &panels[0, 0, 0]
    call.width = panels.shape[1]
    call.n_words = n_words
    call.n_blocks = (n_words + VOCABULARY_BLOCK - 1) // VOCABULARY_BLOCK
    call.bias = &bias[0] if bias is not None else NULL
    call.labels = NULL
    call.label_logits = NULL
    call.k = 0
    call.best = NULL
    call.best_ids = NULL
    call.sums = <BlockSum *> malloc(call.n_rows * call.n_blocks * sizeof(BlockSum))
    if call.sums is NULL:
        raise MemoryError("decoder: no memory for the sums of blocks")
    return 0


def decoder_cross_entropy_forward(
    const float[:, ::1] x, const float[:, :, ::1] panels, const float[::1] bias, const int32_t[::1] labels,
    Py_ssize_t n_words, float[::1] losses, float[::1] lse, int n_threads,
):
    """Cross-entropy of the logits x . Wᵀ + bias against `labels` (P,), every one in [0, n_words)."""
    cdef DecoderCall call
    cdef Py_ssize_t p
    cdef double log_sum
    if x.shape[0] == 0:
        return
    open_call(&call, x, panels, bias, n_words)
    call.labels = &labels[0]
    call.label_logits = &losses[0]
    try:
        with nogil:
            run_decoder(&call, n_threads)
            for p in range(call.n_rows):
                log_sum = join_blocks(call.sums + p * call.n_blocks, call.n_blocks)
                lse[p] = <float> log_sum
                losses[p] = <float> (log_sum - losses[p])
    finally:
        free(call.sums)


def decoder_top_k_forward(
    const float[:, ::1] x, const float[:, :, ::1] panels, const float[::1] bias, Py_ssize_t n_words,
    float[:, ::1] values, int32_t[:, ::1] ids, float[::1] lse, int n_threads,
):
    """The k largest logits of every row, their words and log(sum exp); equal logits by rising word."""
    cdef DecoderCall call
    cdef Py_ssize_t p, i, k = values.shape[1], slot
    if x.shape[0] == 0 or k == 0:
        return
    open_call(&call, x, panels, bias, n_words)
    call.k = min(k, VOCABULARY_BLOCK)
    call.best = <float *> malloc(call.n_rows * call.n_blocks * call.k * sizeof(float))
    call.best_ids = <int32_t *> malloc(call.n_rows * call.n_blocks * call.k * sizeof(int32_t))
    try:
        if call.best is NULL or call.best_ids is NULL:
            raise MemoryError("decoder: no memory for the candidates of every block")
        with nogil:
            run_decoder(&call, n_threads)
            for p in range(call.n_rows):
                for i in range(k):
                    ids[p, i] = -1
                slot = p * call.n_blocks * call.k
                for i in range(call.n_blocks * call.k):
                    if call.best_ids[slot + i] >= 0:
                        keep_best(call.best[slot + i], call.best_ids[slot + i], &values[p, 0], &ids[p, 0], k)
                lse[p] = <float> join_blocks(call.sums + p * call.n_blocks, call.n_blocks)
    finally:
        free(call.sums)
        free(call.best)
        free(call.best_ids)
