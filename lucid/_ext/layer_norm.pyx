# Layer normalisation (Ba et al. 2016, eq. 3-4): y = gain * (x - mean) / sqrt(variance + eps) + bias,
# over each row, with the row in L1 between its three passes.


cdef inline void normalise_row(
    const float *x, float *y, Py_ssize_t n, const float *gain, const float *bias, float eps, float *mean, float *rstd,
) noexcept nogil:
    cdef float mu = reduce_row(SUM, x, NULL, n, 1, 0) / n
    cdef float r = 1 / sqrtf(reduce_row(SQUARES, x, NULL, n, 1, mu) / n + eps)
    cdef Py_ssize_t i, whole = n - n % LANES
    for i in range(n // LANES):
        store(y + i * LANES, fma((load(x + i * LANES) - set1(mu)) * set1(r), load(gain + i * LANES), load(bias + i * LANES)))
    for i in range(whole, n):
        y[i] = fma1((x[i] - mu) * r, gain[i], bias[i])
    if mean is not NULL:
        mean[0] = mu
        rstd[0] = r


cdef inline void add_row(const float *a, const float *b, float *y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n // LANES):
        store(y + i * LANES, load(a + i * LANES) + load(b + i * LANES))
    for i in range(n - n % LANES, n):
        y[i] = a[i] + b[i]


def layer_norm_forward(
    const float[:, ::1] x, const float[:, ::1] residual, const float[::1] gain, const float[::1] bias, float eps,
    float[:, ::1] y, float[::1] mean, float[::1] rstd, int n_threads,
):
    """y = LayerNorm(x + residual). `residual` may be None; so may `mean` and `rstd`, which backward reads.

    y may be x.
    """
    cdef Py_ssize_t n_rows = x.shape[0], n = x.shape[1], t
    if n_rows == 0 or n == 0:
        return
    cdef const float *px = &x[0, 0]
    cdef const float *pr = &residual[0, 0] if residual is not None else NULL
    cdef const float *pg = &gain[0]
    cdef const float *pb = &bias[0]
    cdef float *py = &y[0, 0]
    cdef float *pm = &mean[0] if mean is not None else NULL
    cdef float *ps = &rstd[0] if rstd is not None else NULL
    for t in prange(n_rows, nogil=True, schedule="static", num_threads=n_threads):
        if pr is not NULL:
            add_row(px + t * n, pr + t * n, py + t * n, n)
            normalise_row(py + t * n, py + t * n, n, pg, pb, eps,
                          pm + t if pm is not NULL else NULL, ps + t if pm is not NULL else NULL)
        else:
            normalise_row(px + t * n, py + t * n, n, pg, pb, eps,
                          pm + t if pm is not NULL else NULL, ps + t if pm is not NULL else NULL)
