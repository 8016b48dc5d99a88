"""A GPU for tests on machines without one: the CUDA source of the kernels, run thread by thread on the CPU.

`Emulator` stands in CuPy's place in `lucid._gpu.runtime`. Its arrays are NumPy arrays in disguise: as with CuPy's, nothing
turns them into NumPy's unasked, and no operation mixes the two. A kernel is compiled with g++ against headers of our own
(`include/`); it gets copies of the memory of its arrays, each ending where the next page may not be touched, so that an index
beyond an array is an error; likewise arguments of other types than the kernel's.
"""

from gpu.emulator.arrays import ArrayModule as ArrayModule
from gpu.emulator.arrays import DeviceArray as DeviceArray
from gpu.emulator.compiler import has_compiler as has_compiler
from gpu.emulator.machine import Emulator as Emulator
from gpu.emulator.machine import KernelError as KernelError
