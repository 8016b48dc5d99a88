"""Builds of the kernels for different instruction sets: which agree to the bit, which nearly, and what is in them."""

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from kernel_outputs import Outputs, digest

from lucid import _ext
from lucid._ext import _cpu

RUNNABLE = _cpu.instruction_sets()
WITH_FMA = [name for name in RUNNABLE if name != "baseline"]


def build(name: str) -> ModuleType:
    return importlib.import_module(f"lucid._ext._kernels_{name}")


def test_every_kernel_is_compared() -> None:
    """Classes hold what a function is called with."""
    module = vars(build(RUNNABLE[0])).items()
    entries = {name for name, value in module if callable(value) and not isinstance(value, type) and not name.startswith("_")}
    assert set(Outputs.names()) == entries


@pytest.mark.parametrize("kernel", Outputs.names())
def test_instruction_sets_with_fma_give_the_same_bits(kernel: str) -> None:
    if len(WITH_FMA) < 2:
        pytest.skip(f"this CPU runs {len(WITH_FMA)} build with fused multiply-adds: nothing to compare with")
    hashes = {name: digest(Outputs(build(name))[kernel]) for name in WITH_FMA}
    assert len(set(hashes.values())) == 1, hashes


@pytest.mark.parametrize("kernel", Outputs.names())
def test_the_baseline_is_within_a_millionth_of_the_largest_output(kernel: str) -> None:
    if "baseline" not in RUNNABLE or not WITH_FMA:
        pytest.skip(f"this CPU runs {', '.join(RUNNABLE)} only: nothing to compare with")
    for number, call in enumerate(zip(Outputs(build("baseline"))[kernel], Outputs(build(WITH_FMA[0]))[kernel], strict=True)):
        largest = max(np.abs(fused[np.isfinite(fused)]).max(initial=0) for fused in call[1])
        for plain, fused in zip(*call, strict=True):
            is_finite = np.isfinite(fused)
            assert np.array_equal(np.isfinite(plain), is_finite), f"call {number}"
            error = np.abs(plain[is_finite] - fused[is_finite]).max(initial=0)
            assert error <= (1e-6 * largest if plain.dtype.kind == "f" else 0), f"call {number}: {error:.3g} of {largest:.3g}"


@pytest.mark.parametrize("kernel", Outputs.names())
@pytest.mark.parametrize("name", RUNNABLE)
def test_the_number_of_threads_changes_no_bit(name: str, kernel: str) -> None:
    assert digest(Outputs(build(name), 1)[kernel]) == digest(Outputs(build(name), 3)[kernel])


# Which build is chosen


def test_the_widest_build_comes_first() -> None:
    widths = [build(name).panel_width for name in RUNNABLE]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
def test_what_can_run_is_what_linux_says_of_the_cpu() -> None:
    flags = set(re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    needs = {"avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}, "avx2": {"avx2", "fma"}, "baseline": set()}
    assert RUNNABLE == [name for name, wanted in needs.items() if wanted <= flags]


def emulated(cpu: str, code: str) -> str:
    """What Python code prints on another x86-64 CPU; an instruction that this CPU does not have ends the program."""
    if not shutil.which("qemu-x86_64"):
        pytest.skip("no qemu-x86_64 here (Debian: qemu-user)")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LUCID_", "OPENBLAS_"))}
    environment["OMP_WAIT_POLICY"] = "passive"  # waiting threads would take the time of working ones
    command = ["qemu-x86_64", "-cpu", cpu, sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("cpu", "runnable"),
    [
        ("max", ["avx2", "baseline"]),  # this emulator has no AVX-512
        ("Skylake-Server", ["avx2", "baseline"]),  # whatever the name of a CPU promises
        ("max,fma=off", ["baseline"]),
        ("max,xsave=off", ["baseline"]),  # an operating system that does not keep wide registers
        ("Nehalem", ["baseline"]),
    ],
)
def test_another_cpu_runs_the_best_that_it_can(cpu: str, runnable: list[str]) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the CPUs are x86-64")
    code = "from lucid import _ext; print(_ext.instruction_set, *_ext._cpu.instruction_sets())"
    assert emulated(cpu, code).split() == [runnable[0], *runnable]


@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "name"), [("Haswell", "avx2"), ("Nehalem", "baseline")])
def test_a_build_gives_the_same_bits_on_a_cpu_that_has_no_more(cpu: str, name: str) -> None:
    """Every kernel runs there; the product does as part of the decoder's, its own list of calls would take a minute."""
    if name not in RUNNABLE:
        pytest.skip(f"this CPU runs {', '.join(RUNNABLE)} only")
    code = f"""
import sys
sys.path.insert(0, "tests/ext")
from kernel_outputs import Outputs, digest
from lucid import _ext
assert _ext.instruction_set == {name!r}
outputs = Outputs(_ext.kernels)
for kernel in Outputs.names():
    if kernel != "gemm":
        print(kernel, digest(outputs[kernel]))
"""
    here = Outputs(build(name))
    assert emulated(cpu, code).splitlines() == [f"{kernel} {digest(here[kernel])}" for kernel in Outputs.names() if kernel != "gemm"]


