"""GPU kernels: CUDA source, and the functions that launch it on arrays of the GPU.

One ``.py`` and one ``.cu`` per operation. The functions have the names and arguments of `lucid._ext` where there is such a
kernel. They check nothing: `lucid.ops` did. Only `runtime` knows CuPy, and it imports it when it is first needed.
"""
