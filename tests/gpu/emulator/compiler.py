"""A ``.cu`` file as a shared library for the CPU, with an entry for each of its kernels."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g0",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-strict-aliasing",  # 16 bytes are read as one, as on a GPU
    "-U_FORTIFY_SOURCE",  # which takes a jump to another fiber for an accident
    "-fcf-protection=none",
    "-fsanitize=bounds,shift,integer-divide-by-zero,alignment",
    "-fsanitize-undefined-trap-on-error",
    "-w",
]

# For each kernel an entry, and a description of its parameters: "*" for pointers, then kind and size of the number.
ENTRIES = r"""
namespace emulator {
template <typename T> struct Kind { static constexpr char value = std::is_floating_point_v<T> ? 'f' : std::is_signed_v<T> ? 'i' : 'u'; };
template <> struct Kind<__half> { static constexpr char value = 'f'; };
template <> struct Kind<__nv_bfloat16> { static constexpr char value = 'b'; };
template <> struct Kind<bool> { static constexpr char value = '?'; };
template <typename P> int describe(char* text) {
  using T = std::remove_cv_t<std::remove_pointer_t<std::remove_cv_t<P>>>;
  const bool is_void = std::is_void_v<T>;
  return sprintf(text, "%s%s%c%d ", std::is_pointer_v<P> ? "*" : "", std::is_const_v<std::remove_pointer_t<P>> ? "c" : "",
                 is_void ? 'v' : Kind<std::conditional_t<is_void, char, T>>::value, (int)sizeof(std::conditional_t<is_void, char, T>));
}
template <typename... P> void describe_all(void (*)(P...), char* text) {
  text[0] = 0;
  ((text += describe<P>(text)), ...);
}
}  // namespace emulator
"""
ENTRY = """
extern "C" void parameters_{i}(char* text) {{ emulator::describe_all(&{kernel}, text); }}
extern "C" int run_{i}(const unsigned* sizes, size_t shared, void** args, int is_reversed, char* text, size_t size, void** address) {{
  return emulator::run(&{kernel}, sizes, shared, args, is_reversed, text, size, address);
}}
"""


def has_compiler() -> bool:
    """Return whether there is a g++."""
    return shutil.which("g++") is not None


def build(path: Path, kernels: tuple[str, ...], folder: Path) -> ctypes.CDLL:
    """Compile a ``.cu`` file into `folder`, or take what was compiled of the same text, and load it.

    Raises
    ------
    RuntimeError
        It does not compile; the message is the compiler's.
    """
    text = f'#include "{path}"\n{ENTRIES}' + "".join(ENTRY.format(i=i, kernel=kernel) for i, kernel in enumerate(kernels))
    inputs = [*sorted(path.parent.glob("*.cuh")), path, *sorted((HERE / "include").glob("*.h"))]
    digest = hashlib.sha256("\0".join([text, *FLAGS, *(file.read_text() for file in inputs)]).encode()).hexdigest()[:16]
    library = folder / f"{path.stem}-{digest}.so"
    if not library.exists():
        source = library.with_suffix(f".{os.getpid()}.cpp")
        source.write_text(text)
        partial = source.with_suffix(".so")
        command = ["g++", *FLAGS, f"-I{HERE / 'include'}", "-include", "emulator.h", str(source), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        source.unlink()
        if done.returncode:
            raise RuntimeError(f"{path.name} does not compile for the emulator:\n{done.stderr[:4000]}")
        partial.rename(library)
    return ctypes.CDLL(str(library))
