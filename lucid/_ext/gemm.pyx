# Blocked matrix product C[M, N] = A[M, K] . B[K, N] with B packed in panels.
#
# B is cut into panels of PANEL = 3 * LANES columns, each stored [K][PANEL] and padded with zeros, so
# that a tile of TILE_ROWS rows x PANEL columns reads it in one stream. With 4 rows, 12 accumulators +
# 3 columns + 1 broadcast = 16 registers; with 8 rows, 28 of 32. A is read where it lies.
#
# An output is always the same sum: chains of CHAIN fused multiply-adds in k order, their totals added
# in k order. Neither M, nor the thread count, nor the cache blocks below can change a bit of it.

cdef enum:
    PANEL = 3 * LANES    # columns of a panel, and of a register tile
    CHAIN = 256          # products added in one register before the total moves to C: sets rounding
    K_BLOCK = 768        # k per pass: 128 rows of A stay in L2 (393 KB); a multiple of CHAIN
    M_BLOCK = 128        # rows per pass over the panels
    LINE = 64            # bytes of a cache line
    PANEL_LINES = PANEL * 16 // LINE  # of 4 k of a panel

# What happens to a tile on its way out: activation(product + bias) + residual.
cdef struct Epilogue:
    const float *bias          # [N] or NULL
    const float *residual      # [M, N] rows of stride `residual_stride`, or NULL
    Py_ssize_t residual_stride
    int activation


# The sums of one row of a tile.
cdef struct TileRow:
    vf c0
    vf c1
    vf c2


cdef inline TileRow zeros() noexcept nogil:
    cdef TileRow row
    row.c0 = set1(0)
    row.c1 = set1(0)
    row.c2 = set1(0)
    return row


cdef inline void add_products(int vectors, TileRow *row, float a, vf b0, vf b1, vf b2) noexcept nogil:
    cdef vf x = set1(a)
    ACCUMULATE(row.c0, x, b0)
    if vectors > 1:
        ACCUMULATE(row.c1, x, b1)
    if vectors > 2:
        ACCUMULATE(row.c2, x, b2)


cdef inline void put(int vectors, float *c, TileRow row, bint add) noexcept nogil:
    if add:
        row.c0 = load(c) + row.c0
        if vectors > 1:
            row.c1 = load(c + LANES) + row.c1
        if vectors > 2:
            row.c2 = load(c + 2 * LANES) + row.c2
    store(c, row.c0)
    if vectors > 1:
        store(c + LANES, row.c1)
    if vectors > 2:
        store(c + 2 * LANES, row.c2)


