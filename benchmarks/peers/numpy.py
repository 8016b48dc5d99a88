"""BERT in a page of NumPy: what lucid is compared with where no other peer is installed, and checked against, in float64."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from benchmarks.peers import Setting
from benchmarks.peers.graph import GraphPeer
from benchmarks.peers.guesses import log_sum_exp, losses
from benchmarks.texts import MASK
from benchmarks.workloads import IGNORED, Case

_erf_exactly = np.frompyfunc(math.erf, 1, 1)


def make(variant: str, setting: Setting) -> NumpyPeer:
    """Return the peer."""
    return NumpyPeer(variant, setting)


class NumpyBert:
    """BERT with a masked-LM head (Devlin et al. 2019), in one precision."""

    def __init__(self, setting: Setting, dtype: type) -> None:
        from safetensors.numpy import load_file

        self.dtype = dtype
        loaded = load_file(setting.folder / "model.safetensors")
        self.w: dict[str, Any] = {name.removeprefix("bert."): array.astype(dtype) for name, array in loaded.items()}
        config = json.loads((setting.folder / "config.json").read_text())
        self.n_layers, self.n_heads, self.eps = config["num_hidden_layers"], config["num_attention_heads"], config["layer_norm_eps"]

    def linear(self, name: str, x: Any) -> Any:
        """Return x . Wᵀ + b."""
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, x: Any) -> Any:
        """Return the normalised rows, scaled and shifted."""
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def gelu(self, x: Any) -> Any:
        """Return x times the share of a normal distribution below x."""
        return x / 2 * (1 + self.erf(x / math.sqrt(2)))

    def erf(self, x: Any) -> Any:
        """Return the error function: in float32 by Abramowitz & Stegun 7.1.26, off by 1.5e-7 at most."""
        if self.dtype is np.float64:
            return _erf_exactly(x).astype(np.float64)
        t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
        series = np.zeros_like(t)
        for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
            series = (series + np.float32(factor)) * t
        return np.sign(x) * (1 - series * np.exp(-x * x))

    def attention(self, name: str, x: Any, mask: Any) -> Any:
        """Return softmax(Q . Kᵀ / sqrt(D)) . V for every head, side by side."""
        q, k, v = (
            self.linear(f"{name}.self.{part}", x).reshape(*x.shape[:2], self.n_heads, -1).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / self.dtype(math.sqrt(q.shape[-1]))
        scores = np.where(mask[:, None, None, :] == 1, scores, self.dtype(-1e30))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        context = weights / weights.sum(-1, keepdims=True) @ v
        return self.linear(f"{name}.output.dense", context.transpose(0, 2, 1, 3).reshape(x.shape))

    def encode(self, ids: Any, mask: Any) -> Any:
        """Return the last hidden state, (B, S, C)."""
        table = "embeddings.{}_embeddings.weight".format
        x = self.w[table("word")][ids] + self.w[table("position")][: ids.shape[1]] + self.w[table("token_type")][0]
        x = self.norm("embeddings.LayerNorm", x)
        for i in range(self.n_layers):
            name = f"encoder.layer.{i}"
            x = self.norm(f"{name}.attention.output.LayerNorm", x + self.attention(f"{name}.attention", x, mask))
            inner = self.gelu(self.linear(f"{name}.intermediate.dense", x))
            x = self.norm(f"{name}.output.LayerNorm", x + self.linear(f"{name}.output.dense", inner))
        return x

    def head(self, x: Any) -> Any:
        """Return the logits of hidden states."""
        x = self.norm("cls.predictions.transform.LayerNorm", self.gelu(self.linear("cls.predictions.transform.dense", x)))
        return x @ self.w["embeddings.word_embeddings.weight"].T + self.w["cls.predictions.bias"]


class NumpyPeer(GraphPeer):
    """The model in float32, used as runtimes of graphs are."""

    def __init__(self, variant: str, setting: Setting) -> None:
        super().__init__(variant, setting)
        self.is_lean = True
        self.model = NumpyBert(setting, np.float32)

    def run(self, graph: str, *inputs: Any) -> Any:
        """Return what a graph makes of int64 arrays."""
        hidden = self.model.encode(*inputs[:2])
        if graph == "encoder":
            return hidden
        return self.model.head(hidden if graph == "logits" else hidden.reshape(-1, hidden.shape[-1])[inputs[2]])


class Reference:
    """The answers that others are compared with, in float64, every text alone."""

    def __init__(self, variant: str, setting: Setting) -> None:
        from tokenizers import Tokenizer

        self.model = NumpyBert(setting, np.float64)
        self.tokenizer = Tokenizer.from_file(str(setting.folder / "tokenizer.json"))

    def _hidden(self, row: list[int]) -> Any:
        ids = np.array([row])
        return self.model.encode(ids, np.ones_like(ids))[0]

    def encode(self, case: Case) -> Any:
        """Return the function that returns the last hidden states; all sequences have one length."""
        return lambda: {"hidden": np.stack([self._hidden(row) for row in case.rows()])}

    def logits(self, case: Case) -> Any:
        """Return the function that returns all logits; all sequences have one length."""
        return lambda: {"logits": np.stack([self.model.head(self._hidden(row)) for row in case.rows()])}

    def fill_masks(self, case: Case) -> Any:
        """Return the function that returns the log-probabilities of all words at each mask."""

        def fill() -> dict[str, Any]:
            rows = [self.tokenizer.encode(text).ids for text in case.texts()]
            logits = np.stack([self.model.head(self._hidden(row)[row.index(MASK)]) for row in rows])
            return {"log_probs": logits - log_sum_exp(logits)[:, None]}

        return fill

    cold_start = fill_masks

    def loss(self, case: Case) -> Any:
        """Return the function that returns the mean loss of the labels."""

        def loss() -> dict[str, Any]:
            total = 0.0
            for row, labels in zip(case.rows(), case.labels(), strict=True):
                asked = np.array(labels)
                places = np.flatnonzero(asked != IGNORED)
                if len(places):
                    total += losses(self.model.head(self._hidden(row)[places]), asked[places]).sum()
            return {"loss": total / case.n_asked}

        return loss

    # The gradient is not made: that of a step is checked by its loss alone.
    training_step = loss
