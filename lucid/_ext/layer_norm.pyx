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


cdef struct Norm:
    const float *gain
    const float *bias
    float eps


cdef void normalise(const Norm *norm, const float *x, float *y, Py_ssize_t n_rows, Py_ssize_t n, int n_threads) noexcept nogil:
    """y[t] = LayerNorm(x[t]); y may be x."""
    cdef Py_ssize_t t
    for t in prange(n_rows, schedule="static", num_threads=n_threads):
        normalise_row(x + t * n, y + t * n, n, norm.gain, norm.bias, norm.eps, NULL, NULL)


def layer_norm_forward(
    const float[:, ::1] x, const float[:, ::1] residual, const float[::1] gain, const float[::1] bias, float eps,
    float[:, ::1] y, float[:, ::1] total, float[::1] mean, float[::1] rstd, int n_threads,
):
    """y = LayerNorm(x + residual). `residual` may be None.

    Backward reads `total`, the sums before the normalisation, and `mean` and `rstd` of every row; they may
    be None. y may be x.
    """
    cdef Py_ssize_t n_rows = x.shape[0], n = x.shape[1], t
    if n_rows == 0 or n == 0:
        return
    cdef const float *px = &x[0, 0]
    cdef const float *pr = &residual[0, 0] if residual is not None else NULL
    cdef const float *pg = &gain[0]
    cdef const float *pb = &bias[0]
    cdef float *py = &y[0, 0]
    cdef float *ps = &total[0, 0] if total is not None else py
    cdef float *pm = &mean[0] if mean is not None else NULL
    cdef float *pd = &rstd[0] if rstd is not None else NULL
    for t in prange(n_rows, nogil=True, schedule="static", num_threads=n_threads):
        if pr is not NULL:
            add_row(px + t * n, pr + t * n, ps + t * n, n)
        normalise_row(<const float *> ps + t * n if pr is not NULL else px + t * n, py + t * n, n, pg, pb, eps,
                      pm + t if pm is not NULL else NULL, pd + t if pm is not NULL else NULL)


cdef enum:
    NORM_ROWS = 64  # rows whose shares of d_gain and d_bias are summed together

norm_rows = NORM_ROWS


def layer_norm_backward(
    const float[:, ::1] x, const float[::1] gain, const float[::1] mean, const float[::1] rstd, const float[:, ::1] d_y,
    float[:, ::1] d_x, float[:, ::1] d_gain_parts, float[:, ::1] d_bias_parts, int n_threads,
):
    """With g = d_y * gain and n = (x - mean) * rstd:  d_x = rstd * (g - mean(g) - n * mean(g * n)).

    d_gain = sum_t d_y * n and d_bias = sum_t d_y come as sums of `norm_rows` rows each, in order, for the
    caller to add. d_x may be d_y.
    """
    cdef Py_ssize_t n_rows = x.shape[0], n = x.shape[1], block
    if n_rows == 0 or n == 0:
        return
    cdef const float *px = &x[0, 0]
    cdef const float *pg = &gain[0]
    cdef const float *pm = &mean[0]
    cdef const float *pr = &rstd[0]
    cdef const float *pd = &d_y[0, 0]
    cdef float *po = &d_x[0, 0]
    cdef float *pdg = &d_gain_parts[0, 0]
    cdef float *pdb = &d_bias_parts[0, 0]
    for block in prange((n_rows + NORM_ROWS - 1) // NORM_ROWS, nogil=True, schedule="static", num_threads=n_threads):
        norm_rows_backward(px, pg, pm, pr, pd, po, pdg + block * n, pdb + block * n, n, block * NORM_ROWS,
                           min(n_rows, (block + 1) * NORM_ROWS))


cdef void norm_rows_backward(
    const float *x, const float *gain, const float *mean, const float *rstd, const float *d_y, float *d_x,
    float *d_gain, float *d_bias, Py_ssize_t n, Py_ssize_t begin, Py_ssize_t end,
) noexcept nogil:
    cdef Py_ssize_t t, i
    cdef float g_mean, gn_mean, normal, g, mu, r
    cdef const float *row
    cdef const float *dy
    cdef float *dx
    cdef double g_sum, gn_sum
    memset(d_gain, 0, n * sizeof(float))
    memset(d_bias, 0, n * sizeof(float))
    for t in range(begin, end):
        row = x + t * n
        dy = d_y + t * n
        dx = d_x + t * n
        mu = mean[t]
        r = rstd[t]
        g_sum = 0
        gn_sum = 0
        norm_sums(row, gain, dy, n, mu, r, &g_sum, &gn_sum)
        g_mean = <float> (g_sum / n)
        gn_mean = <float> (gn_sum / n)
        for i in range(n):
            normal = (row[i] - mu) * r
            g = dy[i] * gain[i]
            d_gain[i] += dy[i] * normal
            d_bias[i] += dy[i]
            dx[i] = r * (g - g_mean - normal * gn_mean)


cdef inline void norm_sums(
    const float *x, const float *gain, const float *d_y, Py_ssize_t n, float mu, float r, double *g_sum, double *gn_sum,
) noexcept nogil:
    """Sums of g and of g * normal over a row, in 16 lanes joined by the fixed tree."""
    cdef float[ROW_LANES] g_lanes
    cdef float[ROW_LANES] gn_lanes
    cdef Py_ssize_t i, j
    cdef float g
    cdef int width = ROW_LANES // 2
    for j in range(ROW_LANES):
        g_lanes[j] = 0
        gn_lanes[j] = 0
    for i in range(n // ROW_LANES):
        for j in range(ROW_LANES):
            g = d_y[i * ROW_LANES + j] * gain[i * ROW_LANES + j]
            g_lanes[j] += g
            gn_lanes[j] += g * ((x[i * ROW_LANES + j] - mu) * r)
    for i in range(n - n % ROW_LANES, n):
        j = i % ROW_LANES
        g = d_y[i] * gain[i]
        g_lanes[j] += g
        gn_lanes[j] += g * ((x[i] - mu) * r)
    while width:
        for j in range(width):
            g_lanes[j] += g_lanes[j + width]
            gn_lanes[j] += gn_lanes[j + width]
        width //= 2
    g_sum[0] = g_lanes[0]
    gn_sum[0] = gn_lanes[0]
