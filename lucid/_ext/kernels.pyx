# Every kernel, each after those it calls. A stub `_kernels_*.pyx` includes this file, and is compiled for its instruction set.

from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, frexp, sqrt, sqrtf  # exact or correctly rounded: the same everywhere
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

include "simd.pyx"
include "elementary.pyx"
include "reduce.pyx"
include "gemm.pyx"
include "philox.pyx"
include "layer_norm.pyx"
include "embedding.pyx"
include "attention.pyx"
include "encoder.pyx"
include "cross_entropy.pyx"
include "decoder.pyx"
include "mlm_mask.pyx"
include "adamw.pyx"

panel_width = PANEL
