# What this machine is. Built without instruction set flags: it must run anywhere.

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define HAS_OPENMP 1
    #else
    #define HAS_OPENMP 0
    static int omp_get_max_threads(void) { return 1; }
    #endif

    #if defined(__aarch64__)
    #define IS_AARCH64 1
    #else
    #define IS_AARCH64 0
    #endif

    /* __builtin_cpu_supports asks the operating system, too, whether it keeps the wide registers (XGETBV). */
    #if defined(__x86_64__)
    static int runs_avx2(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
    static int runs_avx512(void) {
        return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
    #else
    static int runs_avx2(void) { return 0; }
    static int runs_avx512(void) { return 0; }
    #endif
    """
    bint HAS_OPENMP
    bint IS_AARCH64
    bint runs_avx2() noexcept nogil
    bint runs_avx512() noexcept nogil
    int omp_get_max_threads() noexcept nogil


def instruction_sets():
    """Names of the kernel builds that this CPU and its operating system can run; the first is the default."""
    if IS_AARCH64:
        return ["neon"]
    # AVX-512 comes first: twice as fast where a core has 512-bit units, as fast where it works them in halves (docs/cpus.md).
    return (["avx512"] if runs_avx512() else []) + (["avx2"] if runs_avx2() else []) + ["baseline"]


def has_openmp():
    """Whether the kernels were built with OpenMP."""
    return bool(HAS_OPENMP)


def openmp_threads():
    """OpenMP's own limit for the calling thread: OMP_NUM_THREADS, threadpoolctl and the affinity mask."""
    return omp_get_max_threads()
