# The vector layer: the one place that knows instruction sets. Everything else in this folder is
# written once, over `vf` (LANES floats) and `vi` (LANES int32), and compiled once per stub.
#
# Every fused multiply-add is spelled `fma` (the build passes -ffp-contract=off), so the instruction
# sets that have one give the same bits; the x86-64 baseline rounds twice and stays within 1e-6.
# AVX-512 and NEON have 32 vector registers, the others 16: hence the height of the register tile.

cdef extern from *:
    """
    #include <math.h>
    #include <stddef.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #if defined(__x86_64__)
    #include <immintrin.h>
    #elif defined(__aarch64__)
    #include <arm_neon.h>
    #endif

    #if defined(__AVX512F__)
    #define LANES 16
    #define TILE_ROWS 8
    #elif defined(__AVX2__)
    #define LANES 8
    #define TILE_ROWS 4
    #elif defined(__aarch64__)
    #define LANES 4
    #define TILE_ROWS 8
    #else
    #define LANES 4
    #define TILE_ROWS 4
    #endif

    /* aligned(4): rows of any width may be loaded; may_alias: buffers are plain float arrays. */
    typedef float vf __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
    typedef int32_t vi __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
    typedef uint32_t vu __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

    #define LUCID_INLINE static inline __attribute__((always_inline))

    LUCID_INLINE vf load(const float *p) { return *(const vf *)p; }
    LUCID_INLINE void store(float *p, vf x) { *(vf *)p = x; }
    LUCID_INLINE vf as_float(vi x) { return (vf)x; }
    LUCID_INLINE vi as_bits(vf x) { return (vi)x; }
    /* 2^n, made of the integers n in the low bits; unsigned, since lanes out of range wrap around before another value is chosen. */
    LUCID_INLINE vf power_of_2(vf n) { return (vf)(((vu)n << 23) + 0x3f800000u); }
    LUCID_INLINE vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
    LUCID_INLINE vi less(vf a, vf b) { return a < b; }

    #if LANES == 16
    LUCID_INLINE vf set1(float x) { return (vf)_mm512_set1_ps(x); }
    LUCID_INLINE vf fma_(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
    LUCID_INLINE vf max_(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
    LUCID_INLINE vf min_(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
    #elif LANES == 8
    LUCID_INLINE vf set1(float x) { return (vf)_mm256_set1_ps(x); }
    LUCID_INLINE vf fma_(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
    LUCID_INLINE vf max_(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
    LUCID_INLINE vf min_(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
    #else
    LUCID_INLINE vf set1(float x) { return (vf){x, x, x, x}; }
    #if defined(__aarch64__)
    LUCID_INLINE vf fma_(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
    #else
    LUCID_INLINE vf fma_(vf a, vf b, vf c) { return a * b + c; }
    #endif
    LUCID_INLINE vf max_(vf a, vf b) { return choose(a > b, a, b); }   /* like maxps: b where either is NaN */
    LUCID_INLINE vf min_(vf a, vf b) { return choose(a < b, a, b); }
    #endif

    #if defined(__FMA__) || defined(__aarch64__)
    #define fma1(a, b, c) __builtin_fmaf(a, b, c)
    #else
    #define fma1(a, b, c) ((a) * (b) + (c))
    #endif

    /* c += x * b with c kept where it is. Left to itself GCC reloads b for every product and moves
       accumulators between registers, which halves the speed of the register tile. */
    #if LANES == 16 || LANES == 8
    #define ACCUMULATE(c, x, b) __asm__("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(x), "v"(b))
    #elif defined(__aarch64__)
    #define ACCUMULATE(c, x, b) __asm__("fmla %0.4s, %2.4s, %1.s[0]" : "+w"(c) : "w"((x)[0]), "w"(b))
    #else
    #define ACCUMULATE(c, x, b) ((c) = fma_(x, b, c))
    #endif
    /* An integer or a pointer that GCC must have in a register here, and may not work out anew from others. On aarch64, which has
       twice as many, it does well by itself, and this would cost the register tile one of its own. */
    #if defined(__x86_64__)
    #define KEEP(p) __asm__("" : "+r"(p))
    #else
    #define KEEP(p) (void)(p)
    #endif
    #define PREFETCH(p) __builtin_prefetch((p), 0, 2)
    #define PREFETCH_WRITE(p) __builtin_prefetch((p), 1, 3)

    typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));
    typedef int32_t vi4 __attribute__((vector_size(16), aligned(4), may_alias));
    LUCID_INLINE v4 load4(const float *p) { return *(const v4 *)p; }
    LUCID_INLINE void store4(float *p, v4 x) { *(v4 *)p = x; }
    #if defined(__clang__)
    #define MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
    #else
    #define MIX(a, b, i, j, k, l) __builtin_shuffle(a, b, (vi4){i, j, k, l})
    #endif

    LUCID_INLINE float larger1(float a, float b) { return a > b ? a : b; }
    LUCID_INLINE v4 larger4(v4 a, v4 b) {
        vi4 m = a > b;
        return (v4)((m & (vi4)a) | (~m & (vi4)b));
    }

    /* y[j][i] = x[i][j] for 4 x 4 floats. */
    LUCID_INLINE void transpose4(const float *x, ptrdiff_t x_stride, float *y, ptrdiff_t y_stride) {
        v4 a = load4(x), b = load4(x + x_stride), c = load4(x + 2 * x_stride), d = load4(x + 3 * x_stride);
        v4 ab = MIX(a, b, 0, 4, 1, 5), cd = MIX(c, d, 0, 4, 1, 5);
        store4(y, MIX(ab, cd, 0, 1, 4, 5));
        store4(y + y_stride, MIX(ab, cd, 2, 3, 6, 7));
        ab = MIX(a, b, 2, 6, 3, 7);
        cd = MIX(c, d, 2, 6, 3, 7);
        store4(y + 2 * y_stride, MIX(ab, cd, 0, 1, 4, 5));
        store4(y + 3 * y_stride, MIX(ab, cd, 2, 3, 6, 7));
    }
    """
    enum: LANES      # floats of a vector
    enum: TILE_ROWS  # rows of the register tile of gemm.pyx: 4 or 8
    # To Cython a vector is a float, so that operators pass through to C, where they work lane by lane.
    ctypedef float vf
    ctypedef int vi
    vf load(const float *p) noexcept nogil
    void store(float *p, vf x) noexcept nogil
    vf set1(float x) noexcept nogil
    vf fma "fma_"(vf a, vf b, vf c) noexcept nogil
    vf maximum "max_"(vf a, vf b) noexcept nogil
    vf minimum "min_"(vf a, vf b) noexcept nogil
    vf as_float(vi x) noexcept nogil
    vi as_bits(vf x) noexcept nogil
    vf power_of_2(vf n) noexcept nogil
    vf choose(vi mask, vf yes, vf no) noexcept nogil
    vi less(vf a, vf b) noexcept nogil
    float fma1(float a, float b, float c) noexcept nogil
    void ACCUMULATE(vf c, vf x, vf b) noexcept nogil
    void KEEP "KEEP"(...) noexcept nogil
    void PREFETCH(const void *p) noexcept nogil
    void PREFETCH_WRITE(const void *p) noexcept nogil
    ctypedef float v4  # four floats, whatever LANES is
    v4 load4(const float *p) noexcept nogil
    void store4(float *p, v4 x) noexcept nogil
    v4 larger4(v4 a, v4 b) noexcept nogil
    float larger1(float a, float b) noexcept nogil
    void transpose4(const float *x, Py_ssize_t x_stride, float *y, Py_ssize_t y_stride) noexcept nogil
