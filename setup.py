"""The compiled half of lucid: one extension per instruction set. Everything else is in pyproject.toml."""

import os
import sysconfig

from Cython.Build import cythonize
from setuptools import Extension, setup

EXT = "lucid/_ext"
BODIES = sorted(f"{EXT}/{name}" for name in os.listdir(EXT) if name.endswith(".pyx") and not name.startswith("_"))
IS_DEBUG = os.environ.get("LUCID_DEBUG_CYTHON", "0") == "1"

COMPILE = [
    "-O3",
    "-fopenmp",
    "-ffp-contract=off",  # products and sums are fused only where the source says `fma`: equal bits everywhere
    "-fno-math-errno",  # sqrtf is one instruction
    "-fno-trapping-math",  # branches over lanes may become selects
    # The register tile is one function, specialised by literal arguments: inlining is what makes it fast.
    "-DCYTHON_INLINE=inline __attribute__((always_inline))",
]
BUILDS = {
    "x86_64": {"baseline": [], "avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]},
    "aarch64": {"neon": []},  # every aarch64 has NEON, with fused multiply-adds
}
INSTRUCTION_SETS = BUILDS.get(sysconfig.get_platform().split("-")[-1], {"baseline": []})

extensions = [Extension("lucid._ext._cpu", [f"{EXT}/_cpu.pyx"], extra_compile_args=["-O2", "-fopenmp"], extra_link_args=["-fopenmp"])]
for name, flags in INSTRUCTION_SETS.items():
    extensions.append(
        Extension(
            f"lucid._ext._kernels_{name}",
            [f"{EXT}/_kernels_{name}.pyx"],
            depends=BODIES,
            extra_compile_args=COMPILE + flags,
            extra_link_args=["-fopenmp"],
        )
    )

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives={
            "language_level": 3,
            "cdivision": True,
            "wraparound": False,
            "boundscheck": IS_DEBUG,
            "initializedcheck": IS_DEBUG,
            "nonecheck": IS_DEBUG,
            "embedsignature": True,
        },
    )
)
