from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

include "simd.pyx"
include "elementary.pyx"
include "gemm.pyx"
