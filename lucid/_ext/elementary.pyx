# exp, log, erf, tanh and the activations made of them. No kernel calls the C library for these: its last
# bit depends on the system. Polynomials after range reduction, over one vector (log: one double);
# coefficients: exp Cephes `expf` (Moshier 1989), erf and tanh the minimax pairs of N. Juffa. Largest
# relative errors against float64, asserted in tests/ops/test_activation.py: exp 1.0e-7, erf 1.2e-7,
# tanh 1.8e-7 (an ulp of 1.0 is 1.2e-7).
# In minimum and maximum the constant comes first: a NaN in the second operand passes through.

ctypedef enum Activation:
    NONE = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3
    SILU = 4
    TANH = 5
    EXP = 6
    ERF = 7


cdef inline vf exp_inside(vf x) noexcept nogil:
    """exp(x) for -87.3 <= x <= 88.37; a NaN stays one."""
    cdef vf n, r, p
    # Adding 1.5 * 2^23 rounds to an integer, and leaves that integer in the low bits.
    n = fma(x, set1(1.44269504088896341), set1(12582912.0))
    p = n - set1(12582912.0)
    r = fma(p, set1(-0.693359375), x)
    r = fma(p, set1(2.12194440e-4), r)
    p = fma(set1(1.9875691500e-4), r, set1(1.3981999507e-3))
    p = fma(p, r, set1(8.3334519073e-3))
    p = fma(p, r, set1(4.1665795894e-2))
    p = fma(p, r, set1(1.6666665459e-1))
    p = fma(p, r, set1(5.0000001201e-1))
    p = fma(p, r * r, r) + set1(1)
    # A product, so that a NaN stays one.
    return p * power_of_2(n)


cdef inline vf exp_vector(vf x) noexcept nogil:
    """exp(x): 0 below -87.3, infinite above 88.37."""
    return choose(less(set1(88.37), x), set1(INFINITY), choose(less(x, set1(-87.3)), set1(0), exp_inside(x)))


cdef inline float exp1(float x) noexcept nogil:
    cdef float[LANES] lanes
    store(lanes, exp_vector(set1(x)))
    return lanes[0]


cdef inline double log1(double x) noexcept nogil:
    """log(x), x > 0, to 1e-15: log(m 2^e) = e log 2 + 2 atanh((m - 1) / (m + 1)).

    Our own, in plain products and sums, because the C library's differs from one system to the next.
    """
    cdef int e, i
    cdef double m = frexp(x, &e), s, total = 0
    if not x < INFINITY:
        return x
    if m < 0.70710678118654752:
        m *= 2
        e -= 1
    s = (m - 1) / (m + 1)
    for i in range(10, -1, -1):
        total = total * (s * s) + 1.0 / (2 * i + 1)
    return e * 0.69314718055994531 + 2 * s * total


cdef inline vf erf_vector(vf x) noexcept nogil:
    """erf(x): an odd polynomial below 0.9277, 1 - exp(polynomial) above."""
    cdef vi sign = as_bits(x) & as_bits(set1(-0.0))
    cdef vf t = as_float(as_bits(x) ^ sign)
    cdef vf s = x * x
    cdef vf near, far, u
    near = fma(set1(-5.96761703e-4), s, set1(4.99119423e-3))
    near = fma(near, s, set1(-2.67681349e-2))
    near = fma(near, s, set1(1.12819925e-1))
    near = fma(near, s, set1(-3.76125336e-1))
    near = fma(near, s, set1(1.28379166e-1))
    near = fma(near, x, x)
    t = minimum(set1(4.0), t)
    s = t * t
    far = fma(set1(-1.72853470e-5), t, set1(3.83197126e-4))
    u = fma(set1(-3.88396438e-3), t, set1(2.42546219e-2))
    far = fma(far, s, u)
    far = fma(far, t, set1(-1.06777877e-1))
    far = fma(far, t, set1(-6.34846687e-1))
    far = fma(far, t, set1(-1.28717512e-1))
    far = set1(1) - exp_inside(fma(far, t, set1(0) - t))  # from -18 to 0
    return choose(less(set1(0.927734375), t), as_float(as_bits(far) | sign), near)


cdef inline vf tanh_vector(vf x) noexcept nogil:
    """tanh(x): an odd polynomial below 0.55, 1 - 2 / (exp(2x) + 1) above."""
    cdef vi sign = as_bits(x) & as_bits(set1(-0.0))
    cdef vf t = as_float(as_bits(x) ^ sign)
    cdef vf s = x * x
    cdef vf near, far
    near = fma(set1(1.57394409e-2), s, set1(-5.23025580e-2))
    near = fma(near, s, set1(1.33152977e-1))
    near = fma(near, s, set1(-3.33327681e-1))
    near = fma(near * s, x, x)
    far = set1(1) - set1(2) / (exp_vector(t + t) + set1(1))
    return choose(less(set1(0.55), t), as_float(as_bits(far) | sign), near)


