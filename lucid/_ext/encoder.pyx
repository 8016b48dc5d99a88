# The layers of BERT for inference: attention and feed-forward (Vaswani et al. 2017, section 3.1, with LayerNorm behind each sum), by
# the calls that lucid/models/bert/backbone.py makes one by one, in the same order, so the bits are the same. One by one each of them
# costs Python 20 us before it starts, and 200 where a product has just filled the caches; meanwhile the other threads wait.

from cpython.exc cimport PyErr_CheckSignals


cdef class EncoderLayer:
    """What one layer multiplies with, as pointers into arrays that it keeps.

    Parameters
    ----------
    n_heads : int. A divisor of C.
    scale : float. Of the products of queries and keys.
    activation : int
    qkv, dense, dense_in, dense_out : panels of (3C, C), (C, C), (I, C), (C, I), I >= 1
    qkv_bias, dense_bias, in_bias, out_bias : (3C,), (C,), (I,), (C,)
    attention_gain, attention_offset, gain, offset : (C,). Of LayerNorm behind attention, and behind the feed-forward.
    attention_eps, eps : float
    """

    cdef Gemm to_qkv, to_dense, to_inner, to_out
    cdef const float *attention_gain
    cdef const float *attention_offset
    cdef const float *gain
    cdef const float *offset
    cdef float attention_eps, eps, scale
    cdef Py_ssize_t n_heads, width, inner
    cdef tuple arrays

    def __init__(
        self, Py_ssize_t n_heads, float scale, int activation,
        const float[:, :, ::1] qkv, const float[::1] qkv_bias, const float[:, :, ::1] dense, const float[::1] dense_bias,
        const float[::1] attention_gain, const float[::1] attention_offset, float attention_eps,
        const float[:, :, ::1] dense_in, const float[::1] in_bias, const float[:, :, ::1] dense_out, const float[::1] out_bias,
        const float[::1] gain, const float[::1] offset, float eps,
    ):
        self.n_heads, self.scale = n_heads, scale
        self.width, self.inner = gain.shape[0], in_bias.shape[0]
        self.to_qkv = with_weight(qkv, qkv_bias)
        self.to_dense = with_weight(dense, dense_bias)
        self.to_inner = with_weight(dense_in, in_bias)
        self.to_inner.epilogue.activation = activation
        self.to_out = with_weight(dense_out, out_bias)
        self.to_dense.epilogue.residual_stride = self.to_out.epilogue.residual_stride = self.width
        self.attention_gain, self.attention_offset, self.attention_eps = &attention_gain[0], &attention_offset[0], attention_eps
        self.gain, self.offset, self.eps = &gain[0], &offset[0], eps
        self.arrays = (
            qkv.base, qkv_bias.base, dense.base, dense_bias.base, attention_gain.base, attention_offset.base,
            dense_in.base, in_bias.base, dense_out.base, out_bias.base, gain.base, offset.base,
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


cdef bint run_layer(
    EncoderLayer layer, const float *x, Py_ssize_t n_rows, const int32_t *starts, Py_ssize_t n_sequences, float *scratch, float *y,
    int n_threads, int n_norm_threads,
) noexcept nogil:
    """y = LayerNorm(h + feed-forward(h)), h = LayerNorm(x + attention(x)); y may be x. False if there is no memory for a head."""
    cdef Py_ssize_t width = layer.width
    cdef float *total = scratch                     # what is normalised
    cdef float *wide = total + n_rows * width       # Q, K and V; later what the activation returns
    cdef float *context = wide + 3 * n_rows * width
    cdef AttentionCall attention
    memset(&attention, 0, sizeof(attention))        # no dropout, nothing for a backward
    attention.q = wide
    attention.k = wide + width
    attention.v = wide + 2 * width
    attention.q_stride = attention.k_stride = attention.v_stride = 3 * width
    attention.n_heads = layer.n_heads
    attention.head_width = width // layer.n_heads
    attention.scale = layer.scale
    attention.out = context
    rows_times(layer.to_qkv, x, n_rows, NULL, wide, n_threads)
    if not attend_all(&attention, starts, starts, NULL, n_sequences, n_threads):
        return False
    rows_times(layer.to_dense, context, n_rows, x, total, n_threads)
    normalise(total, y, n_rows, width, layer.attention_gain, layer.attention_offset, layer.attention_eps, n_norm_threads)
    rows_times(layer.to_inner, y, n_rows, NULL, wide, n_threads)
    rows_times(layer.to_out, wide, n_rows, y, total, n_threads)
    normalise(total, y, n_rows, width, layer.gain, layer.offset, layer.eps, n_norm_threads)
    return True


cdef inline void rows_times(Gemm g, const float *a, Py_ssize_t n_rows, const float *residual, float *c, int n_threads) noexcept nogil:
    g.a = a
    g.m = n_rows
    g.c = c
    g.epilogue.residual = residual
    multiply(&g, n_threads)


def encoder_forward(
    list layers, const float[:, ::1] x, const int32_t[::1] starts, float[::1] scratch, float[:, ::1] out, int n_threads, int n_norm_threads,
):
    """out = the layers, one after the other, of x.

    Parameters
    ----------
    layers : of EncoderLayer, one at least, all of width C
    x, out : (T, C), T >= 1
    starts : (B + 1,); the rows of sequence b are starts[b] to starts[b + 1]
    scratch : (T * (C + max(4C, I)),), for the largest I
    n_threads, n_norm_threads : of products and attention; of the normalisations
    """
    cdef const float *rows = &x[0, 0]
    cdef const int32_t *ps = &starts[0]
    cdef float *ph = &scratch[0]
    cdef float *po = &out[0, 0]
    cdef EncoderLayer layer
    cdef bint has_memory
    for layer in layers:
        with nogil:
            has_memory = run_layer(layer, rows, x.shape[0], ps, starts.shape[0] - 1, ph, po, n_threads, n_norm_threads)
        if not has_memory:
            raise MemoryError("encoder: no memory for the keys and values of a head")
        PyErr_CheckSignals()
        rows = po
