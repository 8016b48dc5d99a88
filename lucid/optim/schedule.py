"""Learning rates over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lucid.optim.adamw import AdamW

_DECAYS = ("linear", "cosine", "constant")


class Schedule:
    """Linear warm-up, then linear, cosine or no decay.

    Parameters
    ----------
    optimizer : AdamW. Its groups' rates at this moment are the peaks.
    n_warmup : int, >= 0. Steps of warm-up: step k of these has k / n_warmup of the peak.
    n_steps : int, >= n_warmup. Length of the run; after its last step, the rate stays where it is.
    decay : "linear", "cosine" or "constant"
    final : float in [0, 1]. Share of the peak in the last step of a linear or cosine decay.

    Notes
    -----
    The rate is a function of the optimizer's step count alone. Call `step` before each ``optimizer.step()``.
    """

    def __init__(self, optimizer: AdamW, n_warmup: int, n_steps: int, decay: str = "linear", final: float = 0.0) -> None:
        self.optimizer = optimizer
        self._set(n_warmup, n_steps, decay, final, [group["lr"] for group in optimizer.groups])

    def _set(self, n_warmup: int, n_steps: int, decay: str, final: float, peaks: Sequence[float]) -> None:
        if not 0 <= n_warmup <= n_steps or n_steps < 1:
            raise ValueError(f"Schedule: wants 0 <= n_warmup <= n_steps and a step at least, not {n_warmup} and {n_steps}")
        if decay not in _DECAYS:
            raise ValueError(f"Schedule: decay must be one of {', '.join(_DECAYS)}, not {decay!r}")
        if not 0 <= final <= 1:
            raise ValueError(f"Schedule: final must lie in [0, 1], not {final}")
        if len(peaks) != len(self.optimizer.groups) or not all(0 <= peak < math.inf for peak in peaks):
            raise ValueError(f"Schedule: {len(self.optimizer.groups)} groups want a finite peak of at least 0 each, not {list(peaks)}")
        self.n_warmup, self.n_steps, self.decay, self.final, self.peaks = n_warmup, n_steps, decay, final, list(peaks)

    def factor(self, step: int) -> float:
        """Return the share of the peak rate for a step.

        Parameters
        ----------
        step : int, >= 1

        Raises
        ------
        ValueError
            `step` is smaller than 1.
        """
        if step < 1:
            raise ValueError(f"Schedule: steps count from 1, not {step}")
        if step <= self.n_warmup:
            return step / self.n_warmup
        if self.decay == "constant":
            return 1.0
        done = min(1.0, (step - self.n_warmup) / max(1, self.n_steps - self.n_warmup))
        left = 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.final + (1 - self.final) * left

    def step(self) -> float:
        """Set the rates for the optimizer's next step, and return the first group's."""
        factor = self.factor(self.optimizer.n_steps + 1)
        for group, peak in zip(self.optimizer.groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        return float(self.optimizer.groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Return {"n_warmup": int, "n_steps": int, "decay": str, "final": float, "peaks": list of float}, all that rates hang on."""
        return {name: getattr(self, name) for name in ("n_warmup", "n_steps", "decay", "final")} | {"peaks": list(self.peaks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the schedule that `state_dict` was taken of. Nothing is set unless everything fits.

        Raises
        ------
        KeyError
            A part is missing.
        ValueError
            A part is out of range, or there is not one peak for each group.
        """
        self._set(*(state[name] for name in ("n_warmup", "n_steps", "decay", "final", "peaks")))