cdef inline vf activate(vf x, int activation) noexcept nogil:
    cdef vf half = set1(0.5) * x
    if activation == GELU:  # x Phi(x): Hendrycks & Gimpel 2016, eq. 2
        return fma(half, erf_vector(x * set1(0.70710678118654752)), half)
    if activation == GELU_TANH:  # their tanh form; in transformers "gelu_new"
        return fma(half, tanh_vector(set1(0.79788456080286536) * fma(set1(0.044715) * x, x * x, x)), half)
    if activation == RELU:
        return maximum(set1(0), x)
    if activation == SILU:
        return x / (set1(1) + exp_vector(set1(0) - x))
    if activation == TANH:
        return tanh_vector(x)
    if activation == EXP:
        return exp_vector(x)
    if activation == ERF:
        return erf_vector(x)
    return x


cdef inline vf activation_slope(vf x, int activation) noexcept nogil:
    """The derivative of `activate` at x."""
    cdef vf t, s
    if activation == GELU:  # Phi(x) + x phi(x)
        t = set1(0.39894228040143268) * exp_vector(set1(-0.5) * x * x)
        return fma(x, t, fma(set1(0.5), erf_vector(x * set1(0.70710678118654752)), set1(0.5)))
    if activation == GELU_TANH:  # x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
        x = maximum(set1(-10), minimum(set1(10), x))  # 0 or 1 from there on; and x^2 does not overflow
        s = x * x
        t = set1(1.59576912160573072) * fma(set1(0.044715) * x, s, x)
        return sigmoid_slope(t, x * set1(1.59576912160573072) * fma(set1(0.134145), s, set1(1)))
    if activation == RELU:
        return choose(less(set1(0), x), set1(1), set1(0))
    if activation == SILU:
        return sigmoid_slope(x, x)
    if activation == TANH:
        t = tanh_vector(x)
        return set1(1) - t * t
    return set1(1)


cdef inline vf sigmoid_slope(vf x, vf factor) noexcept nogil:
    """sigmoid(x) + factor * sigmoid'(x), where sigmoid' = s (1 - s) comes without a difference of near numbers."""
    cdef vf e = exp_vector(set1(0) - maximum(x, set1(0) - x))
    cdef vf s = set1(1) / (set1(1) + e)  # sigmoid(|x|), and e s = sigmoid(-|x|)
    e = e * s
    return fma(factor * e, s, choose(less(x, set1(0)), e, s))


cdef inline void activate_row(const float *x, float *y, Py_ssize_t n, int activation) noexcept nogil:
    """y[n] = activation(x[n]). The tail goes through the same vector code, so it rounds the same."""
    cdef float[LANES] tail
    cdef Py_ssize_t i, whole = n - n % LANES
    for i in range(n // LANES):
        store(y + i * LANES, activate(load(x + i * LANES), activation))
    if whole < n:
        store(tail, set1(0))
        memcpy(tail, x + whole, (n - whole) * sizeof(float))
        store(tail, activate(load(tail), activation))
        memcpy(y + whole, tail, (n - whole) * sizeof(float))


def activation_forward(const float[::1] x, float[::1] y, int activation, int n_threads):
    """y = activation(x), element by element; `y` may be `x`."""
    cdef Py_ssize_t n = x.shape[0], block, n_blocks = (n + 4095) // 4096
    if n == 0:
        return
    cdef const float *px = &x[0]
    cdef float *py = &y[0]
    for block in prange(n_blocks, nogil=True, schedule="static", num_threads=n_threads):
        activate_row(px + block * 4096, py + block * 4096, min(4096, n - block * 4096), activation)


def activation_backward(const float[::1] x, const float[::1] d_y, float[::1] d_x, int activation, int n_threads):
    """d_x = d_y * activation'(x); `d_x` may be `d_y`."""
    cdef Py_ssize_t n = x.shape[0], block, n_blocks = (n + 4095) // 4096
    if n == 0:
        return
    cdef const float *px = &x[0]
    cdef const float *pd = &d_y[0]
    cdef float *po = &d_x[0]
    for block in prange(n_blocks, nogil=True, schedule="static", num_threads=n_threads):
        slope_row(px + block * 4096, pd + block * 4096, po + block * 4096, min(4096, n - block * 4096), activation)


cdef inline void slope_row(const float *x, const float *d_y, float *d_x, Py_ssize_t n, int activation) noexcept nogil:
    cdef float[LANES] tail
    cdef Py_ssize_t i, whole = n - n % LANES
    for i in range(n // LANES):
        store(d_x + i * LANES, load(d_y + i * LANES) * activation_slope(load(x + i * LANES), activation))
    if whole < n:
        store(tail, set1(0))
        memcpy(tail, x + whole, (n - whole) * sizeof(float))
        store(tail, activation_slope(load(tail), activation))
        for i in range(whole, n):
            d_x[i] = d_y[i] * tail[i - whole]