cdef inline void tile(
    int rows, int vectors, int unroll, const float *a, Py_ssize_t a_stride, const float *b, Py_ssize_t k,
    float *c, Py_ssize_t c_stride, bint add, const char *next_panel, int lines,
) noexcept nogil:
    """c[rows, vectors * LANES] = (add ? c : 0) + a[rows, k] . b[k, PANEL], k a multiple of `unroll`.

    `rows`, `vectors` and `unroll` are literals at every call: the compiler keeps the code of those only.
    """
    cdef TileRow r0, r1, r2, r3, r4, r5, r6, r7
    cdef vf b0, b1, b2
    cdef const float *a3 = a + 3 * a_stride
    cdef const float *a6 = a + 6 * a_stride
    cdef Py_ssize_t _step
    cdef int u
    r0 = r1 = r2 = r3 = r4 = r5 = r6 = r7 = zeros()
    b1 = b2 = set1(0)
    for u in range(rows):  # C is on its way while the products are made
        PREFETCH_WRITE(c + u * c_stride)
        PREFETCH_WRITE(c + u * c_stride + (vectors - 1) * LANES)
        if vectors * LANES > 32:
            PREFETCH_WRITE(c + u * c_stride + LANES)
    for _step in range(k // unroll):
        for u in range(lines):
            PREFETCH(next_panel + u * LINE)
        next_panel += lines * LINE
        KEEP(a)  # three bases and a stride address all rows; GCC would make a pointer for each and spill them
        KEEP(a3)
        KEEP(a6)
        KEEP(a_stride)
        for u in range(unroll):
            b0 = load(b)
            if vectors > 1:
                b1 = load(b + LANES)
            if vectors > 2:
                b2 = load(b + 2 * LANES)
            add_products(vectors, &r0, a[u], b0, b1, b2)
            if rows > 1:
                add_products(vectors, &r1, a[a_stride + u], b0, b1, b2)
            if rows > 2:
                add_products(vectors, &r2, a[2 * a_stride + u], b0, b1, b2)
            if rows > 3:
                add_products(vectors, &r3, a3[u], b0, b1, b2)
            if rows > 4:
                add_products(vectors, &r4, a3[a_stride + u], b0, b1, b2)
                add_products(vectors, &r5, a3[2 * a_stride + u], b0, b1, b2)
                add_products(vectors, &r6, a6[u], b0, b1, b2)
                add_products(vectors, &r7, a6[a_stride + u], b0, b1, b2)
            b += PANEL
        a += unroll
        a3 += unroll
        a6 += unroll
    put(vectors, c, r0, add)
    if rows > 1:
        put(vectors, c + c_stride, r1, add)
    if rows > 2:
        put(vectors, c + 2 * c_stride, r2, add)
    if rows > 3:
        put(vectors, c + 3 * c_stride, r3, add)
    if rows > 4:
        put(vectors, c + 4 * c_stride, r4, add)
        put(vectors, c + 5 * c_stride, r5, add)
        put(vectors, c + 6 * c_stride, r6, add)
        put(vectors, c + 7 * c_stride, r7, add)


cdef inline void chain_of_rows(
    int rows, int vectors, const float *a, Py_ssize_t a_stride, const float *b, Py_ssize_t k,
    float *c, Py_ssize_t c_stride, bint add, const char *next_panel, int lines,
) noexcept nogil:
    """`rows` and `vectors` are literals at every call. What is left of k modulo 4 forms a chain of its own."""
    cdef Py_ssize_t whole = k - k % 4
    if whole:
        tile(rows, vectors, 4, a, a_stride, b, whole, c, c_stride, add, next_panel, lines)
    if whole < k:
        tile(rows, vectors, 1, a + whole, a_stride, b + whole * PANEL, k - whole, c, c_stride, add or whole > 0, next_panel, 0)


cdef inline void chain_of_vectors(
    int vectors, int rows, const float *a, Py_ssize_t a_stride, const float *b, Py_ssize_t k,
    float *c, Py_ssize_t c_stride, bint add, const char *next_panel, int lines,
) noexcept nogil:
    """`vectors` is a literal at every call; `rows` is 1 to TILE_ROWS."""
    if TILE_ROWS == 8 and rows == 8:
        chain_of_rows(8, vectors, a, a_stride, b, k, c, c_stride, add, next_panel, lines)
        return
    if rows >= 4:
        chain_of_rows(4, vectors, a, a_stride, b, k, c, c_stride, add, next_panel, lines)
        a += 4 * a_stride
        c += 4 * c_stride
        rows -= 4
    if rows == 3:
        chain_of_rows(3, vectors, a, a_stride, b, k, c, c_stride, add, next_panel, lines)
    elif rows == 2:
        chain_of_rows(2, vectors, a, a_stride, b, k, c, c_stride, add, next_panel, lines)
    elif rows == 1:
        chain_of_rows(1, vectors, a, a_stride, b, k, c, c_stride, add, next_panel, lines)


cdef void chain(
    int rows, Py_ssize_t columns, const float *a, Py_ssize_t a_stride, const float *b, Py_ssize_t k,
    float *c, Py_ssize_t c_stride, bint add, const char *next_panel, int lines,
) noexcept nogil:
    """One chain (k <= CHAIN) of 1 to TILE_ROWS rows; C gets `columns`, rounded up to whole vectors."""
    if columns > 2 * LANES:
        chain_of_vectors(3, rows, a, a_stride, b, k, c, c_stride, add, next_panel, lines)
    elif columns > LANES:
        chain_of_vectors(2, rows, a, a_stride, b, k, c, c_stride, add, next_panel, lines)
    else:
        chain_of_vectors(1, rows, a, a_stride, b, k, c, c_stride, add, next_panel, lines)


cdef inline void finish_tile(
    int activation, float *c, Py_ssize_t c_stride, int rows, Py_ssize_t columns, const float *bias,
    const float *residual, Py_ssize_t residual_stride,
) noexcept nogil:
    """`activation` is a literal where it is NONE or GELU, the activations that BERT uses."""
    cdef Py_ssize_t n, j
    cdef int i
    cdef vf x, bias_j
    for n in range((columns + LANES - 1) // LANES):
        j = n * LANES
        bias_j = load(bias + j) if bias is not NULL else set1(-0.0)
        for i in range(rows):
            x = activate(load(c + i * c_stride + j) + bias_j, activation)
            if residual is not NULL:
                x = x + load(residual + i * residual_stride + j)
            store(c + i * c_stride + j, x)


cdef void finish(
    float *c, Py_ssize_t c_stride, int rows, Py_ssize_t columns, const float *bias, const float *residual,
    Py_ssize_t residual_stride, int activation,
) noexcept nogil:
    """c[rows, columns] = activation(c + bias) + residual, while the tile is in L1; columns in whole vectors."""
    if activation == GELU:
        finish_tile(GELU, c, c_stride, rows, columns, bias, residual, residual_stride)
    elif activation != NONE:
        finish_tile(activation, c, c_stride, rows, columns, bias, residual, residual_stride)
    elif bias is not NULL or residual is not NULL:
        finish_tile(NONE, c, c_stride, rows, columns, bias, residual, residual_stride)


cdef void edge(
    int rows, Py_ssize_t first, Py_ssize_t last, const float *a, Py_ssize_t a_stride, const float *b, Py_ssize_t k,
    float *c, Py_ssize_t c_stride, bint add, bint is_done, const Epilogue *epilogue, Py_ssize_t column, Py_ssize_t row,
) noexcept nogil:
    """Columns [first, last) of a panel, not whole vectors from its begin: worked in a tile of its own."""
    cdef float[TILE_ROWS * PANEL] tile_c
    cdef float[TILE_ROWS * PANEL] tile_residual
    cdef float[PANEL] tile_bias
    cdef Py_ssize_t n_bytes = (last - first) * sizeof(float)
    cdef Py_ssize_t i
    cdef const float *bias = NULL
    cdef const float *residual = NULL
    memset(tile_c, 0, sizeof(tile_c))
    if add:
        for i in range(rows):
            memcpy(tile_c + i * PANEL + first, c + i * c_stride, n_bytes)
    chains(rows, last, a, a_stride, b, k, tile_c, PANEL, add, <const char *> b, 0)
    if is_done:
        if epilogue.bias is not NULL:
            memset(tile_bias, 0, sizeof(tile_bias))
            memcpy(tile_bias + first, epilogue.bias + column, n_bytes)
            bias = tile_bias
        if epilogue.residual is not NULL:
            memset(tile_residual, 0, sizeof(tile_residual))
            for i in range(rows):
                memcpy(tile_residual + i * PANEL + first,
                       epilogue.residual + (row + i) * epilogue.residual_stride + column, n_bytes)
            residual = tile_residual
        finish(tile_c, PANEL, rows, last, bias, residual, PANEL, epilogue.activation)
    for i in range(rows):
        memcpy(c + i * c_stride, tile_c + i * PANEL + first, n_bytes)


cdef void chains(
    int rows, Py_ssize_t columns, const float *a, Py_ssize_t a_stride, const float *b, Py_ssize_t k,
    float *c, Py_ssize_t c_stride, bint add, const char *next_panel, int lines,
) noexcept nogil:
    """k of any length: a chain per CHAIN products, the first replacing c unless `add`."""
    cdef Py_ssize_t i, n
    for n in range((k + CHAIN - 1) // CHAIN):
        i = n * CHAIN
        chain(rows, columns, a + i, a_stride, b + i * PANEL, min(CHAIN, k - i), c, c_stride, add or i > 0,
              next_panel + i // 4 * lines * LINE, lines)


cdef void product(
    const float *a, Py_ssize_t a_stride, bint is_transposed, const float *panels, Py_ssize_t k,
    float *c, Py_ssize_t c_stride, Py_ssize_t row_begin, Py_ssize_t row_end, Py_ssize_t first_column,
    Py_ssize_t panel_begin, Py_ssize_t panel_end, Py_ssize_t n, bint accumulate, const Epilogue *epilogue, float *block,
    const float *after,
) noexcept nogil:
    """Rows [row_begin, row_end) x panels [panel_begin, panel_end) of C; one thread's share.

    C holds the columns [first_column, first_column + n) of the panels. A transposed A is copied
    to `block` (M_BLOCK x K_BLOCK floats), a block at a time. `after` is a panel to fetch at the end, or NULL.
    """
    cdef Py_ssize_t n_rows, n_k, n_tile, i0, k0, p, i, rows_here, k_here, column, first, last, block_stride, row_tile
    cdef const float *b
    cdef const float *block_a
    cdef const float *residual
    cdef const float *bias
    cdef const char *next_panel
    cdef bint is_done
    cdef int lines, lines_left
    cdef float *corner
    for n_rows in range((row_end - row_begin + M_BLOCK - 1) // M_BLOCK):
        i0 = row_begin + n_rows * M_BLOCK
        rows_here = min(M_BLOCK, row_end - i0)
        for n_k in range((k + K_BLOCK - 1) // K_BLOCK):
            k0 = n_k * K_BLOCK
            k_here = min(K_BLOCK, k - k0)
            is_done = k0 + k_here == k
            if is_transposed:
                transpose(a + k0 * a_stride + i0, a_stride, k_here, rows_here, block, k_here)
                block_a = block
                block_stride = k_here
            else:
                block_a = a + i0 * a_stride + k0
                block_stride = a_stride
            for p in range(panel_begin, panel_end):
                b = panels + (p * k + k0) * PANEL
                # While the rows of this panel are worked, the next one comes from memory.
                next_panel = <const char *> (b + k * PANEL)
                if p + 1 == panel_end:
                    next_panel = <const char *> (panels + (panel_begin * k + k0 + k_here) * PANEL)
                    if is_done:
                        next_panel = <const char *> (after if after is not NULL else b)
                column = p * PANEL - first_column
                first = max(0, -column)
                last = min(PANEL, n - column)
                column += first
                lines = lines_ahead(rows_here)
                lines_left = PANEL_LINES
                for n_tile in range((rows_here + TILE_ROWS - 1) // TILE_ROWS):
                    i = n_tile * TILE_ROWS
                    row_tile = min(TILE_ROWS, rows_here - i)
                    corner = c + (i0 + i) * c_stride + column
                    if first > 0 or last % LANES:
                        edge(<int> row_tile, first, last, block_a + i * block_stride, block_stride, b, k_here,
                             corner, c_stride, accumulate or k0 > 0, is_done, epilogue, column, i0 + i)
                        continue
                    chains(<int> row_tile, last, block_a + i * block_stride, block_stride, b, k_here,
                           corner, c_stride, accumulate or k0 > 0, next_panel, lines)
                    next_panel += k_here // 4 * lines * LINE
                    lines_left -= lines
                    lines = min(lines, lines_left)
                    if is_done:
                        bias = epilogue.bias + column if epilogue.bias is not NULL else NULL
                        residual = NULL
                        if epilogue.residual is not NULL:
                            residual = epilogue.residual + (i0 + i) * epilogue.residual_stride + column
                        finish(corner, c_stride, <int> row_tile, last, bias, residual, epilogue.residual_stride,
                               epilogue.activation)


cdef inline int lines_ahead(Py_ssize_t n_rows) noexcept nogil:
    """Cache lines of the next panel that a tile fetches per 4 k, so that `n_rows` rows fetch all of it."""
    cdef Py_ssize_t spread = min(n_rows, 6 * TILE_ROWS)
    return <int> min(PANEL_LINES, (PANEL_LINES * TILE_ROWS + spread - 1) // spread)


cdef void transpose(
    const float *x, Py_ssize_t x_stride, Py_ssize_t rows, Py_ssize_t columns, float *y, Py_ssize_t y_stride,
) noexcept nogil:
    """y[columns, rows] = x[rows, columns]ᵀ, in blocks of 4 x 4, one cache line of every row of x at a time."""
    cdef Py_ssize_t i, j, j0, end
    for j0 in range(0, columns, 16):
        end = min(j0 + 16, columns)
        for i in range(0, rows - rows % 4, 4):
            for j in range(j0, end - end % 4, 4):
                transpose4(x + i * x_stride + j, x_stride, y + j * y_stride + i, y_stride)
        for j in range(j0, end):
            for i in range(rows - rows % 4 if j < end - end % 4 else 0, rows):
                y[j * y_stride + i] = x[i * x_stride + j]


cdef void split(Py_ssize_t row_tiles, Py_ssize_t n_panels, int n_threads, int *row_parts, int *panel_parts) noexcept nogil:
    """The grid row_parts x panel_parts <= n_threads whose largest share is smallest.

    Ties go to more panel parts: then each weight is read by fewer threads.
    """
    cdef Py_ssize_t cost, best = 0
    cdef int parts
    for parts in range(1, n_threads + 1):
        cost = ((n_panels + parts - 1) // parts) * ((row_tiles + n_threads // parts - 1) // (n_threads // parts))
        if best == 0 or cost <= best:
            best = cost
            panel_parts[0] = parts
            row_parts[0] = n_threads // parts


cdef struct Gemm:
    const float *a             # [M, K] of rows `a_stride` apart, or [K, M] if it is transposed
    Py_ssize_t a_stride
    bint is_transposed
    const float *panels
    Py_ssize_t k
    float *c                   # [M, N]: columns [first_column, first_column + N) of the panels
    Py_ssize_t m
    Py_ssize_t n
    Py_ssize_t first_column
    bint accumulate            # add to what C holds
    Epilogue epilogue


cdef bint multiply(const Gemm *g, int n_threads) noexcept nogil:
    """C = activation([C +] A . B + bias) + residual. False if there is no memory for the blocks of a transposed A."""
    cdef int row_parts = 1, panel_parts = 1, task
    cdef Py_ssize_t first_panel = g.first_column // PANEL
    cdef Py_ssize_t n_panels = (g.first_column + g.n + PANEL - 1) // PANEL - first_panel
    cdef Py_ssize_t row_tiles = (g.m + TILE_ROWS - 1) // TILE_ROWS
    cdef float *blocks = NULL
    split(row_tiles, n_panels, n_threads, &row_parts, &panel_parts)
    if g.is_transposed:
        blocks = <float *> malloc(row_parts * panel_parts * M_BLOCK * K_BLOCK * sizeof(float))
        if blocks is NULL:
            return False
    for task in prange(row_parts * panel_parts, schedule="static", num_threads=n_threads):
        product(
            g.a, g.a_stride, g.is_transposed, g.panels, g.k, g.c, g.n,
            row_tiles * (task // panel_parts) // row_parts * TILE_ROWS,
            min(g.m, row_tiles * (task // panel_parts + 1) // row_parts * TILE_ROWS), g.first_column,
            first_panel + n_panels * (task % panel_parts) // panel_parts,
            first_panel + n_panels * (task % panel_parts + 1) // panel_parts,
            g.n, g.accumulate, &g.epilogue, blocks + (task * M_BLOCK * K_BLOCK if g.is_transposed else 0), NULL,
        )
    free(blocks)
    return True


def gemm(
    const float[:, :] a, const float[:, :, ::1] panels, const float[::1] bias, const float[:, :] residual,
    float[:, ::1] out, Py_ssize_t first_column, int activation, bint transpose_a, bint accumulate, int n_threads,
):
    """out = activation([out +] A . B[:, first_column : first_column + N] + bias) + residual.

    Parameters
    ----------
    a : (M, K), or (K, M) with transpose_a; unit stride along the last axis
    panels : (n_panels, K, PANEL), from `pack_rows` or `pack_columns`
    bias : (N,) or None
    residual : (M, N), unit stride along the last axis, or None
    out : (M, N); may not overlap the inputs. With `accumulate` the product is added to what it holds.
    """
    cdef Gemm g
    cdef bint is_done
    if out.shape[0] == 0 or out.shape[1] == 0:
        return
    if panels.shape[1] == 0:
        raise ValueError("gemm needs K >= 1")
    g.a = &a[0, 0]
    g.a_stride = a.strides[0] // <Py_ssize_t> sizeof(float)
    g.is_transposed = transpose_a
    g.panels = &panels[0, 0, 0]
    g.k = panels.shape[1]
    g.c = &out[0, 0]
    g.m = out.shape[0]
    g.n = out.shape[1]
    g.first_column = first_column
    g.accumulate = accumulate
    g.epilogue.bias = &bias[0] if bias is not None else NULL
    g.epilogue.residual = &residual[0, 0] if residual is not None else NULL
    g.epilogue.residual_stride = residual.strides[0] // <Py_ssize_t> sizeof(float) if residual is not None else 0
    g.epilogue.activation = activation
    with nogil:
        is_done = multiply(&g, n_threads)
    if not is_done:
        raise MemoryError("gemm: no memory for the blocks of a transposed operand")


def pack_rows(const float[:, :] w, float[:, :, ::1] panels, int n_threads):
    """Panels of B = Wᵀ, from W (N, K): a row of W becomes a column. For X . Wᵀ."""
    cdef Py_ssize_t n = w.shape[0], k = w.shape[1], p, n_panels = panels.shape[0]
    if n == 0 or k == 0:
        return
    cdef const float *pw = &w[0, 0]
    cdef Py_ssize_t stride = w.strides[0] // <Py_ssize_t> sizeof(float)
    cdef float *out = &panels[0, 0, 0]
    for p in prange(n_panels, nogil=True, schedule="static", num_threads=n_threads):
        pack_panel_rows(pw + p * PANEL * stride, stride, min(PANEL, n - p * PANEL), k, out + p * k * PANEL)


cdef void pack_panel_rows(const float *w, Py_ssize_t stride, Py_ssize_t columns, Py_ssize_t k, float *out) noexcept nogil:
    if columns < PANEL:
        memset(out, 0, k * PANEL * sizeof(float))
    transpose(w, stride, columns, k, out, PANEL)


def pack_columns(const float[:, :] b, float[:, :, ::1] panels, int n_threads):
    """Panels of B (K, N) as it lies. For dY . W and dYᵀ . X."""
    cdef Py_ssize_t k = b.shape[0], n = b.shape[1], p, n_panels = panels.shape[0]
    if n == 0 or k == 0:
        return
    cdef const float *pb = &b[0, 0]
    cdef Py_ssize_t stride = b.strides[0] // <Py_ssize_t> sizeof(float)
    cdef float *out = &panels[0, 0, 0]
    for p in prange(n_panels, nogil=True, schedule="static", num_threads=n_threads):
        pack_panel_columns(pb + p * PANEL, stride, min(PANEL, n - p * PANEL), k, out + p * k * PANEL)


cdef void pack_panel_columns(const float *b, Py_ssize_t stride, Py_ssize_t columns, Py_ssize_t k, float *out) noexcept nogil:
    cdef Py_ssize_t i
    if columns < PANEL:
        memset(out, 0, k * PANEL * sizeof(float))
    for i in range(k):
        memcpy(out + i * PANEL, b + i * stride, columns * sizeof(float))


def unpack_rows(const float[:, :, ::1] panels, float[:, ::1] w, int n_threads):
    """W (N, K) back from the panels of `pack_rows`."""
    cdef Py_ssize_t n = w.shape[0], k = w.shape[1], i
    if n == 0 or k == 0:
        return
    cdef const float *pp = &panels[0, 0, 0]
    cdef float *pw = &w[0, 0]
    for i in prange(n, nogil=True, schedule="static", num_threads=n_threads):
        unpack_row(pp, k, i, pw + i * k)


cdef inline void unpack_row(const float *panels, Py_ssize_t k, Py_ssize_t row, float *out) noexcept nogil:
    cdef const float *p = panels + row // PANEL * k * PANEL + row % PANEL
    cdef Py_ssize_t i
    for i in range(k):
        out[i] = p[i * PANEL]


def column_sum(const float[:, ::1] x, float[::1] out, int n_threads):
    """out[j] = sum_i x[i, j], in float64 and in row order: the gradient of a bias."""
    cdef Py_ssize_t n_rows = x.shape[0], n = x.shape[1], block
    if n == 0:
        return
    cdef const float *px = &x[0, 0] if n_rows else NULL
    cdef float *po = &out[0]
    for block in prange((n + 63) // 64, nogil=True, schedule="static", num_threads=n_threads):
        sum_columns(px + block * 64, n, n_rows, min(64, n - block * 64), po + block * 64)


cdef void sum_columns(const float *x, Py_ssize_t stride, Py_ssize_t n_rows, Py_ssize_t n, float *out) noexcept nogil:
    cdef double[64] totals
    cdef Py_ssize_t i, j
    for j in range(n):
        totals[j] = 0
    for i in range(n_rows):
        for j in range(n):
            totals[j] += x[i * stride + j]
    for j in range(n):
        out[j] = <float> totals[j]
