// A grid of CUDA threads on one CPU thread, so that the source of a GPU kernel can be run and watched without a GPU.
//
// Blocks run one after the other. Each thread of a block is a fiber with a small stack of its own; at a barrier, a shuffle or
// any other meeting of threads it gives way to the next one. A warp that meets at different lines, threads that wait for ever,
// and memory that a kernel may not touch end the launch with a message.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define LUCID_EMULATOR 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __shared__ static
#define __constant__ static
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::dynamic_shared)

struct dim3 {
  unsigned x, y, z;
};

namespace emulator {

const int WARP = 32, MOST_THREADS = 1024;
const size_t STACK = 128 << 10, PAGE = 4096;

enum State { READY, AT_BARRIER, AT_WARP, DONE };

struct Copy {  // of cp.async: it arrives when it is waited for, not before
  void* to;
  const void* from;
  int size, group;
};

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  char* stack;
  dim3 index;
  int number, lane, line, turn, n_copies, group;
  bool is_started;
  State state;
  Copy copies[64];
};

struct Warp {
  int n_waiting, line;
  alignas(16) unsigned char given[2][WARP][64];
};

static Fiber fibers[MOST_THREADS];
static Warp warps[MOST_THREADS / WARP];
static Fiber* current;
static int n_threads, barrier_sum, barrier_result;
static bool copies_at_once;  // of cp.async: else when they are waited for; a kernel must bear both
static dim3 grid_size, block_size, block_index;
static unsigned char* dynamic_shared;
static size_t shared_size;
static jmp_buf scheduler;
static sigjmp_buf outside;
static char* message;
static size_t message_size;
static void* fault_address;
static const void* body;
static void (*run_body)(const void*);

[[noreturn]] static void fail(const char* format, ...) {
  va_list args;
  va_start(args, format);
  int n = vsnprintf(message, message_size, format, args);
  va_end(args);
  if (current && n < (int)message_size)
    snprintf(message + n, message_size - n, ", in thread (%u, %u, %u) of block (%u, %u, %u)", current->index.x, current->index.y,
             current->index.z, block_index.x, block_index.y, block_index.z);
  siglongjmp(outside, 1);
}

static void leave() {
  if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
}

static void first_step() {
  run_body(body);
  if (current->n_copies) fail("a thread ends while copies to shared memory are under way");
  current->state = DONE;
  leave();
  abort();
}

static void enter(Fiber* fiber) {
  current = fiber;
  if (_setjmp(scheduler) == 0) {
    if (fiber->is_started) _longjmp(fiber->resume, 1);
    fiber->is_started = true;
    setcontext(&fiber->start);
  }
  current = nullptr;
}

// Give something to the other lanes, and wait until each lane has; what lane i gave is at [i * 64].
static inline const unsigned char* meet(unsigned mask, const void* given, size_t size, int line) {
  Fiber* me = current;
  Warp& warp = warps[me->number / WARP];
  if (mask != 0xffffffffu) fail("line %d: the emulator knows whole warps only, not mask %#x", line, mask);
  if (n_threads % WARP) fail("line %d: lanes meet, but the block has %d threads: some warp is not whole", line, n_threads);
  if (warp.n_waiting && warp.line != line) fail("lanes of a warp meet at line %d and at line %d", warp.line, line);
  warp.line = line;
  const int turn = me->turn;
  me->turn ^= 1;
  memcpy(warp.given[turn][me->lane], given, size);
  if (++warp.n_waiting == WARP) {
    warp.n_waiting = 0;
    for (int i = 0; i < WARP; ++i) fibers[me->number - me->lane + i].state = READY;
  } else {
    me->state = AT_WARP;
    me->line = line;
    leave();
  }
  return warp.given[turn][0];
}

static inline int barrier(int value, int line) {
  current->state = AT_BARRIER;
  current->line = line;
  barrier_sum += value != 0;
  leave();
  return barrier_result;
}

