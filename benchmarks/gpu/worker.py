"""One side in a process of its own; see `benchmarks.worker`.

python -m benchmarks.gpu.worker SIDE < requests > answers
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu import sides
from benchmarks.gpu.cases import Ceilings, cases
from benchmarks.peers import Setting
from benchmarks.worker import serve

WARM_UP_CALLS = 3
TURN_SECONDS = 0.5
"""Calls of a turn, together."""
LEAST_CALLS, MOST_CALLS = 3, 50
KERNELS_SHOWN = 12


def calls_in_a_turn(seconds: float) -> int:
    """Return how many calls that take so long make a turn."""
    return max(LEAST_CALLS, min(MOST_CALLS, int(TURN_SECONDS / max(seconds, 1e-9))))


class Session:
    """A side, and what it was last asked to prepare."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name, self.setting = name, setting
        self.side: sides.Side | None = None

    def prepare(self, case: str, is_quick: bool) -> dict[str, Any]:
        """Load what a case needs; a quick run is one on the CPU."""
        if self.side is None:
            self.side = sides.make(self.name, self.setting, is_on_gpu=not is_quick)
        self.side.prepare(cases(is_quick)[case].inputs)
        return {}

    def _prepared(self) -> sides.Side:
        if self.side is None:
            raise RuntimeError("nothing was prepared")
        return self.side

    def answer(self, path: str) -> dict[str, Any]:
        """Answer and write it to a file. Then make a call: where calls are compiled, it is done before time is taken."""
        side = self._prepared()
        np.savez(path, allow_pickle=False, **{key: np.asarray(value) for key, value in side.answer().items()})
        side.call()
        side.release()
        return {}

    def turn(self) -> dict[str, Any]:
        """Make some calls without waiting between them, and return the seconds of each by the device's clock."""
        side = self._prepared()
        for _ in range(WARM_UP_CALLS):
            side.call()
        marks = [side.mark()]
        side.call()
        (first,) = side.seconds([*marks, side.mark()])
        marks = [side.mark()]
        for _ in range(calls_in_a_turn(first)):
            side.call()
            marks.append(side.mark())
        seconds = side.seconds(marks)
        peak = side.peak_bytes()
        side.release()
        return {"seconds": seconds, "peak_bytes": peak, "libraries": side.libraries()}

    def kernels(self) -> dict[str, Any]:
        """Return the kernels that a call spends most time in: name, launches, seconds. PyTorch's profiler sees lucid's as well."""
        import torch

        side = self._prepared()
        side.call()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            side.call()
            side.seconds([side.mark(), side.mark()])
        found = [(event.key, event.count, event.self_device_time_total / 1e6) for event in profile.key_averages()]
        side.release()
        return {"kernels": sorted(found, key=lambda one: -one[2])[:KERNELS_SHOWN]}

    def device(self) -> dict[str, Any]:
        """Return what GPU there is, and the most that it does: a large product of bfloat16 matrices, a large copy. Wants CuPy."""
        import cupy

        from lucid.device import gpu_status

        found = ceilings(cupy)
        return {"status": gpu_status(), "flops": found.flops, "bytes": found.bytes}


def ceilings(cupy: Any, n: int = 8192, n_bytes: int = 1 << 31, repeats: int = 10) -> Ceilings:
    """Return the rates of a product of n x n matrices of random numbers, and of a copy of so many bytes; each the best of some."""
    from lucid._gpu import runtime

    a, b = (cupy.random.standard_normal((n, n), dtype=np.float32).astype(runtime.dtype_of("bfloat16")) for _ in range(2))
    product, source = cupy.empty_like(a), cupy.arange(n_bytes // 8)
    target = cupy.empty_like(source)

    def fastest(call: Callable[[], Any]) -> float:
        seconds: list[float] = []
        for _ in range(repeats):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record()
            call()
            end.record()
            end.synchronize()
            seconds.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3)
        return min(seconds)

    return Ceilings(
        2 * n**3 / fastest(lambda: runtime.gemm(a, b, product)), 2 * source.nbytes / fastest(lambda: cupy.copyto(target, source))
    )


if __name__ == "__main__":
    serve(Session)
