# Reductions over a row in 16 virtual lanes: element i goes to lane i % 16 whatever LANES is, and the
# lanes are joined by one fixed tree. So the sum has the same bits on every instruction set.

cdef enum Reduction:
    SUM = 0      # sum x
    SQUARES = 1  # sum (x - shift)^2
    MAX = 2      # max x
    EXP_SUM = 3  # sum exp(scale * x - shift); the terms go to y if it is given

cdef enum:
    ROW_LANES = 16


cdef inline vf reduce_step(int kind, vf total, const float *x, float *y, vf scale, vf shift) noexcept nogil:
    cdef vf value = load(x)
    if kind == SUM:
        return total + value
    if kind == SQUARES:
        value = value - shift
        return fma(value, value, total)
    if kind == MAX:
        return maximum(total, value)
    value = exp_vector(fma(value, scale, shift))
    if y is not NULL:
        store(y, value)
    return total + value


cdef inline float join(int kind, const float *lanes) noexcept nogil:
    """One number of ROW_LANES: lane i with lane i + 8, then i + 4, i + 2, i + 1."""
    cdef float[4] four
    if kind == MAX:
        store4(four, larger4(larger4(load4(lanes), load4(lanes + 8)), larger4(load4(lanes + 4), load4(lanes + 12))))
        return larger1(larger1(four[0], four[2]), larger1(four[1], four[3]))
    store4(four, (load4(lanes) + load4(lanes + 8)) + (load4(lanes + 4) + load4(lanes + 12)))
    return (four[0] + four[2]) + (four[1] + four[3])


cdef inline float reduce_row(int kind, const float *x, float *y, Py_ssize_t n, float scale, float shift) noexcept nogil:
    """Reduce x[n]; `kind` is a literal at every call. EXP_SUM wants its shift negated."""
    cdef vf start = set1(-INFINITY if kind == MAX else 0)
    cdef vf t0 = start, t1 = start, t2 = start, t3 = start
    cdef vf scales = set1(scale), shifts = set1(shift)
    cdef float[ROW_LANES] lanes
    cdef float[ROW_LANES] lanes_y
    cdef float *py = y
    cdef Py_ssize_t step, i, n_steps = (n + ROW_LANES - 1) // ROW_LANES
    cdef int width
    for step in range(n_steps):
        i = step * ROW_LANES
        if i + ROW_LANES > n:  # the last step, padded with what changes nothing
            for width in range(ROW_LANES):
                lanes[width] = 0 if kind == SUM else shift if kind == SQUARES else -INFINITY
            memcpy(lanes, x + i, (n - i) * sizeof(float))
            x = lanes - i
            py = lanes_y - i if y is not NULL else NULL
        t0 = reduce_step(kind, t0, x + i, py + i if y is not NULL else NULL, scales, shifts)
        if LANES < 16:
            t1 = reduce_step(kind, t1, x + i + LANES, py + i + LANES if y is not NULL else NULL, scales, shifts)
        if LANES < 8:
            t2 = reduce_step(kind, t2, x + i + 2 * LANES, py + i + 2 * LANES if y is not NULL else NULL, scales, shifts)
            t3 = reduce_step(kind, t3, x + i + 3 * LANES, py + i + 3 * LANES if y is not NULL else NULL, scales, shifts)
    if y is not NULL and n % ROW_LANES:
        i = n - n % ROW_LANES
        memcpy(y + i, lanes_y, (n - i) * sizeof(float))
    store(lanes, t0)
    if LANES < 16:
        store(lanes + LANES % ROW_LANES, t1)
    if LANES < 8:
        store(lanes + 2 * LANES % ROW_LANES, t2)
        store(lanes + 3 * LANES % ROW_LANES, t3)
    return join(kind, lanes)
