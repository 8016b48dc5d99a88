"""What is run on a GPU, how fast it can be at best, and what lucid is to reach beside PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.checkpoint import SIZES
from benchmarks.texts import N_WORDS, lengths_between
from benchmarks.workloads import Case, Task

OURS = "lucid"
SIDES = {
    OURS: "lucid, bfloat16; training with float32 weights beside; masked-LM head on labelled rows, no padding",
    "eager": "transformers as shipped: SDPA attention, bfloat16 (training: autocast), head on every row",
    "eager-rows": "the same, head on labelled rows only",
    "compile": "`eager` through torch.compile with static shapes",
    "compile-rows": "`eager-rows` through torch.compile with static shapes",
}
"""Those that are timed. AdamW is the fused one everywhere."""
LIBRARIES = "lucid-libraries"
ON_REQUEST = {LIBRARIES: "lucid, bfloat16, with cuBLASLt and cuDNN where they can be used; runs with --libraries"}
"""Timed if they are asked for."""
CHECKED = {"lucid-float32": "lucid, float32"}
"""Those whose answers are compared, and that is all."""

P_DROP = 0.1


@dataclass(frozen=True)
class GpuCase:
    """A case, and the most that lucid's time may be.

    Attributes
    ----------
    name, title : str
    inputs : Case. What the CPU suite calls a case: a task and lengths.
    ratios : for each side, lucid's time divided by its
    seconds : float or None. Lucid's time, on an H100.
    """

    name: str
    title: str
    inputs: Case
    ratios: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def sides(self) -> list[str]:
        """Names of the sides that do it: without a head there are no rows to choose."""
        return [name for name in SIDES if self.inputs.task is not Task.ENCODE or not name.endswith("-rows")]


def cases(is_quick: bool = False) -> dict[str, GpuCase]:
    """Return the cases by name, the most important first; with `is_quick`, small ones without aims."""
    full: tuple[int, ...] = (128,) * 256
    half = lengths_between(2, 128, 256)
    if is_quick:
        full, half = (16,) * 4, lengths_between(2, 16, 4)
    shape, mean = f"{len(full)} x {full[0]}", sum(half) / len(half)
    listed = (
        GpuCase("encoder", f"encoder, {shape} tokens", Case(shape, Task.ENCODE, full), {"eager": 0.80, "compile": 0.90}, seconds=10.7e-3),
        GpuCase(
            "training",
            f"training step, {shape} tokens, dropout {P_DROP}",
            Case(shape, Task.TRAINING_STEP, full),
            {"eager": 0.55, "compile": 0.70, "compile-rows": 0.80},
            seconds=33e-3,
        ),
        GpuCase(
            "padded",
            f"encoder, {len(half)} sequences of {min(half)} to {max(half)} tokens, {1 - mean / max(half):.0%} padding",
            Case(f"{len(half)} x {min(half)}-{max(half)}", Task.ENCODE, half),
            {"eager": 0.45, "compile": 0.55},
        ),
        GpuCase(
            "scoring",
            f"masked-LM loss without gradient, {shape} tokens",
            Case(shape, Task.LOSS, full),
            {"eager": 0.70, "compile": 0.75},
            seconds=11.2e-3,
        ),
    )
    return {case.name: case if not is_quick else GpuCase(case.name, case.title, case.inputs) for case in listed}


@dataclass(frozen=True)
class Ceilings:
    """The most that a device does.

    Attributes
    ----------
    flops : float. Operations a second of a large product of bfloat16 matrices.
    bytes : float. Bytes a second of a large copy, read and written.
    """

    flops: float
    bytes: float


H100 = Ceilings(790e12, 3.0e12)
"""What an H100 (80 GB, HBM3) was seen to do."""

_PASSES = {Task.ENCODE: 10, Task.LOSS: 10, Task.TRAINING_STEP: 24}
"""Times that a layer's hidden state (T, C) in bfloat16 crosses the memory outside of products, at least: attention, and LayerNorm
with its residual twice, forward or both ways, the activation within the product."""
_ADAMW_BYTES = 30
"""For each parameter: gradient, weight, m and v in float32 read, three of them and a bfloat16 weight written."""


def n_parameters(size: str) -> int:
    """Return the numbers in a masked-LM model without pooler, word table and decoder tied."""
    n_layers, c = SIZES[size]
    embeddings = (N_WORDS + 512 + 2) * c + 2 * c
    layer = 4 * (c * c + c) + (8 * c * c + 5 * c) + 4 * c
    return embeddings + n_layers * layer + (c * c + c) + 2 * c + N_WORDS


def arithmetic_floor(case: GpuCase, size: str, ceilings: Ceilings) -> float:
    """Return the seconds that the operations take without padding, at the rate of a large product."""
    return case.inputs.flops(size) / ceilings.flops


def serial_floor(case: GpuCase, size: str, ceilings: Ceilings) -> float:
    """Return the seconds if products run at their rate, and between them memory is read and written at its own.

    Attention counts as a pass over memory, since for short sequences it is one.
    """
    n_layers, width = SIZES[size]
    task, lengths = case.inputs.task, case.inputs.lengths
    attention = sum(4.0 * n * n * width for n in lengths) * n_layers * (3 if task is Task.TRAINING_STEP else 1)
    moved = _PASSES[task] * n_layers * case.inputs.n_tokens * width * 2
    if task is Task.TRAINING_STEP:
        moved += _ADAMW_BYTES * n_parameters(size)
    return (case.inputs.flops(size) - attention) / ceilings.flops + moved / ceilings.bytes
