"""transformers on torch: as its pages show it, compiled, and with what a careful user adds. The reference comes from here, too."""

from __future__ import annotations

import os
import warnings
from typing import Any

from benchmarks.peers import Setting
from benchmarks.peers.graph import SORTED_ROWS_AT_ONCE, Timed
from benchmarks.texts import MASK
from benchmarks.training import LEARNING_RATE, MAX_NORM, P_DROP, resident
from benchmarks.workloads import IGNORED, TOP_K, Case, batches_by_length, mask_of, padded

_TEXTS_AT_ONCE = 32


def make(variant: str, setting: Setting) -> Any:
    """Return the peer."""
    return (WithRows if variant == "transformers-rows" else Transformers)(variant, setting)


def _load(kind: str, setting: Setting, attention: str = "sdpa", **options: Any) -> Any:
    """Return a model of transformers, in eval mode."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(setting.n_threads)
    return getattr(transformers, kind).from_pretrained(setting.folder, attn_implementation=attention, **options).eval()


class Transformers:
    """Calls as they stand in its documentation."""

    def __init__(self, variant: str, setting: Setting) -> None:
        import torch

        self.torch = torch
        self.variant = variant
        self.setting = setting

    def _ready(self, model: Any) -> Any:
        """Return the model, compiled where this variant does that."""
        if self.variant != "torch-compile":
            return model
        warnings.simplefilter("ignore")
        self.torch._inductor.config.freezing = True
        return self.torch.compile(model, dynamic=False)

    def _timed(self, function: Timed) -> Timed:
        # Compiled with frozen weights, a model wants no_grad.
        mode = self.torch.no_grad if self.variant == "torch-compile" else self.torch.inference_mode

        def without_gradient() -> dict[str, Any]:
            with mode():
                return function()

        return without_gradient

    def logits(self, case: Case) -> Timed:
        """Return the function that returns all logits."""
        model = self._ready(_load("BertForMaskedLM", self.setting))
        ids = self.torch.from_numpy(padded(case.rows()))
        return self._timed(lambda: {"logits": model(input_ids=ids).logits})

    def encode(self, case: Case) -> Timed:
        """Return the function that returns the last hidden state."""
        model = self._ready(_load("BertModel", self.setting, add_pooling_layer=False))
        ids = self.torch.from_numpy(padded(case.rows()))
        return self._timed(lambda: {"hidden": model(input_ids=ids).last_hidden_state})

    def fill_masks(self, case: Case) -> Timed:
        """Return the function that goes from texts to guesses."""
        import numpy as np
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(self.setting.folder)
        pipeline = transformers.pipeline("fill-mask", model=_load("BertForMaskedLM", self.setting), tokenizer=tokenizer)
        texts = case.texts()

        def fill() -> dict[str, Any]:
            fills = pipeline(texts, top_k=TOP_K, batch_size=min(len(texts), _TEXTS_AT_ONCE))
            fills = fills if isinstance(fills[0], list) else [fills]
            return {
                key: np.array([[guess[name] for guess in one] for one in fills]) for key, name in (("ids", "token"), ("scores", "score"))
            }

        return self._timed(fill)

    def loss(self, case: Case) -> Timed:
        """Return the function that returns the mean loss of the labels."""
        model, rows = _load("BertForMaskedLM", self.setting), case.rows()
        ids, mask, labels = (self.torch.from_numpy(a) for a in (padded(rows), mask_of(rows), padded(case.labels(), IGNORED)))
        return self._timed(lambda: {"loss": model(input_ids=ids, attention_mask=mask, labels=labels).loss})

    def training_step(self, case: Case) -> TransformersStep:
        """Return the training step."""
        return TransformersStep(self.setting, case, "eager" if self.variant == "transformers-eager" else "sdpa")


class WithRows(Transformers):
    """Batches sorted by length, and the head on asked rows alone."""

    def _logits_at(self, model: Any, rows: list[list[int]], places: Any) -> Any:
        ids, mask = (self.torch.from_numpy(a) for a in (padded(rows), mask_of(rows)))
        is_full = bool(mask.all())  # without a mask, attention has less to do
        hidden = model.bert(input_ids=ids, attention_mask=None if is_full else mask).last_hidden_state
        return model.cls(hidden.flatten(0, 1)[places])

    def fill_masks(self, case: Case) -> Timed:
        """Return the function that goes from texts to guesses."""
        from tokenizers import Tokenizer

        model, texts = _load("BertForMaskedLM", self.setting), case.texts()
        tokenizer = Tokenizer.from_file(str(self.setting.folder / "tokenizer.json"))

        def fill() -> dict[str, Any]:
            rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
            ids, scores = self.torch.empty((len(rows), TOP_K), dtype=self.torch.int64), self.torch.empty((len(rows), TOP_K))
            for batch in batches_by_length(rows, SORTED_ROWS_AT_ONCE):
                some = [rows[i] for i in batch]
                logits = self._logits_at(model, some, self.torch.from_numpy(padded(some)).flatten() == MASK)
                scores[batch], ids[batch] = logits.softmax(-1).topk(TOP_K)
            return {"ids": ids, "scores": scores}

        return self._timed(fill)

    def loss(self, case: Case) -> Timed:
        """Return the function that returns the mean loss of the labels."""
        model, rows, labels = _load("BertForMaskedLM", self.setting), case.rows(), case.labels()

        def loss() -> dict[str, Any]:
            total = self.torch.zeros(())
            for batch in batches_by_length(rows, SORTED_ROWS_AT_ONCE):
                asked = self.torch.from_numpy(padded([labels[i] for i in batch], IGNORED)).flatten()
                logits = self._logits_at(model, [rows[i] for i in batch], asked != IGNORED)
                total += self.torch.nn.functional.cross_entropy(logits, asked[asked != IGNORED], reduction="sum")
            return {"loss": total / case.n_asked}

        return self._timed(loss)


class TransformersStep:
    """A training step; see `benchmarks.training.TrainingStep`."""

    def __init__(self, setting: Setting, case: Case, attention: str) -> None:
        import torch
        import transformers

        self.imported = resident()
        transformers.logging.set_verbosity_error()
        self.torch = torch
        torch.manual_seed(0)
        settings = {"hidden_dropout_prob": P_DROP, "attention_probs_dropout_prob": P_DROP}
        self.model = _load("BertForMaskedLM", setting, attention, **settings)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self.ids, self.labels = torch.from_numpy(padded(case.rows())), torch.from_numpy(padded(case.labels(), IGNORED))

    def check(self) -> dict[str, Any]:
        """Return the loss and the norm of its gradient, without dropout."""
        self.model.eval()
        loss = self.forward()
        loss.backward()
        norm = self.torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        self.optimizer.zero_grad()
        self.model.train()
        return {"loss": loss.detach().item(), "gradient_norm": float(norm)}

    def recompute(self) -> None:
        """Keep only the state before each layer."""
        self.model.gradient_checkpointing_enable()

    def forward(self) -> Any:
        """Return the loss."""
        return self.model(input_ids=self.ids, labels=self.labels).loss

    def backward(self, loss: Any) -> None:
        """Make the gradients."""
        loss.backward()

    def update(self, loss: Any) -> None:
        """Clip, update, and forget the gradients."""
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Reference(Transformers):
    """The answers that others are compared with: float32, attention spelled out, every text alone."""

    def fill_masks(self, case: Case) -> Timed:
        """Return the function that returns the log-probabilities of all words at each mask."""
        import numpy as np
        import transformers

        model = _load("BertForMaskedLM", self.setting, "eager")
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.setting.folder)

        def fill() -> dict[str, Any]:
            rows = []
            for text in case.texts():
                ids = tokenizer(text, return_tensors="pt")["input_ids"]
                logits = model(input_ids=ids).logits[0, ids[0] == MASK]
                rows.append(logits[0].double().log_softmax(-1).numpy())
            return {"log_probs": np.stack(rows)}

        return self._timed(fill)

    cold_start = fill_masks

    def loss(self, case: Case) -> Timed:
        """Return the function that returns the mean loss of the labels, each sequence alone."""
        model, rows, labels = _load("BertForMaskedLM", self.setting, "eager"), case.rows(), case.labels()

        def loss() -> dict[str, Any]:
            total = 0.0
            for ids, asked in zip(rows, labels, strict=True):
                logits = model(input_ids=self.torch.tensor([ids])).logits[0].double()
                total += float(self.torch.nn.functional.cross_entropy(logits, self.torch.tensor(asked), reduction="sum"))
            return {"loss": total / case.n_asked}

        return self._timed(loss)

    def training_step(self, case: Case) -> TransformersStep:
        """Return the training step."""
        return TransformersStep(self.setting, case, "eager")


def cold_start(variant: str, setting: Setting) -> str:
    """Return the program of a cold start."""
    return f"""
import os
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
torch.set_num_threads({setting.n_threads})
from transformers import pipeline
from transformers.utils import logging
logging.disable_progress_bar()
guesses = pipeline("fill-mask", model={str(setting.folder)!r})(TEXT, top_k={TOP_K})
IDS, SCORES = [guess["token"] for guess in guesses], [guess["score"] for guess in guesses]
"""
