"""The compiled half of lucid: one extension per instruction set. Everything else is in pyproject.toml."""

import os
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

EXT = "lucid/_ext"
BODIES = sorted(f"{EXT}/{name}" for name in os.listdir(EXT) if name.endswith(".pyx") and not name.startswith("_"))
IS_DEBUG = os.environ.get("LUCID_DEBUG_CYTHON", "0") == "1"

COMPILE = [
    os.environ.get("LUCID_OPTIMIZE", "-O3"),
    "-g0",  # debug information is most of an extension's size
    "-ffp-contract=off",  # products and sums are fused only where the source says `fma`: equal bits everywhere
    "-fno-math-errno",  # sqrtf is one instruction
    "-fno-trapping-math",  # branches over lanes may become selects
    # The register tile is one function, specialised by literal arguments: inlining is what makes it fast.
    "-DCYTHON_INLINE=inline __attribute__((always_inline))",
]
# To build one instruction set alone, and faster, for tests of changed kernels: LUCID_BUILD_ONLY=avx2 LUCID_OPTIMIZE=-O1.
BUILD_ONLY = os.environ.get("LUCID_BUILD_ONLY")
BUILDS = {
    "x86_64": {"baseline": [], "avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]},
    "aarch64": {"neon": []},  # every aarch64 has NEON, with fused multiply-adds
}
INSTRUCTION_SETS = BUILDS.get(sysconfig.get_platform().split("-")[-1], {"baseline": []})

extensions = [Extension(f"lucid._ext.{name}", [f"{EXT}/{name}.pyx"], extra_compile_args=["-O2"]) for name in ("_cpu", "_memory")]
for name, flags in INSTRUCTION_SETS.items():
    if BUILD_ONLY not in (None, name):
        continue
    extensions.append(
        Extension(f"lucid._ext._kernels_{name}", [f"{EXT}/_kernels_{name}.pyx"], depends=BODIES, extra_compile_args=COMPILE + flags)
    )


class BuildWithOpenMP(build_ext):
    """With OpenMP, unless LUCID_NO_OPENMP=1 or the compiler has none: then every kernel runs on one thread."""

    def build_extensions(self):
        """Add the flags to every extension, then build."""
        if os.environ.get("LUCID_NO_OPENMP", "0") != "1" and self.has_openmp():
            for extension in self.extensions:
                extension.extra_compile_args.append("-fopenmp")
                extension.extra_link_args.append("-fopenmp")
        super().build_extensions()

    def has_openmp(self):
        """Compile and link two lines with it."""
        with TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text("#include <omp.h>\nint probe(void) { return omp_get_max_threads(); }\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=["-fopenmp"])
                self.compiler.link_shared_object(objects, str(source.with_suffix(".so")), extra_postargs=["-fopenmp"])
            except (CompileError, LinkError):
                print("lucid: this compiler has no OpenMP; the kernels are built for one thread")
                return False
        return True


setup(
    cmdclass={"build_ext": BuildWithOpenMP},
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
    ),
)
