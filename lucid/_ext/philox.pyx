# Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): ten rounds turn a
# 128-bit counter under a 64-bit key into four 32-bit words. There is no state: a value is named by
#   key = the seed;  counter = (element // 4, token position, example, purpose 8 bits | layer 8 | epoch 16)
# and word `element % 4` of the block is its number.

cdef enum:
    PHILOX_ROUNDS = 10


cdef inline void philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key, uint32_t *out) noexcept nogil:
    cdef uint32_t k0 = <uint32_t> key, k1 = <uint32_t> (key >> 32)
    cdef uint64_t p0, p1
    cdef int _round
    for _round in range(PHILOX_ROUNDS):
        p0 = <uint64_t> 0xD2511F53 * c0
        p1 = <uint64_t> 0xCD9E8D57 * c2
        c0 = <uint32_t> (p1 >> 32) ^ c1 ^ k0
        c1 = <uint32_t> p1
        c2 = <uint32_t> (p0 >> 32) ^ c3 ^ k1
        c3 = <uint32_t> p0
        k0 = k0 + <uint32_t> 0x9E3779B9
        k1 = k1 + <uint32_t> 0xBB67AE85
    out[0] = c0
    out[1] = c1
    out[2] = c2
    out[3] = c3


cdef inline void drop_row(
    const float *x, float *y, Py_ssize_t n, Py_ssize_t first_element, const int32_t *columns, uint32_t position,
    uint32_t example, uint32_t stream, uint64_t key, uint64_t threshold, float scale,
) noexcept nogil:
    """y[n] = x[n] * scale, or 0 with probability threshold / 2^32 (inverted dropout).

    The element of x[i] is first_element + columns[i], or first_element + i without columns.
    """
    cdef uint32_t[4] words
    cdef uint64_t element, block, held = <uint64_t> -1
    cdef Py_ssize_t i
    for i in range(n):
        element = first_element + (columns[i] if columns is not NULL else i)
        block = element // 4
        if block != held:
            philox(<uint32_t> block, position, example, stream, key, words)
            held = block
        y[i] = 0 if words[element % 4] < threshold else x[i] * scale


def philox_block(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key):
    """The four words of one counter, as a tuple."""
    cdef uint32_t[4] words
    philox(c0, c1, c2, c3, key, words)
    return words[0], words[1], words[2], words[3]


def dropout_forward(
    const float[:, ::1] x, float[:, ::1] y, const int32_t[::1] columns, const int32_t[::1] examples,
    uint64_t key, uint32_t stream, double p_drop, int n_threads,
):
    """y = x / (1 - p_drop), or 0 with probability p_drop (Srivastava et al. 2014); y may be x.

    Row t belongs to token columns[t] of example examples[t]; `stream` is purpose | layer | epoch.
    """
    cdef Py_ssize_t n_rows = x.shape[0], n = x.shape[1], t
    if n_rows == 0 or n == 0:
        return
    cdef const float *px = &x[0, 0]
    cdef float *py = &y[0, 0]
    cdef const int32_t *pc = &columns[0]
    cdef const int32_t *pe = &examples[0]
    cdef uint64_t threshold = <uint64_t> (p_drop * 4294967296.0)
    cdef float scale = <float> (1.0 / (1.0 - p_drop))
    for t in prange(n_rows, nogil=True, schedule="static", num_threads=n_threads):
        drop_row(px + t * n, py + t * n, n, 0, NULL, pc[t], pe[t], stream, key, threshold, scale)
