# The layers of BERT for inference: attention and feed-forward (Vaswani et al. 2017, section 3.1, with LayerNorm behind each sum), by
# the calls that the modules make one by one, in the same order, so the bits are the same. One by one each of them costs Python 20 us
# before it starts, and 200 where a product has just filled the caches; meanwhile the other threads wait.

from cpython.exc cimport PyErr_CheckSignals


cdef class EncoderLayer:
    """What one layer multiplies with, as pointers into arrays that it keeps.

    Parameters
    ----------
    n_heads : int. A divisor of C.
    scale : float. Of the products of queries and keys.
    activation : int
    qkv, dense, dense_in, dense_out : panels of (3C, C), (C, C), (F, C), (C, F), F >= 1
    qkv_bias, dense_bias, in_bias, out_bias : (3C,), (C,), (F,), (C,)
    attention_gain, attention_bias, attention_eps : (C,), (C,), float. Of LayerNorm behind attention.
    gain, bias, eps : (C,), (C,), float. Of LayerNorm behind the feed-forward.
    """

    cdef Gemm to_qkv, to_dense, to_inner, to_out
    cdef Norm behind_attention, behind_feed_forward
    cdef float scale
    cdef Py_ssize_t n_heads, width
    cdef tuple arrays

    def __init__(
        self, Py_ssize_t n_heads, float scale, int activation,
        const float[:, :, ::1] qkv, const float[::1] qkv_bias, const float[:, :, ::1] dense, const float[::1] dense_bias,
        const float[::1] attention_gain, const float[::1] attention_bias, float attention_eps,
        const float[:, :, ::1] dense_in, const float[::1] in_bias, const float[:, :, ::1] dense_out, const float[::1] out_bias,
        const float[::1] gain, const float[::1] bias, float eps,
    ):
        self.n_heads, self.scale, self.width = n_heads, scale, gain.shape[0]
        self.to_qkv = with_weight(qkv, qkv_bias)
        self.to_dense = with_weight(dense, dense_bias)
        self.to_inner = with_weight(dense_in, in_bias)
        self.to_inner.epilogue.activation = activation
        self.to_out = with_weight(dense_out, out_bias)
        self.to_dense.epilogue.residual_stride = self.to_out.epilogue.residual_stride = self.width
        self.behind_attention = Norm(&attention_gain[0], &attention_bias[0], attention_eps)
        self.behind_feed_forward = Norm(&gain[0], &bias[0], eps)
        self.arrays = (
            qkv.base, qkv_bias.base, dense.base, dense_bias.base, attention_gain.base, attention_bias.base,
            dense_in.base, in_bias.base, dense_out.base, out_bias.base, gain.base, bias.base,
        )


cdef inline Gemm with_weight(const float[:, :, ::1] panels, const float[::1] bias) noexcept:
    """A product with it, of rows that are yet to be said."""
    cdef Gemm g
    memset(&g, 0, sizeof(g))
    g.a_stride = g.k = panels.shape[1]
    g.panels = &panels[0, 0, 0]
    g.n = bias.shape[0]
    g.epilogue.bias = &bias[0]
    return g


# The rows that a layer is asked for, of all that it sees.
cdef struct Asked:
    Py_ssize_t n
    const int32_t *index
    const int32_t *starts  # those of sequence b are index[starts[b]] to index[starts[b + 1]]


