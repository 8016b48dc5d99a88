/* What a machine can do at most: `fma` prints GFLOP/s in float32 (registers only), `read BYTES` prints GB/s from memory.
   Compiled at run time, with WIDTH bytes to a register; the number of threads is OpenMP's. */
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

typedef float vec __attribute__((vector_size(WIDTH)));
enum { LANES = WIDTH / 4, CHAINS = 12, REPEATS = 5 };

static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* Processor time of the slowest thread: what the wall clock would show on a machine without other work. */
static double fma_rate(void) {
    double best = 0;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        const long n = 8000000;
        int threads = 1;
        volatile float sink = 0;
        double longest = 0;
        #pragma omp parallel reduction(max: longest)
        {
            double begin = seconds(CLOCK_THREAD_CPUTIME_ID);
            vec a[CHAINS], x, y;
            /* No two chains and no two lanes alike, or the compiler works some of them once for all. */
            for (int j = 0; j < LANES; j++) { x[j] = 0.9999f; y[j] = 0.0001f * (float)(j + 1); }
            for (int i = 0; i < CHAINS; i++) a[i] = x * (float)(i + 1);
            for (long k = 0; k < n; k++)
                #pragma GCC unroll 12
                for (int i = 0; i < CHAINS; i++) a[i] = a[i] * x + y;
            volatile float sum = 0; /* or the clock may be read before the work is done */
            for (int i = 0; i < CHAINS; i++) sum += a[i][0];
            longest = seconds(CLOCK_THREAD_CPUTIME_ID) - begin;
            #pragma omp critical
            { sink += sum; threads = omp_get_num_threads(); }
        }
        double rate = 2.0 * CHAINS * LANES * n * threads / longest / 1e9;
        if (rate > best) best = rate;
    }
    return best;
}

static float sum_of(const char *p, size_t n, size_t ahead) {
    vec s[4];
    memset(s, 0, sizeof s);
    for (size_t i = 0; i + 4 * WIDTH <= n; i += 4 * WIDTH) {
        for (size_t line = 0; line < 4 * WIDTH; line += 64) __builtin_prefetch(p + i + ahead + line);
        for (int j = 0; j < 4; j++) s[j] += *(const vec *)(p + i + j * WIDTH);
    }
    return s[0][0] + s[1][0] + s[2][0] + s[3][0];
}

/* By the wall clock: threads that take turns would each have the memory to themselves. */
static double read_rate(size_t n) {
    double best = 0;
    const size_t ahead[] = {1024, 4096, 16384}, spare = 1 << 20;
    char *memory = aligned_alloc(1 << 21, (n + spare + (1 << 21)) >> 21 << 21);
    if (!memory) return 0;
    madvise(memory, n, MADV_HUGEPAGE);
    #pragma omp parallel
    { size_t part = n / omp_get_num_threads() & ~(size_t)4095; memset(memory + part * omp_get_thread_num(), 0, part); }
    for (int repeat = 0; repeat < 3 * REPEATS; repeat++) {
        volatile float sink = 0;
        size_t part = 1;
        int threads = 1;
        double begin = seconds(CLOCK_MONOTONIC);
        #pragma omp parallel
        {
            size_t own = n / omp_get_num_threads() & ~(size_t)4095;
            float sum = sum_of(memory + own * omp_get_thread_num(), own, ahead[repeat % 3]);
            #pragma omp critical
            { sink += sum; part = own; threads = omp_get_num_threads(); }
        }
        double rate = (double)part * threads / (seconds(CLOCK_MONOTONIC) - begin) / 1e9;
        if (rate > best) best = rate;
    }
    free(memory);
    return best;
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "fma")) printf("%.2f\n", fma_rate());
    else if (argc == 3 && !strcmp(argv[1], "read")) printf("%.2f\n", read_rate(strtoull(argv[2], 0, 10)));
    else return 2;
    return 0;
}
