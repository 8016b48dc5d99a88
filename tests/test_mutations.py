"""The list of mutations against the sources: every one fits, and every kernel under a gradient has a flipped sign.

`python tests/mutations.py` shows, by hand, that each of them turns a test red.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import FunctionType

import pytest
from mutation_list import MUTATIONS, Mutation
from mutations import ROOT, misfits

import lucid.ops
from lucid.ops import adamw
from lucid.ops.op import Op

SIGNS = [m for m in MUTATIONS if re.search(r"\bsign\b", m.name)]
MODULES = [importlib.import_module(f"lucid.ops.{info.name}") for info in pkgutil.iter_modules(lucid.ops.__path__)]
OPS = {v.name: v for module in MODULES for v in vars(module).values() if isinstance(v, Op) and v.is_differentiable}


def below(function: FunctionType, seen: dict[FunctionType, None] | None = None) -> dict[FunctionType, None]:
    """A function and all of lucid.ops that it calls by name."""
    seen = {} if seen is None else seen
    if function not in seen:
        seen[function] = None
        names = {node.id for node in ast.walk(ast.parse(inspect.getsource(function))) if isinstance(node, ast.Name)}
        for value in (function.__globals__.get(name) for name in names):
            if isinstance(value, FunctionType) and value.__module__.startswith("lucid.ops."):
                below(value, seen)
    return seen


def kernels_of(*functions: FunctionType) -> set[str]:
    """The compiled functions that these call, themselves or further below."""
    return {name for f in functions for g in below(f) for name in re.findall(r"\bkernels\.(\w+)\(", inspect.getsource(g))}


def bodies() -> dict[str, tuple[Path, int, int, str]]:
    """Every function of the kernels: its file, where it begins and ends there, and its text."""
    found = {}
    for path in sorted((ROOT / "lucid" / "_ext").glob("*.pyx")):
        text = path.read_text()
        starts = [(m.start(), m[1]) for m in re.finditer(r"^(?:def|cdef(?: inline)?(?: [\w*]+)*?) \*?(\w+)\(", text, re.MULTILINE)]
        ends = [begin for begin, _ in starts[1:]] + [len(text)]
        for (begin, name), end in zip(starts, ends, strict=False):  # a stub has none
            found[name] = (path, begin, end, text[begin:end])
    return found


BODIES = bodies()


def bodies_below(name: str, seen: set[str] | None = None) -> set[str]:
    seen = set() if seen is None else seen
    if name in BODIES and name not in seen:
        seen.add(name)
        for called in re.findall(r"\b(\w+)\(", BODIES[name][3].split("\n", 1)[1]):
            bodies_below(called, seen)
    return seen


def is_inside(mutation: Mutation, name: str) -> bool:
    path, begin, end, _ = BODIES[name]
    return ROOT / mutation.file == path and begin <= path.read_text().index(mutation.old) < end


def test_the_list_fits_the_sources() -> None:
    assert misfits() == []
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
    assert all(m.old != m.new for m in MUTATIONS)


def test_bodies_are_found() -> None:
    assert {"attention_backward", "attend_backward", "norm_sums", "exp_vector", "dot_row", "adamw_block"} <= set(BODIES)
    assert {"attend_backward", "transpose", "chain", "philox"} <= bodies_below("attention_backward")


KERNELS = sorted(
    kernels_of(*(f for op in OPS.values() for f in (op.cpu.forward, op.cpu.backward)), adamw.adamw_step, adamw.sum_of_squares)  # type: ignore[arg-type]
)


def test_kernels_are_found() -> None:
    assert {"attention_backward", "layer_norm_backward", "sum_segments", "column_sum", "pack_columns", "adamw_step"} <= set(KERNELS)
    ends = {name for name in BODIES if name.endswith("_backward") and BODIES[name][3].startswith("def ")}
    assert ends <= set(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_under_a_gradient_has_a_flipped_sign(kernel: str) -> None:
    names = bodies_below(kernel) - ({"philox"} if kernel != "dropout_forward" else set())
    assert [m for m in SIGNS for name in names if is_inside(m, name)], f"add a flipped sign of {kernel} to tests/mutation_list.py"


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_every_backward_has_a_flipped_sign(op: Op) -> None:
    """In its own kernel, or in Python where it has none."""
    backward = op.cpu.backward
    assert isinstance(backward, FunctionType)
    own = [name for kernel in kernels_of(backward) for name in bodies_below(kernel)]
    in_kernels = [m for m in SIGNS for name in own if is_inside(m, name)]
    in_python = [m for m in SIGNS for f in below(backward) if m.file == _file_of(f) and m.old in inspect.getsource(f)]
    assert in_kernels or in_python, f"add a flipped sign of the backward of {op.name} to tests/mutation_list.py"


def _file_of(function: FunctionType) -> str:
    return str(Path(inspect.getfile(function)).resolve().relative_to(ROOT))
