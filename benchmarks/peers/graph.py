"""What is common to runtimes of graphs: they get arrays, and their users do the rest.

Three graphs: ``logits`` and ``encoder`` take (ids, mask), ``rows`` takes (ids, mask, rows), where rows are places in the
flattened batch, and returns logits for those alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers import Setting
from benchmarks.peers.guesses import best_words, losses
from benchmarks.texts import MASK
from benchmarks.workloads import IGNORED, TOP_K, Case, batches_by_length, batches_in_order, mask_of, padded

ROWS_AT_ONCE = 32
SORTED_ROWS_AT_ONCE = 8
Timed = Callable[[], dict[str, Any]]


class GraphPeer(ABC):
    """A runtime of graphs.

    Parameters
    ----------
    variant : str. Its name; one that ends in "-rows" sorts by length, and asks the head for rows.
    setting : Setting
    """

    def __init__(self, variant: str, setting: Setting) -> None:
        from tokenizers import Tokenizer

        self.setting = setting
        self.is_lean = variant.endswith("-rows")
        self.tokenizer = Tokenizer.from_file(str(setting.folder / "tokenizer.json"))

    @abstractmethod
    def run(self, graph: str, *inputs: Any) -> Any:
        """Return what a graph makes of int64 arrays."""

    def logits(self, case: Case) -> Timed:
        """Return the function that returns all logits."""
        ids, mask = padded(case.rows()), mask_of(case.rows())
        return lambda: {"logits": self.run("logits", ids, mask)}

    def encode(self, case: Case) -> Timed:
        """Return the function that returns the last hidden state."""
        ids, mask = padded(case.rows()), mask_of(case.rows())
        return lambda: {"hidden": self.run("encoder", ids, mask)}

    def fill_masks(self, case: Case) -> Timed:
        """Return the function that goes from texts to guesses."""
        texts = case.texts()

        def fill() -> dict[str, Any]:
            rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
            ids, scores = np.empty((len(rows), TOP_K), np.int64), np.empty((len(rows), TOP_K), np.float32)
            for batch in self._batches(rows):
                tokens = padded([rows[i] for i in batch])
                mask = mask_of([rows[i] for i in batch])
                places = np.flatnonzero(tokens.reshape(-1) == MASK)
                ids[batch], scores[batch] = best_words(self._logits_at(tokens, mask, places))
            return {"ids": ids, "scores": scores}

        return fill

    def loss(self, case: Case) -> Timed:
        """Return the function that returns the mean loss of the labels."""
        rows, labels = case.rows(), case.labels()

        def loss() -> dict[str, Any]:
            total = 0.0
            for batch in self._batches(rows):
                asked = padded([labels[i] for i in batch], IGNORED).reshape(-1)
                places = np.flatnonzero(asked != IGNORED)
                logits = self._logits_at(padded([rows[i] for i in batch]), mask_of([rows[i] for i in batch]), places)
                total += float(losses(logits, asked[places]).sum(dtype=np.float64))
            return {"loss": np.asarray(total / case.n_asked)}

        return loss

    def _batches(self, rows: list[list[int]]) -> list[list[int]]:
        return batches_by_length(rows, SORTED_ROWS_AT_ONCE) if self.is_lean else batches_in_order(len(rows), ROWS_AT_ONCE)

    def _logits_at(self, ids: Any, mask: Any, places: Any) -> Any:
        if self.is_lean:
            return self.run("rows", ids, mask, places)
        logits = self.run("logits", ids, mask)
        return logits.reshape(-1, logits.shape[-1])[places]