static void run_block(bool is_reversed) {
  memset(warps, 0, sizeof warps);
  if (shared_size) memset(dynamic_shared, 0xff, shared_size);  // NaN, in every type
  for (int i = 0; i < n_threads; ++i) {
    Fiber& f = fibers[i];
    if (!f.stack) {
      f.stack = (char*)mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      mprotect(f.stack, PAGE, PROT_NONE);
    }
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack + PAGE;
    f.start.uc_stack.ss_size = STACK;
    f.start.uc_link = nullptr;
    makecontext(&f.start, first_step, 0);
    const unsigned n = i;
    f.index = {n % block_size.x, n / block_size.x % block_size.y, n / block_size.x / block_size.y};
    f.number = i, f.lane = i % WARP, f.turn = 0, f.n_copies = 0, f.group = 0, f.is_started = false, f.state = READY;
  }
  while (true) {
    bool has_moved = false;
    for (int i = 0; i < n_threads; ++i) {
      Fiber* f = &fibers[is_reversed ? n_threads - 1 - i : i];
      if (f->state == READY) enter(f), has_moved = true;
      if (is_reversed && i % WARP == WARP - 1) {  // a warp runs ahead of the others as far as it may
        bool is_ready = false;
        for (int lane = 0; lane < WARP; ++lane) is_ready |= fibers[n_threads - 1 - i + lane].state == READY;
        if (is_ready) i -= WARP;
      }
    }
    if (has_moved) continue;
    Fiber *at_barrier = nullptr, *at_warp = nullptr;
    for (int i = 0; i < n_threads; ++i) {
      Fiber& f = fibers[i];
      if (f.state == AT_WARP) at_warp = &f;
      if (f.state != AT_BARRIER) continue;
      if (at_barrier && at_barrier->line != f.line) fail("threads of a block wait at the barriers of lines %d and %d", at_barrier->line, f.line);
      at_barrier = &f;
    }
    if (at_warp) fail("line %d: lanes wait for others of their warp, which never come", at_warp->line);
    if (!at_barrier) return;
    // Those that have returned do not count: so it is on a GPU.
    barrier_result = barrier_sum, barrier_sum = 0;
    for (int i = 0; i < n_threads; ++i)
      if (fibers[i].state == AT_BARRIER) fibers[i].state = READY;
  }
}

static void on_signal(int signal, siginfo_t* info, void*) {
  fault_address = info->si_addr;
  if (signal == SIGILL || signal == SIGTRAP)
    fail("undefined behaviour: an index outside of an array whose size is known, a shift too far, or the like");
  if (signal == SIGFPE) fail("an integer divided by zero");
  fail("memory that is not the kernel's, at %p", fault_address);
}

static int run_grid(const unsigned* sizes, size_t shared, int is_reversed, char* text, size_t text_size, void** address) {
  static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE}, N = 5;
  static char* signal_stack = (char*)malloc(64 << 10);
  copies_at_once = is_reversed;
  message = text, message_size = text_size, message[0] = 0, current = nullptr, fault_address = nullptr, barrier_sum = 0;
  grid_size = {sizes[0], sizes[1], sizes[2]}, block_size = {sizes[3], sizes[4], sizes[5]};
  n_threads = block_size.x * block_size.y * block_size.z;
  const size_t held = (shared + PAGE - 1) / PAGE * PAGE;
  unsigned char* memory = (unsigned char*)mmap(nullptr, held + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(memory + held, PAGE, PROT_NONE);
  shared_size = shared, dynamic_shared = memory + (held - shared) / 16 * 16;  // it ends at a page that nobody may touch
  stack_t before_stack, alternative = {};
  alternative.ss_sp = signal_stack, alternative.ss_size = 64 << 10;
  struct sigaction before[N], action = {};
  action.sa_sigaction = on_signal, action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaltstack(&alternative, &before_stack);
  for (int i = 0; i < N; ++i) sigaction(SIGNALS[i], &action, &before[i]);
  int status = sigsetjmp(outside, 1);
  if (status == 0) {
    if (n_threads < 1 || n_threads > MOST_THREADS) fail("a block of %d threads", n_threads);
    const unsigned n_blocks = grid_size.x * grid_size.y * grid_size.z;
    for (unsigned i = 0; i < n_blocks; ++i) {
      const unsigned n = is_reversed ? n_blocks - 1 - i : i;
      block_index = {n % grid_size.x, n / grid_size.x % grid_size.y, n / grid_size.x / grid_size.y};
      run_block(is_reversed);
    }
  }
  for (int i = 0; i < N; ++i) sigaction(SIGNALS[i], &before[i], nullptr);
  if (before_stack.ss_flags & SS_DISABLE) before_stack = {}, before_stack.ss_flags = SS_DISABLE;
  sigaltstack(&before_stack, nullptr);
  munmap(memory, held + PAGE);
  *address = fault_address;
  return status;
}

