# Multi-head scaled dot-product attention (Vaswani et al. 2017, eq. 1) over packed sequences, with the
# online softmax of Milakov & Gimelshein 2018: a row keeps its maximum m, its sum l and its output o,
# and rescales them when a block of keys raises m. A thread holds QUERY_BLOCK x KEY_BLOCK scores.
#
# A row's result depends on its own query and on the keys of its sequence in blocks counted from the
# sequence's start, so neither the batch nor the other rows asked for can change it.

cdef enum:
    KEY_BLOCK = 192      # keys between two rescalings: sets rounding; a multiple of every PANEL
    QUERY_BLOCK = 32     # 24 KB of scores
    QUERY_CHUNK = 256    # queries of one task: K and V are packed once for them

cdef struct AttentionCall:
    const float *q
    const float *k
    const float *v
    Py_ssize_t q_stride
    Py_ssize_t k_stride
    Py_ssize_t v_stride
    Py_ssize_t head_width
    Py_ssize_t n_heads
    float scale
    float *out           # [n_queries, n_heads * head_width]
    float *lse           # [n_queries, n_heads] or NULL
    # Dropout of the probabilities; a threshold of 0 is none.
    const int32_t *query_columns
    const int32_t *key_columns
    uint64_t key
    uint64_t threshold
    uint32_t stream
    float keep_scale


