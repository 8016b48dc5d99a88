"""lucid, as its users call it."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers import Setting
from benchmarks.peers.graph import Timed
from benchmarks.training import LEARNING_RATE, MAX_NORM, P_DROP, resident
from benchmarks.workloads import IGNORED, Case, mask_of, padded


def make(variant: str, setting: Setting) -> Lucid:
    """Return the peer."""
    return Lucid(setting)


class Lucid:
    """Calls of the public interface."""

    def __init__(self, setting: Setting) -> None:
        import lucid
        from lucid import models

        lucid.set_num_threads(setting.n_threads)
        self.setting = setting
        self.models = models

    def _masked_lm(self) -> Any:
        return self.models.BERTForMaskedLM.from_pretrained(self.setting.folder)

    def logits(self, case: Case) -> Timed:
        """Return the function that returns all logits."""
        model, ids = self._masked_lm(), padded(case.rows())
        return lambda: {"logits": model(ids)}

    def encode(self, case: Case) -> Timed:
        """Return the function that returns the last hidden state."""
        model, ids = self.models.BERT.from_pretrained(self.setting.folder), padded(case.rows())
        return lambda: {"hidden": model(ids)[0]}

    def fill_masks(self, case: Case) -> Timed:
        """Return the function that goes from texts to guesses."""
        model, texts = self._masked_lm(), case.texts()

        def fill() -> dict[str, Any]:
            fills = model.fill_mask(texts)
            return {
                "ids": np.array([[guess.token for guess in one[0]] for one in fills]),
                "scores": np.array([[guess.score for guess in one[0]] for one in fills]),
            }

        return fill

    def loss(self, case: Case) -> Timed:
        """Return the function that returns the mean loss of the labels."""
        from lucid import no_grad

        model, rows = self._masked_lm(), case.rows()
        ids, mask, labels = padded(rows), mask_of(rows), padded(case.labels(), IGNORED)

        def loss() -> dict[str, Any]:
            with no_grad():
                return {"loss": model.get_loss(labels, ids, mask)}

        return loss

    def training_step(self, case: Case) -> LucidStep:
        """Return the training step."""
        return LucidStep(self.setting, case)


class LucidStep:
    """A training step; see `benchmarks.training.TrainingStep`."""

    def __init__(self, setting: Setting, case: Case) -> None:
        import lucid
        from lucid.models import BERTForMaskedLM
        from lucid.optim import AdamW

        self.imported = resident()
        lucid.manual_seed(0)
        self.model = BERTForMaskedLM.from_pretrained(setting.folder)
        if not self.model.config.hidden_dropout_prob == self.model.config.attention_probs_dropout_prob == P_DROP:
            raise ValueError(f"the checkpoint's dropout is to be {P_DROP}")
        self.model.train()
        self.optimizer = AdamW(self.model, lr=LEARNING_RATE, max_grad_norm=MAX_NORM)
        self.ids, self.labels = padded(case.rows()), padded(case.labels(), IGNORED)

    def check(self) -> dict[str, Any]:
        """Return the loss and the norm of its gradient, without dropout."""
        self._set_dropout(0.0)
        loss = self.forward()
        loss.backward()
        squares = sum(float(np.vdot(p.grad, p.grad)) for p in self.model.parameters() if p.grad is not None)
        self.optimizer.zero_grad()
        self._set_dropout(P_DROP)
        return {"loss": float(loss), "gradient_norm": squares**0.5}

    def _set_dropout(self, p: float) -> None:
        # In eval mode there would be no gradient.
        for module in self.model.modules():
            for name in ("p", "p_dropout"):
                if hasattr(module, name):
                    setattr(module, name, p)

    def recompute(self) -> None:
        """Keep only the state before each layer."""
        self.model.bert.encoder.is_recomputed = True

    def forward(self) -> Any:
        """Return the loss, with dropout."""
        return self.model.get_loss(self.labels, self.ids)

    def backward(self, loss: Any) -> None:
        """Make the gradients."""
        loss.backward()

    def update(self, loss: Any) -> None:
        """Clip, update, and forget the gradients."""
        self.optimizer.step(loss)
        self.optimizer.zero_grad()


def cold_start(variant: str, setting: Setting) -> str:
    """Return the program of a cold start."""
    return f"""
import lucid.models
model = lucid.models.BERTForMaskedLM.from_pretrained({str(setting.folder)!r})
guesses = model.fill_mask(TEXT)[0]
IDS, SCORES = [guess.token for guess in guesses], [guess.score for guess in guesses]
"""
