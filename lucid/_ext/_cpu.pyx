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

    static int cpu_has_avx2_fma(void) {
    #if defined(__x86_64__)
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    #else
        return 0;
    #endif
    }
    """
    bint HAS_OPENMP
    int omp_get_max_threads() nogil
    bint cpu_has_avx2_fma() nogil


def instruction_sets():
    """Names of the kernel builds that this CPU can run, the preferred one first."""
    return (["avx2"] if cpu_has_avx2_fma() else []) + ["baseline"]


def has_openmp():
    """Whether the kernels were built with OpenMP."""
    return bool(HAS_OPENMP)


def openmp_threads():
    """OpenMP's own limit for the calling thread: OMP_NUM_THREADS, threadpoolctl and the affinity mask."""
    return omp_get_max_threads()