cdef void attend(
    const AttentionCall *call, Py_ssize_t head, Py_ssize_t query_begin, Py_ssize_t query_end, Py_ssize_t key_begin,
    Py_ssize_t key_end, uint32_t example, float *scratch,
) noexcept nogil:
    """One task: queries [query_begin, query_end) of one head against all keys of their sequence."""
    cdef Py_ssize_t width = call.head_width, n_keys = key_end - key_begin
    cdef Py_ssize_t width_panels = (width + PANEL - 1) // PANEL, wide = width_panels * PANEL
    cdef Py_ssize_t key_panels = (n_keys + PANEL - 1) // PANEL
    cdef float *k_panels = scratch
    cdef float *v_panels = k_panels + key_panels * PANEL * width
    cdef float *scores = v_panels + n_keys * wide
    cdef float *o = scores + QUERY_BLOCK * KEY_BLOCK
    cdef float[QUERY_BLOCK] m
    cdef float[QUERY_BLOCK] l
    cdef const float *k = call.k + key_begin * call.k_stride + head * width
    cdef const float *v = call.v + key_begin * call.v_stride + head * width
    cdef const float *q
    cdef Py_ssize_t n_block, q0, n_queries, key_block, k0, keys, p, i, row
    cdef float top, alpha
    cdef float *score_row
    for p in range(key_panels):
        pack_panel_rows(k + p * PANEL * call.k_stride, call.k_stride, min(PANEL, n_keys - p * PANEL), width,
                        k_panels + p * PANEL * width)
    for p in range(width_panels):
        pack_panel_columns(v + p * PANEL, call.v_stride, min(PANEL, width - p * PANEL), n_keys,
                           v_panels + p * PANEL * n_keys)
    for n_block in range((query_end - query_begin + QUERY_BLOCK - 1) // QUERY_BLOCK):
        q0 = query_begin + n_block * QUERY_BLOCK
        n_queries = min(QUERY_BLOCK, query_end - q0)
        q = call.q + q0 * call.q_stride + head * width
        for key_block in range((n_keys + KEY_BLOCK - 1) // KEY_BLOCK):
            k0 = key_block * KEY_BLOCK
            keys = min(KEY_BLOCK, n_keys - k0)
            for p in range((keys + PANEL - 1) // PANEL):
                rows_by_panel(q, call.q_stride, n_queries, k_panels + (k0 + p * PANEL) * width, width,
                              scores + p * PANEL, KEY_BLOCK, keys - p * PANEL, False)
            for i in range(n_queries):
                score_row = scores + i * KEY_BLOCK
                top = reduce_row(MAX, score_row, NULL, keys, 1, 0) * call.scale
                alpha = 0
                if key_block > 0:
                    if top < m[i]:
                        top = m[i]
                    alpha = exp1(m[i] - top)
                    scale_row(o + i * wide, width, alpha)
                    l[i] *= alpha
                else:
                    l[i] = 0
                m[i] = top
                l[i] += reduce_row(EXP_SUM, score_row, score_row, keys, call.scale, -top)
                if call.threshold:
                    drop_row(score_row, score_row, keys, head << 16, call.key_columns + key_begin + k0,
                             call.query_columns[q0 + i], example, call.stream, call.key, call.threshold,
                             call.keep_scale)
            for p in range(width_panels):
                rows_by_panel(scores, KEY_BLOCK, n_queries, v_panels + p * PANEL * n_keys + k0 * PANEL, keys,
                              o + p * PANEL, wide, width - p * PANEL, key_block > 0)
        for i in range(n_queries):
            row = q0 + i
            scale_row(o + i * wide, width, 1 / l[i])
            memcpy(call.out + (row * call.n_heads + head) * width, o + i * wide, width * sizeof(float))
            if call.lse is not NULL:
                call.lse[row * call.n_heads + head] = m[i] + <float> log1(l[i])


cdef inline void rows_by_panel(
    const float *a, Py_ssize_t a_stride, Py_ssize_t n_rows, const float *panel, Py_ssize_t k, float *c,
    Py_ssize_t c_stride, Py_ssize_t columns, bint add,
) noexcept nogil:
    """c[n_rows, columns] = (add ? c : 0) + a . panel, columns rounded up to whole vectors, at most a panel: c must have them."""
    cdef Py_ssize_t t, i
    for t in range((n_rows + TILE_ROWS - 1) // TILE_ROWS):
        i = t * TILE_ROWS
        chains(<int> min(TILE_ROWS, n_rows - i), columns, a + i * a_stride, a_stride, panel, k, c + i * c_stride, c_stride, add,
               <const char *> panel, 0)


cdef inline void scale_row(float *x, Py_ssize_t n, float factor) noexcept nogil:
    cdef Py_ssize_t i
    for i in range((n + LANES - 1) // LANES):  # rows of `o` are whole panels
        store(x + i * LANES, load(x + i * LANES) * set1(factor))


def attention_forward(
    const float[:, :] q, const float[:, :] k, const float[:, :] v, const int32_t[::1] query_starts,
    const int32_t[::1] key_starts, Py_ssize_t n_heads, float scale, float[:, ::1] out, float[:, ::1] lse,
    const int32_t[::1] query_columns, const int32_t[::1] key_columns, const int32_t[::1] examples,
    uint64_t key, uint32_t stream, double p_drop, int n_threads,
):
    """out[i] = softmax(scale * q[i] . Kᵀ) . V over the keys of query i's sequence, for each head.

    Parameters
    ----------
    q, k, v : (n_queries, C), (n_keys, C), (n_keys, C); unit stride along the last axis
    query_starts, key_starts : (B + 1,); sequence b has queries query_starts[b] to query_starts[b + 1]
    out : (n_queries, C)
    lse : (n_queries, n_heads) or None; log of the sum of exp(scale * q . k), which backward reads
    query_columns, key_columns, examples : for dropout, else None; where a token stands, and in which example
    """
    cdef AttentionCall call
    cdef Py_ssize_t missing
    if out.shape[0] == 0 or out.shape[1] == 0:
        return
    call.q = &q[0, 0]
    call.k = &k[0, 0]
    call.v = &v[0, 0]
    call.q_stride = q.strides[0] // <Py_ssize_t> sizeof(float)
    call.k_stride = k.strides[0] // <Py_ssize_t> sizeof(float)
    call.v_stride = v.strides[0] // <Py_ssize_t> sizeof(float)
    call.n_heads = n_heads
    call.head_width = out.shape[1] // n_heads
    call.scale = scale
    call.out = &out[0, 0]
    call.lse = &lse[0, 0] if lse is not None else NULL
    call.threshold = <uint64_t> (p_drop * 4294967296.0)
    call.keep_scale = <float> (1.0 / (1.0 - p_drop))
    call.key = key
    call.stream = stream
    call.query_columns = NULL
    call.key_columns = NULL
    if call.threshold:
        call.query_columns = &query_columns[0]
        call.key_columns = &key_columns[0]
    cdef const int32_t *pq = &query_starts[0]
    cdef const int32_t *pk = &key_starts[0]
    cdef const int32_t *pe = &examples[0] if examples is not None else NULL
    with nogil:
        missing = attend_all(&call, pq, pk, pe, query_starts.shape[0] - 1, n_threads)
    if missing:
        raise MemoryError(f"attention: no memory for {missing} bytes of keys and values")


cdef Py_ssize_t attend_all(
    const AttentionCall *call, const int32_t *query_starts, const int32_t *key_starts, const int32_t *examples,
    Py_ssize_t n_sequences, int n_threads,
) noexcept nogil:
    """Every head of every sequence. Return 0, or how many bytes there was no memory for."""
    cdef Py_ssize_t b, most_keys = 0, most_chunks = 0, task, per_thread
    cdef Py_ssize_t wide = (call.head_width + PANEL - 1) // PANEL * PANEL
    cdef float *scratch
    for b in range(n_sequences):
        most_keys = max(most_keys, key_starts[b + 1] - key_starts[b])
        most_chunks = max(most_chunks, (query_starts[b + 1] - query_starts[b] + QUERY_CHUNK - 1) // QUERY_CHUNK)
    per_thread = ((most_keys + PANEL) * call.head_width + most_keys * wide + QUERY_BLOCK * (KEY_BLOCK + wide) + 63) // 64 * 64
    scratch = <float *> malloc(per_thread * n_threads * sizeof(float))
    if scratch is NULL:
        return per_thread * n_threads * sizeof(float)
    # Dynamic: the cost of a sequence grows with the square of its length. The order changes no bit.
    for task in prange(n_sequences * most_chunks * call.n_heads, schedule="dynamic", num_threads=n_threads):
        attend_task(call, query_starts, key_starts, examples, most_chunks, task, scratch + threadid() * per_thread)
    free(scratch)
    return 0


cdef void attend_task(
    const AttentionCall *call, const int32_t *query_starts, const int32_t *key_starts, const int32_t *examples,
    Py_ssize_t most_chunks, Py_ssize_t task, float *scratch,
) noexcept nogil:
    cdef Py_ssize_t head = task % call.n_heads, chunk = task // call.n_heads % most_chunks
    cdef Py_ssize_t b = task // call.n_heads // most_chunks
    cdef Py_ssize_t begin = query_starts[b] + chunk * QUERY_CHUNK, end = min(begin + QUERY_CHUNK, query_starts[b + 1])
    if begin < end:
        attend(call, head, begin, end, key_starts[b], key_starts[b + 1],
               examples[b] if examples is not NULL else 0, scratch)


# Backward (Dao et al. 2022, algorithm 4, on one core's blocks): with the log-sum-exp rows saved by forward
#   P = exp(scale Q Kᵀ - lse);  dV = Pᵀ dO;  dP = dO Vᵀ;  dS = scale P (dP - delta);  dQ = dS K;  dK = dSᵀ Q
# and with dropout P in dV, and dP, multiplied by the same mask as in forward. A task is one head of one
# sequence, so that dK and dV have one writer and one order of summation.
#
# delta is rowsum(P dP) / rowsum(P), not the paper's rowsum(dO O): then a row of dS sums to 0 however lse was
# rounded, and the gradient of the key bias, a sum of such rows, stays the 0 that it is.


cdef struct AttentionGradients:
    const float *d_out
    float *d_q
    float *d_k
    float *d_v
    Py_ssize_t q_stride
    Py_ssize_t k_stride
    Py_ssize_t v_stride


cdef void attend_backward(
    const AttentionCall *call, const AttentionGradients *d, Py_ssize_t head, Py_ssize_t query_begin, Py_ssize_t query_end,
    Py_ssize_t begin, Py_ssize_t end, uint32_t example, float *scratch,
) noexcept nogil:
    cdef Py_ssize_t width = call.head_width, n = end - begin, wide_panels = (width + PANEL - 1) // PANEL
    cdef Py_ssize_t wide = wide_panels * PANEL, n_panels = (n + PANEL - 1) // PANEL
    cdef Py_ssize_t stride = call.n_heads * width, n_blocks = (n + KEY_BLOCK - 1) // KEY_BLOCK, row = n_blocks * KEY_BLOCK
    cdef float *k_rows = scratch                               # panels of Kᵀ, for Q Kᵀ
    cdef float *v_rows = k_rows + n_panels * PANEL * width     # panels of Vᵀ, for dO Vᵀ
    cdef float *k_columns = v_rows + n_panels * PANEL * width  # panels of K, for dS K
    cdef float *dk = k_columns + n * wide
    cdef float *dv = dk + n * wide
    cdef float *p = dv + n * wide                              # QUERY_BLOCK x row
    cdef float *dp = p + QUERY_BLOCK * row                     # the same; later dS
    cdef float *mask = dp + QUERY_BLOCK * row                  # QUERY_BLOCK x KEY_BLOCK
    cdef float *turned = mask + QUERY_BLOCK * KEY_BLOCK        # KEY_BLOCK x QUERY_BLOCK
    cdef float *dq = turned + QUERY_BLOCK * KEY_BLOCK          # QUERY_BLOCK x wide, as are the next two
    cdef float *q_columns = dq + QUERY_BLOCK * wide
    cdef float *do_columns = q_columns + QUERY_BLOCK * wide
    cdef double[QUERY_BLOCK] p_sum
    cdef double[QUERY_BLOCK] delta
    cdef const float *k = call.k + begin * call.k_stride + head * width
    cdef const float *v = call.v + begin * call.v_stride + head * width
    cdef const float *q
    cdef const float *do
    cdef Py_ssize_t n_block, q0, rows, key_block, k0, keys, panel, i, j
    cdef float *p_row
    cdef float *dp_row
    cdef float row_delta
    pack_head(k, call.k_stride, n, width, k_rows)
    pack_head(v, call.v_stride, n, width, v_rows)
    for panel in range(wide_panels):
        pack_panel_columns(k + panel * PANEL, call.k_stride, min(PANEL, width - panel * PANEL), n, k_columns + panel * PANEL * n)
    memset(dk, 0, 2 * n * wide * sizeof(float))
    for n_block in range((query_end - query_begin + QUERY_BLOCK - 1) // QUERY_BLOCK):
        q0 = query_begin + n_block * QUERY_BLOCK
        rows = min(QUERY_BLOCK, query_end - q0)
        q = call.q + q0 * call.q_stride + head * width
        do = d.d_out + q0 * stride + head * width
        for panel in range(wide_panels):
            pack_panel_columns(q + panel * PANEL, call.q_stride, min(PANEL, width - panel * PANEL), rows, q_columns + panel * PANEL * rows)
            pack_panel_columns(do + panel * PANEL, stride, min(PANEL, width - panel * PANEL), rows, do_columns + panel * PANEL * rows)
        memset(p_sum, 0, sizeof(p_sum))
        memset(delta, 0, sizeof(delta))
        for key_block in range(n_blocks):  # P and dP of all keys, and dV
            k0 = key_block * KEY_BLOCK
            keys = min(KEY_BLOCK, n - k0)
            for panel in range((keys + PANEL - 1) // PANEL):
                rows_by_panel(q, call.q_stride, rows, k_rows + (k0 + panel * PANEL) * width, width, p + k0 + panel * PANEL, row,
                              keys - panel * PANEL, False)
                rows_by_panel(do, stride, rows, v_rows + (k0 + panel * PANEL) * width, width, dp + k0 + panel * PANEL, row,
                              keys - panel * PANEL, False)
            for i in range(rows):
                p_row = p + i * row + k0
                dp_row = dp + i * row + k0
                p_sum[i] += reduce_row(EXP_SUM, p_row, p_row, keys, call.scale, -call.lse[(q0 + i) * call.n_heads + head])
                if call.threshold:
                    for j in range(keys):
                        mask[i * KEY_BLOCK + j] = 1
                    drop_row(mask + i * KEY_BLOCK, mask + i * KEY_BLOCK, keys, head << 16, call.key_columns + begin + k0,
                             call.query_columns[q0 + i], example, call.stream, call.key, call.threshold, call.keep_scale)
                    for j in range(keys):
                        dp_row[j] *= mask[i * KEY_BLOCK + j]
                        mask[i * KEY_BLOCK + j] *= p_row[j]
                delta[i] += dot_row(p_row, dp_row, keys)
            if call.threshold:
                transpose(mask, KEY_BLOCK, rows, keys, turned, rows)
            else:
                transpose(p + k0, row, rows, keys, turned, rows)
            for panel in range(wide_panels):
                rows_by_panel(turned, rows, keys, do_columns + panel * PANEL * rows, rows, dv + k0 * wide + panel * PANEL, wide,
                              width - panel * PANEL, True)
        for i in range(rows):
            p_row = p + i * row
            dp_row = dp + i * row
            row_delta = <float> (delta[i] / p_sum[i])
            for j in range(n):
                dp_row[j] = call.scale * p_row[j] * (dp_row[j] - row_delta)
        for key_block in range(n_blocks):
            k0 = key_block * KEY_BLOCK
            keys = min(KEY_BLOCK, n - k0)
            transpose(dp + k0, row, rows, keys, turned, rows)
            for panel in range(wide_panels):
                rows_by_panel(turned, rows, keys, q_columns + panel * PANEL * rows, rows, dk + k0 * wide + panel * PANEL, wide,
                              width - panel * PANEL, True)
                rows_by_panel(dp + k0, row, rows, k_columns + panel * PANEL * n + k0 * PANEL, keys, dq + panel * PANEL, wide,
                              width - panel * PANEL, key_block > 0)
        for i in range(rows):
            memcpy(d.d_q + (q0 + i) * d.q_stride + head * width, dq + i * wide, width * sizeof(float))
    for i in range(n):
        memcpy(d.d_k + (begin + i) * d.k_stride + head * width, dk + i * wide, width * sizeof(float))
        memcpy(d.d_v + (begin + i) * d.v_stride + head * width, dv + i * wide, width * sizeof(float))


cdef inline void pack_head(const float *x, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t width, float *panels) noexcept nogil:
    cdef Py_ssize_t panel
    for panel in range((n + PANEL - 1) // PANEL):
        pack_panel_rows(x + panel * PANEL * stride, stride, min(PANEL, n - panel * PANEL), width, panels + panel * PANEL * width)


cdef inline float dot_row(const float *a, const float *b, Py_ssize_t n) noexcept nogil:
    cdef float[ROW_LANES] lanes
    cdef Py_ssize_t i, j
    cdef int half = ROW_LANES // 2
    for j in range(ROW_LANES):
        lanes[j] = 0
    for i in range(n // ROW_LANES):
        for j in range(ROW_LANES):
            lanes[j] = fma1(a[i * ROW_LANES + j], b[i * ROW_LANES + j], lanes[j])
    for i in range(n - n % ROW_LANES, n):
        lanes[i % ROW_LANES] = fma1(a[i], b[i], lanes[i % ROW_LANES])
    while half:
        for j in range(half):
            lanes[j] += lanes[j + half]
        half //= 2
    return lanes[0]


def attention_backward(
    const float[:, :] q, const float[:, :] k, const float[:, :] v, const int32_t[::1] query_starts,
    const int32_t[::1] key_starts, Py_ssize_t n_heads, float scale, const float[:, ::1] lse, const float[:, ::1] d_out,
    float[:, :] d_q, float[:, :] d_k, float[:, :] d_v, const int32_t[::1] query_columns,
    const int32_t[::1] key_columns, const int32_t[::1] examples, uint64_t key, uint32_t stream, double p_drop, int n_threads,
):
    """The gradients of `attention_forward` on Q, K and V; `lse` is what it returned.

    d_q, d_k, d_v : like q, k, v; unit stride along the last axis. The other arguments are forward's.
    """
    cdef AttentionCall call
    cdef AttentionGradients d
    cdef Py_ssize_t n_sequences = key_starts.shape[0] - 1, n_queries = d_out.shape[0]
    cdef Py_ssize_t b, most = 0, task, per_thread, wide
    cdef float *scratch
    if k.shape[0] == 0 or k.shape[1] == 0:
        return
    d.d_out = &d_out[0, 0] if n_queries else NULL
    d.d_q = &d_q[0, 0] if n_queries else NULL
    d.d_k = &d_k[0, 0]
    d.d_v = &d_v[0, 0]
    d.q_stride = d_q.strides[0] // <Py_ssize_t> sizeof(float)
    d.k_stride = d_k.strides[0] // <Py_ssize_t> sizeof(float)
    d.v_stride = d_v.strides[0] // <Py_ssize_t> sizeof(float)
    call.q = &q[0, 0] if n_queries else NULL
    call.k = &k[0, 0]
    call.v = &v[0, 0]
    call.q_stride = q.strides[0] // <Py_ssize_t> sizeof(float)
    call.k_stride = k.strides[0] // <Py_ssize_t> sizeof(float)
    call.v_stride = v.strides[0] // <Py_ssize_t> sizeof(float)
    call.n_heads = n_heads
    call.head_width = k.shape[1] // n_heads
    call.scale = scale
    call.out = NULL
    call.lse = <float *> &lse[0, 0] if n_queries else NULL
    call.threshold = <uint64_t> (p_drop * 4294967296.0)
    call.keep_scale = <float> (1.0 / (1.0 - p_drop))
    call.key = key
    call.stream = stream
    call.query_columns = NULL
    call.key_columns = NULL
    if call.threshold and n_queries:
        call.query_columns = &query_columns[0]
        call.key_columns = &key_columns[0]
    cdef const int32_t *pq = &query_starts[0]
    cdef const int32_t *pk = &key_starts[0]
    cdef const int32_t *pe = &examples[0] if examples is not None else NULL
    for b in range(n_sequences):
        most = max(most, pk[b + 1] - pk[b])
    wide = (call.head_width + PANEL - 1) // PANEL * PANEL
    per_thread = 2 * (most + PANEL) * call.head_width + 3 * most * wide
    per_thread += QUERY_BLOCK * (2 * (most + KEY_BLOCK) + 2 * KEY_BLOCK + 3 * wide)
    per_thread = (per_thread + 63) // 64 * 64
    scratch = <float *> malloc(per_thread * n_threads * sizeof(float))
    if scratch is NULL:
        raise MemoryError(f"attention: no memory for {per_thread * n_threads * 4} bytes of keys, values and their gradients")
    for task in prange(n_sequences * n_heads, nogil=True, schedule="dynamic", num_threads=n_threads):
        attend_backward(&call, &d, task % n_heads, pq[task // n_heads], pq[task // n_heads + 1], pk[task // n_heads],
                        pk[task // n_heads + 1], pe[task // n_heads] if pe is not NULL else 0, scratch + threadid() * per_thread)
    free(scratch)
