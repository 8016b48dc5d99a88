# The input of BERT (Devlin et al. 2019, figure 2): word + position + segment vectors, then LayerNorm.
# The word table is read row-major, or from the panels that the tied decoder multiplies with, so that
# inference holds it once.


def embedding_forward(
    const float[::1] words, bint is_packed, const int32_t[::1] ids,
    const float[:, ::1] positions, const int32_t[::1] position_ids,
    const float[:, ::1] types, const int32_t[::1] type_ids,
    const float[::1] gain, const float[::1] bias, float eps, float[:, ::1] y, float[:, ::1] total, int n_threads,
):
    """y[t] = LayerNorm(words[ids[t]] + positions[position_ids[t]] + types[type_ids[t]]).

    `words` is a flat view: V * C floats, or the panels of `pack_rows` if `is_packed`. `total`, which
    backward reads, receives the sums before the normalisation, or is None.
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
    cdef float *row
    for t in prange(n_rows, nogil=True, schedule="static", num_threads=n_threads):
        row = ps + t * n
        if is_packed:
            unpack_row(pw, n, i_word[t], row)
            add_row(row, pt + i_type[t] * n, row, n)
        else:
            add_row(pw + i_word[t] * n, pt + i_type[t] * n, row, n)
        add_row(row, pp + i_position[t] * n, row, n)
        normalise_row(row, py + t * n, n, pg, pb, eps, NULL, NULL)
