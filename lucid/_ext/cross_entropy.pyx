# Softmax cross-entropy: loss = log(sum_j exp(x_j)) - x_label. A row is taken in blocks of VOCABULARY_BLOCK
# columns; a block leaves its maximum and its sum of exponentials, joined in block order in float64.
# The decoder (decoder.pyx) makes its blocks of logits one at a time and joins them here too, so that both
# give the same bits.

cdef enum:
    VOCABULARY_BLOCK = 384  # columns; a multiple of every PANEL. 64 rows of logits: 98 KB

# What a block of logits leaves of one row.
cdef struct BlockSum:
    float top     # the largest logit
    float total   # sum of exp(logit - top)


vocabulary_block = VOCABULARY_BLOCK


cdef inline void sum_block(const float *x, Py_ssize_t n, BlockSum *out) noexcept nogil:
    """A word may be excluded by a logit of -inf; where all of a block are, the total is 0, or NaN if one is NaN."""
    out.top = reduce_row(MAX, x, NULL, n, 1, 0)
    out.total = reduce_row(EXP_SUM, x, NULL, n, 1, -out.top if out.top > -INFINITY else 0)


cdef inline double join_blocks(const BlockSum *blocks, Py_ssize_t n_blocks) noexcept nogil:
    """log(sum exp) of a row from its blocks."""
    cdef double top = -INFINITY, total = 0
    cdef Py_ssize_t i
    for i in range(n_blocks):
        top = max(top, <double> blocks[i].top)
    for i in range(n_blocks):
        total += blocks[i].total * (exp1(<float> (blocks[i].top - top)) if blocks[i].top > -INFINITY else 1)
    return top + log1(total) if top > -INFINITY else top + total


def cross_entropy_forward(
    const float[:, ::1] logits, const int32_t[::1] labels, float[::1] losses, float[::1] lse, int n_threads,
):
    """losses[p] = lse[p] - logits[p, labels[p]], lse[p] = log(sum_j exp(logits[p, j])).

    A label below 0 leaves a loss of 0.
    """
    cdef Py_ssize_t n_rows = logits.shape[0], n = logits.shape[1], n_blocks, p
    cdef BlockSum *sums
    if n_rows == 0 or n == 0:
        return
    cdef const float *px = &logits[0, 0]
    cdef const int32_t *label = &labels[0]
    cdef float *loss = &losses[0]
    cdef float *log_sum = &lse[0]
    n_blocks = (n + VOCABULARY_BLOCK - 1) // VOCABULARY_BLOCK
    sums = <BlockSum *> malloc(n_rows * n_blocks * sizeof(BlockSum))
    if sums is NULL:
        raise MemoryError("cross_entropy: no memory for the sums of blocks")
    for p in prange(n_rows, nogil=True, schedule="static", num_threads=n_threads):
        cross_entropy_row(px + p * n, n, label[p], sums + p * n_blocks, n_blocks, loss + p, log_sum + p)
    free(sums)


cdef void cross_entropy_row(
    const float *x, Py_ssize_t n, int32_t label, BlockSum *sums, Py_ssize_t n_blocks, float *loss, float *lse,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef double log_sum
    for i in range(n_blocks):
        sum_block(x + i * VOCABULARY_BLOCK, min(VOCABULARY_BLOCK, n - i * VOCABULARY_BLOCK), sums + i)
    log_sum = join_blocks(sums, n_blocks)
    lse[0] = <float> log_sum
    loss[0] = <float> (log_sum - x[label]) if label >= 0 else 0


def logit_sums(
    const float[:, ::1] logits, const int32_t[::1] labels, Py_ssize_t first_word, float[:, :, ::1] sums, float[::1] label_logits,
    int n_threads,
):
    """What the words from `first_word` on, a multiple of `vocabulary_block`, leave of each row for `join_sums`.

    sums : (P, n_blocks, 2), the blocks of all words: largest logit, sum of exponentials
    label_logits : (P,); written where the label is one of these words
    """
    cdef Py_ssize_t n_rows = logits.shape[0], n = logits.shape[1], n_blocks = sums.shape[1], p
    if first_word % VOCABULARY_BLOCK != 0:
        raise ValueError(f"logit_sums: first_word must be a multiple of {VOCABULARY_BLOCK}, not {first_word}")
    if n_rows == 0 or n == 0:
        return
    cdef const float *px = &logits[0, 0]
    cdef const int32_t *label = &labels[0]
    cdef BlockSum *ps = <BlockSum *> &sums[0, 0, 0] + first_word // VOCABULARY_BLOCK
    cdef float *po = &label_logits[0]
    for p in prange(n_rows, nogil=True, schedule="static", num_threads=n_threads):
        row_sums(px + p * n, n, label[p] - first_word, ps + p * n_blocks, po + p)


cdef inline void row_sums(const float *x, Py_ssize_t n, Py_ssize_t label, BlockSum *sums, float *label_logit) noexcept nogil:
    cdef Py_ssize_t i
    for i in range((n + VOCABULARY_BLOCK - 1) // VOCABULARY_BLOCK):
        sum_block(x + i * VOCABULARY_BLOCK, min(VOCABULARY_BLOCK, n - i * VOCABULARY_BLOCK), sums + i)
    if 0 <= label < n:
        label_logit[0] = x[label]


def join_sums(const float[:, :, ::1] sums, float[::1] losses, float[::1] lse):
    """lse[p] from the sums of all blocks; losses[p], which holds the label's logit, becomes lse[p] minus it."""
    cdef Py_ssize_t p
    cdef double log_sum
    for p in range(sums.shape[0]):
        log_sum = join_blocks(<const BlockSum *> &sums[p, 0, 0], sums.shape[1])
        lse[p] = <float> log_sum
        losses[p] = <float> (log_sum - losses[p])


def cross_entropy_backward(
    const float[:, ::1] logits, const int32_t[::1] labels, const float[::1] lse, const float[::1] d_losses,
    Py_ssize_t first_word, float[:, ::1] d_logits, int n_threads,
):
    """d_logits[p, j] = (exp(logits[p, j] - lse[p]) - [labels[p] == first_word + j]) * d_losses[p].

    The columns are the words from `first_word` on, so that a vocabulary can come in blocks. A label
    below 0 gives zeros. d_logits may be logits.
    """
    cdef Py_ssize_t n_rows = logits.shape[0], n = logits.shape[1], p
    if n_rows == 0 or n == 0:
        return
    cdef const float *px = &logits[0, 0]
    cdef const int32_t *label = &labels[0]
    cdef const float *log_sum = &lse[0]
    cdef const float *d_loss = &d_losses[0]
    cdef float *po = &d_logits[0, 0]
    for p in prange(n_rows, nogil=True, schedule="static", num_threads=n_threads):
        softmax_gradient_row(px + p * n, n, label[p] - first_word, label[p] >= 0, log_sum[p], d_loss[p], po + p * n)


cdef inline void softmax_gradient_row(
    const float *x, Py_ssize_t n, Py_ssize_t label, bint counts, float lse, float d_loss, float *d_x,
) noexcept nogil:
    cdef Py_ssize_t i
    if not counts:
        memset(d_x, 0, n * sizeof(float))
        return
    reduce_row(EXP_SUM, x, d_x, n, 1, -lse)
    if 0 <= label < n:
        d_x[label] -= 1
    for i in range(n):
        d_x[i] *= d_loss
