# Memory for results. Aligned, since a vector that straddles cache lines costs two reads; asked for in huge
# pages where the system gives them; and kept for the next result of like size when its array dies, since fresh
# pages cost a fault and a clearing each: 20,000 faults in one forward pass of BERT-base over 8 x 128 tokens.

from libc.stdlib cimport free


cdef extern from *:
    """
    #include <stdlib.h>
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    #define HUGE_PAGE ((size_t)2 << 20)
    #if defined(__SANITIZE_ADDRESS__)  /* it sees the end and the life of a block that is of the exact size, and never kept */
    #define LEAST_BYTES ((size_t)1)
    #define MOST_BYTES_KEPT ((size_t)0)
    #else
    #define LEAST_BYTES ((size_t)64)
    #define MOST_BYTES_KEPT ((size_t)128 << 20)
    #endif

    static void *aligned_memory(size_t n_bytes) {
        void *memory = NULL;
        int is_large = n_bytes >= 2 * HUGE_PAGE;
        if (posix_memalign(&memory, is_large ? HUGE_PAGE : 64, n_bytes) != 0) return NULL;
    #if defined(MADV_HUGEPAGE)
        if (is_large) madvise(memory, n_bytes, MADV_HUGEPAGE);  /* advice: a refusal costs speed alone */
    #endif
        return memory;
    }
    """
    void *aligned_memory(size_t n_bytes) noexcept
    const size_t LEAST_BYTES
    const size_t MOST_BYTES_KEPT

cdef extern from "Python.h":
    int PyTraceMalloc_Track(unsigned int domain, size_t pointer, size_t n_bytes)
    int PyTraceMalloc_Untrack(unsigned int domain, size_t pointer)

cdef enum:
    MOST_KEPT = 16             # blocks that wait for a new owner
    TRACE_DOMAIN = 0x6c756369  # by which tracemalloc knows this memory, while an array owns it

# The waiting blocks, oldest first. Touched with the GIL held.
cdef void* kept_blocks[MOST_KEPT]
cdef size_t kept_bytes[MOST_KEPT]
cdef int n_kept = 0
cdef size_t total_kept = 0

most_kept = MOST_KEPT
most_bytes_kept = MOST_BYTES_KEPT


def kept():
    """Return how many blocks wait for a new owner, and their bytes."""
    return n_kept, total_kept


cdef void *take_block(int i) noexcept:
    global n_kept, total_kept
    cdef void *block = kept_blocks[i]
    total_kept -= kept_bytes[i]
    n_kept -= 1
    while i < n_kept:
        kept_blocks[i] = kept_blocks[i + 1]
        kept_bytes[i] = kept_bytes[i + 1]
        i += 1
    return block


cdef class Memory:
    """A block of bytes with the buffer protocol; what it held when it is new is of no meaning.

    Parameters
    ----------
    n_bytes : int
    reuse : bool. Whether a block that waits will do, which may be an eighth larger. False for what lives long: it would
        hold what is too much for as long, and nobody else could have the block.
    """

    cdef void *block
    cdef size_t n_bytes     # asked for
    cdef size_t n_reserved
    cdef Py_ssize_t[1] shape

    def __cinit__(self, size_t n_bytes, bint reuse=True):
        cdef int i, best = -1
        cdef size_t wanted = max(n_bytes, LEAST_BYTES)
        self.n_bytes = n_bytes
        if reuse:
            for i in range(n_kept - 1, -1, -1):  # the youngest that fits: it is the warmest
                if wanted <= kept_bytes[i] and kept_bytes[i] - wanted <= wanted // 8:
                    best = i
                    break
        if best >= 0:
            self.n_reserved = kept_bytes[best]
            self.block = take_block(best)
        else:
            self.n_reserved = wanted
            self.block = aligned_memory(wanted)
            if self.block is NULL and n_kept > 0:
                while n_kept > 0:  # what lies idle may be what is missing
                    free(take_block(0))
                self.block = aligned_memory(wanted)
            if self.block is NULL:
                raise MemoryError(f"no memory for {n_bytes} bytes")
        PyTraceMalloc_Track(TRACE_DOMAIN, <size_t> self.block, n_bytes)

    def __dealloc__(self):
        global n_kept, total_kept
        if self.block is NULL:
            return
        PyTraceMalloc_Untrack(TRACE_DOMAIN, <size_t> self.block)
        if self.n_reserved > MOST_BYTES_KEPT:
            free(self.block)
            return
        while n_kept == MOST_KEPT or total_kept + self.n_reserved > MOST_BYTES_KEPT:
            free(take_block(0))
        kept_blocks[n_kept] = self.block
        kept_bytes[n_kept] = self.n_reserved
        n_kept += 1
        total_kept += self.n_reserved

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        self.shape[0] = self.n_bytes
        buffer.buf = self.block
        buffer.obj = self
        buffer.len = self.n_bytes
        buffer.itemsize = 1
        buffer.format = b"B"
        buffer.ndim = 1
        buffer.shape = self.shape
        buffer.strides = &buffer.itemsize
        buffer.suboffsets = NULL
        buffer.internal = NULL
        buffer.readonly = 0