# What the compiler made


def machine_code(name: str) -> dict[str, str]:
    """The disassembled functions of a build, by name."""
    objdump = os.environ.get("OBJDUMP", "objdump")
    library = next(Path(_ext.__file__).parent.glob(f"_kernels_{name}.*.so"), None)
    if library is None:
        pytest.skip(f"the {name} build is not for this kind of CPU")
    if not shutil.which(objdump):
        pytest.skip(f"no {objdump} here")
    text = subprocess.run([objdump, "-d", "--no-show-raw-insn", str(library)], check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"^[0-9a-f]+ <([^>]+)>:\n((?:.+\n)*)", text, re.MULTILINE))
    assert any("gemm" in function for function in found), f"{library} has no symbols"
    return found


def inner_loops(code: str) -> Iterator[list[str]]:
    """The loops without branches: from where a jump backwards lands to that jump."""
    lines = [(int(address, 16), text) for address, text in re.findall(r"^ +([0-9a-f]+):\t(.*)$", code, re.MULTILINE)]
    jumps = {i: int(match[1], 16) for i, (_, text) in enumerate(lines) if (match := re.match(r"(?:j\w+|b\.\w+)\s+([0-9a-f]+)", text))}
    place = {address: i for i, (address, _) in enumerate(lines)}
    for i, target in jumps.items():
        begin = place.get(target, i)
        if begin < i and not any(begin <= other < i for other in jumps):
            yield [text for _, text in lines[begin:i]]


@pytest.mark.parametrize(
    ("name", "n_sums", "product", "store"),
    [
        ("avx2", 12, r"vfmadd231ps %ymm\d+,%ymm\d+,%(ymm\d+)", r"%ymm\d+,.*\("),
        ("avx512", 24, r"vfmadd231ps %zmm\d+,%zmm\d+,%(zmm\d+)", r"%zmm\d+,.*\("),
        ("neon", 24, r"fmla\s+(v\d+)\.4s", r"st\w+\s+q"),
    ],
)
def test_the_product_keeps_its_sums_in_registers(name: str, n_sums: int, product: str, store: str) -> None:
    """In the loop of the largest tile each sum has one register, and nothing goes to memory."""
    for function, code in machine_code(name).items():
        for loop in inner_loops(code) if "_chain" in function else ():
            sums = [match[1] for text in loop if (match := re.match(product, text))]
            if len(set(sums)) == n_sums and len(sums) % n_sums == 0 and not any(re.search(store, text) for text in loop):
                return
    pytest.fail(f"no loop with {n_sums} sums that stay in registers")


@pytest.mark.parametrize(("name", "foreign"), [("baseline", r"%[yz]mm|\tv[a-z]"), ("avx2", r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])")])
def test_a_build_has_no_instructions_beyond_its_own(name: str, foreign: str) -> None:
    """Else it would stop with an illegal instruction on the CPUs that it is for."""
    assert not {function for function, code in machine_code(name).items() if re.search(foreign, code)}
