"""Every kernel compiles for GPUs of three generations, without one, and keeps what it works on in registers."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lucid._gpu import runtime

ARCHITECTURES = [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90", pytest.param("sm_100", marks=pytest.mark.slow)]
"""Of A100, H100 and B200."""
MOST_REGISTERS = 255


def _nvidia() -> Path | None:
    """Return the folder of NVIDIA's wheels for CUDA 13, or None."""
    try:
        import nvidia
    except ImportError:
        return None
    return next((folder for place in nvidia.__path__ if (folder := Path(place) / "cu13").is_dir()), None)


@pytest.fixture(scope="module")
def nvrtc() -> Any:
    """CuPy's binding to the compiler, which wants no driver."""
    pytest.importorskip("cupy_backends", reason="the compiler is called through CuPy: pip install cupy-cuda13x")
    folder = _nvidia()
    if folder is None or not (folder / "include" / "cuda_fp16.h").exists():
        pytest.skip("NVRTC is not here: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl")
    from cupy_backends.cuda.libs import nvrtc

    return nvrtc


def compiled(nvrtc: Any, source: str, architecture: str) -> tuple[bytes, dict[str, str]]:
    """Return the binary of a ``.cu`` file, and the names of its kernels in it."""
    kernels = runtime.kernels_of(source)
    program = nvrtc.createProgram(runtime.source_text(source), f"{source}.cu", (), ())
    for kernel in kernels:
        nvrtc.addNameExpression(program, kernel)
    options = (f"-arch={architecture}", *runtime.OPTIONS, "-ftz=true", f"-I{_nvidia()}/include")
    try:
        nvrtc.compileProgram(program, options)
    except Exception:
        pytest.fail(f"{source}.cu for {architecture}:\n{nvrtc.getProgramLog(program)}")
    binary = nvrtc.getCUBIN(program) + b"\0"  # CuPy strips the last byte, which tools want
    return binary, {nvrtc.getLoweredName(program, kernel): kernel for kernel in kernels}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", runtime.sources())
def test_kernels_compile_and_spill_nothing(nvrtc: Any, source: str, architecture: str, tmp_path: Path) -> None:
    binary, names = compiled(nvrtc, source, architecture)
    cuobjdump = _nvidia() / "bin" / "cuobjdump"  # type: ignore[operator]
    if not cuobjdump.exists():
        pytest.skip("it compiles; what it uses is not known: pip install nvidia-cuda-cuobjdump")
    file = tmp_path / "kernels.cubin"
    file.write_bytes(binary)
    report = subprocess.run([cuobjdump, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
    used = dict(re.findall(r"Function (\S+):\n\s+(.+)", report))
    assert used.keys() == names.keys()
    for name, resources in used.items():
        numbers = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", resources)}
        assert numbers["STACK"] == numbers["LOCAL"] == 0, f"{names[name]} for {architecture} puts registers into memory: {resources}"
        assert numbers["REG"] <= MOST_REGISTERS
        assert numbers["SHARED"] <= 48 << 10, names[name]


MEMORY_BOUND = {
    "activation": ("activation_forward", "activation_backward", "bias_activation"),
    "columns": ("column_parts",),
    "dropout": ("dropout_forward",),
    "embedding": ("embedding_forward", "sum_segments"),
    "layer_norm": ("layer_norm_forward", "layer_norm_backward"),
    "rows": ("take_rows", "put_rows"),
}
"""Kernels that do little but read and write."""


@pytest.mark.parametrize("source", MEMORY_BOUND)
def test_memory_is_read_and_written_16_bytes_at_a_time(nvrtc: Any, source: str, tmp_path: Path) -> None:
    nvdisasm = _nvidia() / "bin" / "nvdisasm"  # type: ignore[operator]
    if not nvdisasm.exists():
        pytest.skip("what the compiler made is not known: pip install nvidia-cuda-nvdisasm")
    binary, names = compiled(nvrtc, source, "sm_90")
    file = tmp_path / "kernels.cubin"
    file.write_bytes(binary)
    text = subprocess.run([nvdisasm, file], capture_output=True, text=True, check=True).stdout
    _, *parts = re.split(r"\.section\s+\.text\.(\S+?),", text)
    bodies = {names[name]: body for name, body in zip(parts[::2], parts[1::2], strict=True)}
    for kernel in MEMORY_BOUND[source]:
        for c_type in runtime.C_TYPES.values():
            body = bodies[f"{kernel}<{c_type}>"]
            assert "LDG.E.128" in body, f"{kernel}<{c_type}> reads"
            assert "STG.E.128" in body, f"{kernel}<{c_type}> writes"


@pytest.mark.parametrize("source", runtime.sources())
def test_every_kernel_of_a_source_is_named(source: str) -> None:
    """In its KERNEL lines, which is what is compiled and launched; and every one named is there."""
    text = runtime.source_text(source)
    there = set(re.findall(r"__global__\s+(?:__launch_bounds__\([^)]*\)\s*)?void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(", text))
    assert there == {kernel.partition("<")[0] for kernel in runtime.kernels_of(source)}


def test_every_source_has_its_functions() -> None:
    folder = Path(runtime.__file__).parent
    for source in runtime.sources():
        stem = source.removesuffix("_mma")  # the same functions on tensor cores
        assert (folder / f"{stem}.py").exists(), f"{source}.cu has no {stem}.py beside it"


def test_kernel_lines() -> None:
    text = "// KERNEL plain\n// KERNEL one<T>\n// KERNEL two<{__half, float}, {32, 64}>\n"
    assert runtime.kernels_in(text) == (
        "plain",
        *("one<float>", "one<__half>", "one<__nv_bfloat16>"),
        *("two<__half, 32>", "two<__half, 64>", "two<float, 32>", "two<float, 64>"),
    )


def test_a_source_holds_what_it_includes_once() -> None:
    text = runtime.source_text("embedding")
    assert text.count("struct alignas(16) Wide") == 1
    assert '#include "' not in text