template <typename... P> struct Call {
  void (*kernel)(P...);
  void** args;
};

template <typename... P, size_t... I> void call(const Call<P...>& c, std::index_sequence<I...>) {
  c.kernel(*reinterpret_cast<std::remove_cv_t<P>*>(c.args[I])...);
}

template <typename... P>
int run(void (*kernel)(P...), const unsigned* sizes, size_t shared, void** args, int is_reversed, char* text, size_t text_size, void** address) {
  const Call<P...> c{kernel, args};
  body = &c;
  run_body = [](const void* that) { call(*static_cast<const Call<P...>*>(that), std::index_sequence_for<P...>{}); };
  return run_grid(sizes, shared, is_reversed, text, text_size, address);
}

}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define warpSize 32

// Where threads meet

#define HERE int line = __builtin_LINE()

inline void __syncthreads(HERE) { emulator::barrier(0, line); }
inline int __syncthreads_or(int value, HERE) { return emulator::barrier(value, line) != 0; }
inline int __syncthreads_count(int value, HERE) { return emulator::barrier(value, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, HERE) { emulator::meet(mask, &mask, 4, line); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T> T given_by(const unsigned char* given, int lane) {
  T value;
  memcpy(&value, given + 64 * lane, sizeof value);
  return value;
}
template <typename T> T __shfl_sync(unsigned mask, T value, int lane, HERE) {
  return given_by<T>(emulator::meet(mask, &value, sizeof value, line), lane & 31);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int bits, HERE) {
  const int lane = emulator::current->lane ^ bits;
  return given_by<T>(emulator::meet(mask, &value, sizeof value, line), lane & 31);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, HERE) {
  const int lane = emulator::current->lane + delta;
  return given_by<T>(emulator::meet(mask, &value, sizeof value, line), lane < 32 ? lane : emulator::current->lane);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, HERE) {
  const int lane = emulator::current->lane - (int)delta;
  return given_by<T>(emulator::meet(mask, &value, sizeof value, line), lane >= 0 ? lane : emulator::current->lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, HERE) {
  const unsigned char* given = emulator::meet(mask, &predicate, 4, line);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= (given_by<int>(given, i) != 0) << i;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate, HERE) { return __ballot_sync(mask, predicate, line) != 0; }
inline int __all_sync(unsigned mask, int predicate, HERE) { return __ballot_sync(mask, predicate, line) == 0xffffffffu; }

// One thread runs at a time. Sums of floats in any order are not wanted, so there is no atomicAdd of them.
inline int atomicAdd(int* at, int value) { return std::exchange(*at, *at + value); }
inline unsigned atomicAdd(unsigned* at, unsigned value) { return std::exchange(*at, *at + value); }
inline int atomicMax(int* at, int value) { return std::exchange(*at, *at < value ? value : *at); }
inline int atomicOr(int* at, int value) { return std::exchange(*at, *at | value); }
inline unsigned atomicOr(unsigned* at, unsigned value) { return std::exchange(*at, *at | value); }
inline int atomicExch(int* at, int value) { return std::exchange(*at, value); }

// Arithmetic

template <typename To, typename From> To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline double __longlong_as_double(long long x) { return bits_as<double>(x); }
inline float rsqrtf(float x) { return (float)(1.0 / std::sqrt((double)x)); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((uint64_t)x * y >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <typename T> T __ldg(const T* p) { return *p; }
template <typename T> T __ldcs(const T* p) { return *p; }
template <typename T> void __stcs(T* p, T value) { *p = value; }
template <typename A, typename B> constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B> constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

#define VECTORS(T, name)                                                                     \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                           \
  struct name##3 { T x, y, z; };                                                               \
  struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };                \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                   \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                           \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(int, int)
VECTORS(unsigned, uint)
VECTORS(double, double)