cdef Py_ssize_t run_layer(
    EncoderLayer layer, const float *x, Py_ssize_t n_rows, const int32_t *starts, Py_ssize_t n_sequences, const Asked *asked,
    float *scratch, float *y, int n_threads, Py_ssize_t grain,
) noexcept nogil:
    """y = LayerNorm(h + feed-forward(h)), h = LayerNorm(x + attention(x)). Return what attention does.

    y may be x; with `asked` it is another, and has its rows only: then keys and values are made of all, the rest of those.
    """
    cdef Py_ssize_t width = layer.width, n = n_rows if asked is NULL else asked.n, i, missing
    cdef float *total = scratch                     # what is normalised
    cdef float *wide = total + n_rows * width       # Q, K and V; later what the activation returns
    cdef float *context = wide + 3 * n_rows * width
    cdef int norm_threads = 1 if n * width < grain else n_threads
    cdef AttentionCall attention
    memset(&attention, 0, sizeof(attention))        # no dropout, nothing for a backward
    attention.n_heads = layer.n_heads
    attention.head_width = width // layer.n_heads
    attention.scale = layer.scale
    attention.out = context
    if asked is NULL:
        rows_times(layer.to_qkv, x, n, NULL, wide, n_threads)
        attention.q = wide
        attention.k = wide + width
        attention.q_stride = attention.k_stride = 3 * width
    else:
        rows_times(columns_of(layer.to_qkv, width, 3 * width), x, n_rows, NULL, wide, n_threads)
        for i in range(n):
            memcpy(y + i * width, x + asked.index[i] * width, width * sizeof(float))
        x = y
        attention.q = wide + 2 * n_rows * width
        rows_times(columns_of(layer.to_qkv, 0, width), x, n, NULL, wide + 2 * n_rows * width, n_threads)
        attention.k = wide
        attention.q_stride = width
        attention.k_stride = 2 * width
    attention.v = attention.k + width
    attention.v_stride = attention.k_stride
    missing = attend_all(&attention, starts if asked is NULL else asked.starts, starts, NULL, n_sequences, n_threads)
    if missing:
        return missing
    rows_times(layer.to_dense, context, n, x, total, n_threads)
    normalise(&layer.behind_attention, total, y, n, width, norm_threads)
    rows_times(layer.to_inner, y, n, NULL, wide, n_threads)
    rows_times(layer.to_out, wide, n, y, total, n_threads)
    normalise(&layer.behind_feed_forward, total, y, n, width, norm_threads)
    return 0


cdef inline Gemm columns_of(Gemm g, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The same product, of these columns of the weight only."""
    g.first_column = begin
    g.n = end - begin
    g.epilogue.bias += begin
    return g


cdef inline void rows_times(Gemm g, const float *a, Py_ssize_t n_rows, const float *residual, float *c, int n_threads) noexcept nogil:
    g.a = a
    g.m = n_rows
    g.c = c
    g.epilogue.residual = residual
    multiply(&g, n_threads)


def encoder_forward(
    list layers, const float[:, ::1] x, const int32_t[::1] starts, const int32_t[::1] rows, const int32_t[::1] row_starts,
    float[::1] scratch, float[:, ::1] hidden, float[:, ::1] out, int n_threads, Py_ssize_t grain,
):
    """out = the layers, one after the other, of x.

    Parameters
    ----------
    layers : of EncoderLayer, one at least, all of width C
    x : (T, C), T >= 1
    starts : (B + 1,); the rows of sequence b are starts[b] to starts[b + 1]
    rows, row_starts : (P,), (B + 1,), P >= 1, or None. What the last layer is asked for; row_starts tells whose they are.
    scratch : (T * (C + max(4C, F)),), for the largest F
    hidden : (T, C), what all layers but the last return; with `rows` it is not `out`
    out : (T, C), or (P, C)
    n_threads : of products and attention
    grain : numbers below which a normalisation has one thread
    """
    cdef const float *px = &x[0, 0]
    cdef const int32_t *ps = &starts[0]
    cdef float *scratch_begin = &scratch[0]
    cdef float *h = &hidden[0, 0]
    cdef Asked asked
    cdef const Asked *of_last = NULL
    cdef EncoderLayer layer
    cdef Py_ssize_t i, missing, n_layers = len(layers)
    if rows is not None:
        asked.n = rows.shape[0]
        asked.index = &rows[0]
        asked.starts = &row_starts[0]
        of_last = &asked
    for i in range(n_layers):
        layer = layers[i]
        if i == n_layers - 1:
            h = &out[0, 0]
        with nogil:
            missing = run_layer(layer, px, x.shape[0], ps, starts.shape[0] - 1, of_last if i == n_layers - 1 else NULL,
                                   scratch_begin, h, n_threads, grain)
        if missing:
            raise MemoryError(f"encoder: no memory for {missing} bytes of keys and values")
        PyErr_CheckSignals()
        px = h
