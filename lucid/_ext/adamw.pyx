# AdamW (Loshchilov & Hutter 2019, algorithm 2) and the norm of a gradient.


def adamw_step(
    float[::1] weight, const float[::1] d_weight, float[::1] m, float[::1] v, double lr, double beta1, double beta2,
    double eps, double weight_decay, double correction1, double correction2, double scale, int n_threads,
):
    """One step on one parameter, in one pass over its four arrays.

    g = scale * d_weight;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
    weight = (1 - lr * weight_decay) weight - lr / correction1 * m / (sqrt(v / correction2) + eps)
    """
    cdef Py_ssize_t n = weight.shape[0], block
    if n == 0:
        return
    cdef float *pw = &weight[0]
    cdef const float *pg = &d_weight[0]
    cdef float *pm = &m[0]
    cdef float *pv = &v[0]
    cdef float keep = <float> (1 - lr * weight_decay), rate = <float> (lr / correction1)
    cdef float root = <float> (1 / sqrt(correction2)), e = <float> eps, s = <float> scale
    cdef float b1 = <float> beta1, b2 = <float> beta2, a1 = <float> (1 - beta1), a2 = <float> (1 - beta2)
    for block in prange((n + 4095) // 4096, nogil=True, schedule="static", num_threads=n_threads):
        adamw_block(pw + block * 4096, pg + block * 4096, pm + block * 4096, pv + block * 4096,
                    min(4096, n - block * 4096), keep, rate, root, e, s, b1, b2, a1, a2)


cdef void adamw_block(
    float *w, const float *d_w, float *m, float *v, Py_ssize_t n, float keep, float rate, float root, float eps,
    float scale, float beta1, float beta2, float a1, float a2,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef float g
    for i in range(n):
        g = d_w[i] * scale
        m[i] = fma1(a1, g, beta1 * m[i])
        v[i] = fma1(a2 * g, g, beta2 * v[i])
        w[i] = keep * w[i] - rate * m[i] / fma1(sqrtf(v[i]), root, eps)


def sum_of_squares(const float[::1] x, int n_threads):
    """sum x^2 in float64: blocks of 4096 in 16 lanes, the blocks added in order. No float32 x overflows it."""
    cdef Py_ssize_t n = x.shape[0], block, n_blocks = (n + 4095) // 4096
    cdef double total = 0
    cdef double *parts
    if n == 0:
        return 0.0
    cdef const float *px = &x[0]
    parts = <double *> malloc(n_blocks * sizeof(double))
    if parts is NULL:
        raise MemoryError("sum_of_squares: no memory for the sums of blocks")
    for block in prange(n_blocks, nogil=True, schedule="static", num_threads=n_threads):
        parts[block] = squares_of_block(px + block * 4096, min(4096, n - block * 4096))
    for block in range(n_blocks):
        total += parts[block]
    free(parts)
    return total


cdef inline double squares_of_block(const float *x, Py_ssize_t n) noexcept nogil:
    cdef double[ROW_LANES] lanes
    cdef double value
    cdef Py_ssize_t i, j
    cdef int width = ROW_LANES // 2
    for j in range(ROW_LANES):
        lanes[j] = 0
    for i in range(n // ROW_LANES):
        for j in range(ROW_LANES):
            value = x[i * ROW_LANES + j]
            lanes[j] += value * value
    for i in range(n - n % ROW_LANES, n):
        value = x[i]
        lanes[i % ROW_LANES] += value * value
    while width:
        for j in range(width):
            lanes[j] += lanes[j + width]
        width //= 2
    return lanes[0]
