// The functions of lucid/_gpu/mma.cuh for the emulator.
#pragma once
#include "emulator.h"

// Products are exact, and their sum is rounded once: a tensor core promises no order.
template <typename T> void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], HERE) {
  struct Given {
    T a[8], b[4];
  } mine;
  memcpy(mine.a, a, 16);
  memcpy(mine.b, b, 8);
  const unsigned char* given = emulator::meet(0xffffffffu, &mine, sizeof mine, line);
  const int g = emulator::current->lane / 4, t = emulator::current->lane % 4;
  for (int i = 0; i < 4; ++i) {
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const Given of_a = given_by<Given>(given, 4 * g + k % 8 / 2), of_b = given_by<Given>(given, 4 * (2 * t + i % 2) + k % 8 / 2);
      sum += (double)to_float(of_a.a[4 * (k / 8) + 2 * (i / 2) + k % 2]) * to_float(of_b.b[2 * (k / 8) + k % 2]);
    }
    c[i] = (float)sum;
  }
}

inline void load_matrices(uint32_t (&r)[4], const void* row, bool is_transposed, int line) {
  if ((uintptr_t)row % 16) emulator::fail("line %d: ldmatrix wants rows at multiples of 16 bytes", line);
  const unsigned char* given = emulator::meet(0xffffffffu, &row, sizeof row, line);
  const int g = emulator::current->lane / 4, t = emulator::current->lane % 4;
  for (int m = 0; m < 4; ++m) {
    unsigned banks = 0;  // of 16 bytes, eight of them: a matrix is read at once if its rows lie in different ones
    for (int i = 0; i < 8; ++i) banks |= 1u << (uintptr_t)given_by<const void*>(given, 8 * m + i) / 16 % 8;
    if (banks != 0xff) emulator::fail("line %d: rows of one matrix in the same banks of shared memory", line);
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int y = is_transposed ? 2 * t + i : g, x = is_transposed ? g : 2 * t + i;
      pair[i] = given_by<const uint16_t*>(given, 8 * m + y)[x];
    }
    r[m] = pair[0] | (uint32_t)pair[1] << 16;
  }
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, HERE) { load_matrices(r, row, false, line); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, HERE) { load_matrices(r, row, true, line); }

// A copy arrives when it is waited for: who reads before reads what was there. In the other order of threads it arrives at
// once: who reads what was there before reads something else.
inline void cp_async_16(void* shared, const void* global, bool valid = true, HERE) {
  if ((uintptr_t)shared % 16 || (uintptr_t)global % 16) emulator::fail("line %d: cp.async wants multiples of 16 bytes", line);
  if (emulator::copies_at_once) {
    memset(shared, 0, 16);
    memcpy(shared, global, valid ? 16 : 0);
    return;
  }
  emulator::Fiber* f = emulator::current;
  if (f->n_copies == 64) emulator::fail("line %d: the emulator holds 64 copies of a thread", line);
  f->copies[f->n_copies++] = {shared, global, valid ? 16 : 0, f->group};
}
inline void cp_async_commit() { ++emulator::current->group; }
template <int N> void cp_async_wait() {
  emulator::Fiber* f = emulator::current;
  int n_left = 0;
  for (int i = 0; i < f->n_copies; ++i) {
    const emulator::Copy copy = f->copies[i];
    if (copy.group < f->group - N) {
      memset(copy.to, 0, 16);
      memcpy(copy.to, copy.from, copy.size);
    } else {
      f->copies[n_left++] = copy;
    }
  }
  f->n_copies = n_left;
}
