# The input of BERT (Devlin et al. 2019, figure 2): word + position + segment vectors, then LayerNorm.
# The word table is read row-major, or from the panels that the tied decoder multiplies with, so that
# inference holds it once.


def embedding_forward(
    const float[::1] words, bint is_packed, const int32_t[::1] ids,
    const float[:, ::1] positions, const int32_t[::1] position_ids,
    const float[:, ::1] types, const int32_t[::1] type_ids,
    const float[::1] gain, const float[::1] bias, float eps, float[:, ::1] y, float[:, ::1] total, float[::1] mean,
    float[::1] rstd, int n_threads,
):
    """y[t] = LayerNorm(words[ids[t]] + positions[position_ids[t]] + types[type_ids[t]]).

    `words` is a flat view: V * C floats, or the panels of `pack_rows` if `is_packed`. Backward reads
    `total`, the sums before the normalisation, and `mean` and `rstd` of every row; they may be None.
    """
    cdef Py_ssize_t n_rows = y.shape[0], n = y.shape[1], t
    if n_rows == 0 or n == 0:
        return
    cdef const float *pw = &words[0]
    cdef const float *pp = &positions[0, 0]
    cdef const float *pt = &types[0, 0]
    cdef const int32_t *i_word = &ids[0]
    cdef const int32_t *i_position = &position_ids[0]
    cdef const int32_t *i_type = &type_ids[0]
    cdef const float *pg = &gain[0]
    cdef const float *pb = &bias[0]
    cdef float *py = &y[0, 0]
    cdef float *ps = &total[0, 0] if total is not None else py
    cdef float *pm = &mean[0] if mean is not None else NULL
    cdef float *pd = &rstd[0] if rstd is not None else NULL
    cdef float *row
    for t in prange(n_rows, nogil=True, schedule="static", num_threads=n_threads):
        row = ps + t * n
        if is_packed:
            unpack_row(pw, n, i_word[t], row)
            add_row(row, pt + i_type[t] * n, row, n)
        else:
            add_row(pw + i_word[t] * n, pt + i_type[t] * n, row, n)
        add_row(row, pp + i_position[t] * n, row, n)
        normalise_row(row, py + t * n, n, pg, pb, eps, pm + t if pm is not NULL else NULL, pd + t if pm is not NULL else NULL)


def sum_segments(const float[:, ::1] d_rows, const int32_t[::1] order, const int32_t[::1] starts, float[:, ::1] out, int n_threads):
    """out[s] = sum of d_rows[order[i]] for i from starts[s] to starts[s + 1], in that order.

    The gradient of a table: `order` sorts the tokens by id, so that each table row has one writer.
    """
    cdef Py_ssize_t n_segments = out.shape[0], n = out.shape[1], s
    if n_segments == 0 or n == 0:
        return
    cdef const float *pd = &d_rows[0, 0]
    cdef const int32_t *po = &order[0]
    cdef const int32_t *ps = &starts[0]
    cdef float *py = &out[0, 0]
    for s in prange(n_segments, nogil=True, schedule="static", num_threads=n_threads):
        sum_rows(pd, po + ps[s], ps[s + 1] - ps[s], n, py + s * n)


cdef inline void sum_rows(const float *rows, const int32_t *index, Py_ssize_t n_rows, Py_ssize_t n, float *out) noexcept nogil:
    cdef Py_ssize_t i
    memset(out, 0, n * sizeof(float))
    for i in range(n_rows):
        add_row(out, rows + index[i] * n, out, n)
