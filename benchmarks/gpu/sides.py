"""The sides: lucid and PyTorch, on a GPU or, to try the suite out, on the CPU.

A side makes one call at a time ready (`prepare`); then `answer` says what it finds, for the comparison, `call` is what is timed,
`mark` and `seconds` tell the time on the device, and `release` gives back the memory that is not in use.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.gpu.cases import LIBRARIES, P_DROP
from benchmarks.peers import Setting, version
from benchmarks.training import LEARNING_RATE, MAX_NORM
from benchmarks.workloads import IGNORED, Case, Task, mask_of, padded

Answer = dict[str, Any]
SEQUENCES_COMPARED = 16


def compared(hidden: Any, lengths: Sequence[int]) -> Any:
    """Return the hidden states (B, S, C) of some sequences' tokens, evenly spread over the batch, as one array (n, C)."""
    some = sorted({round(i) for i in np.linspace(0, len(lengths) - 1, SEQUENCES_COMPARED)})
    return np.concatenate([np.asarray(hidden[b], np.float32)[: lengths[b]] for b in some])


class Side(ABC):
    """One side, in a process of its own.

    Parameters
    ----------
    name : str
    setting : Setting
    is_on_gpu : bool
    """

    def __init__(self, name: str, setting: Setting, is_on_gpu: bool) -> None:
        self.name, self.setting, self.is_on_gpu = name, setting, is_on_gpu
        self.call: Callable[[], Any] = lambda: None
        self.answer: Callable[[], Answer] = dict

    def prepare(self, case: Case) -> None:
        """Load what a case needs; set `call` and `answer`."""
        self.call, self.answer = lambda: None, dict  # what they hold is free before the next comes
        {Task.ENCODE: self._encode, Task.LOSS: self._loss, Task.TRAINING_STEP: self._step}[case.task](case)

    @abstractmethod
    def _encode(self, case: Case) -> None: ...

    @abstractmethod
    def _loss(self, case: Case) -> None: ...

    @abstractmethod
    def _step(self, case: Case) -> None: ...

    def mark(self) -> Any:
        """Note the time on the device, without waiting for it."""
        return time.perf_counter()

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Wait for the last mark; return the seconds between each and the next."""
        return np.diff(marks).tolist()  # type: ignore[no-any-return]

    def peak_bytes(self) -> int | None:
        """Return the most memory of the device that was in use, None where that is not known."""
        return None

    def libraries(self) -> list[str]:
        """Return what libraries did until now in place of lucid's own kernels, and what they were asked for and did not."""
        return []

    @abstractmethod
    def release(self) -> None:
        """Give memory that is not in use back to the device: others are next."""


def _inputs(case: Case) -> tuple[Any, Any, Any]:
    """Return ids, mask and labels, int64, (B, S); without a mask where nothing is padded."""
    rows = case.rows()
    is_full = len(set(case.lengths)) == 1
    return padded(rows), None if is_full else mask_of(rows), padded(case.labels(), IGNORED)


class Lucid(Side):
    """lucid as its users call it: NumPy arrays go in, so copies to the device count."""

    def __init__(self, name: str, setting: Setting, is_on_gpu: bool) -> None:
        super().__init__(name, setting, is_on_gpu)
        import lucid
        from lucid._gpu.libraries import SWITCH

        os.environ[SWITCH] = str(int(name == LIBRARIES))  # for this process
        # As a reference it has the CPU for itself.
        lucid.set_num_threads(len(os.sched_getaffinity(0)) if name == "reference" else setting.n_threads)
        lucid.manual_seed(0)
        if is_on_gpu:
            import cupy

            self.cuda = cupy.cuda
            self.pool = cupy.get_default_memory_pool()

    def libraries(self) -> list[str]:
        """Return what they did and what not; with nothing done on a GPU, the side would be lucid itself, and RuntimeError is raised."""
        from lucid._gpu.libraries import CUBLASLT, CUDNN

        used, refused = (CUBLASLT.used() + CUDNN.used(), CUBLASLT.refused() + CUDNN.refused())
        if self.name == LIBRARIES and self.is_on_gpu and not used:
            raise RuntimeError(f"no library could be used: {'; '.join(refused)}")
        return used + refused

    def _placed(self, model: Any) -> Any:
        if not self.is_on_gpu:
            return model
        return model.to("gpu", dtype="float32" if self.name.endswith("float32") else "bfloat16")

    def _encode(self, case: Case) -> None:
        from lucid.models import BERT

        model = self._placed(BERT.from_pretrained(self.setting.folder))
        ids, mask, _ = _inputs(case)
        self.call = lambda: model(ids, mask)[0]
        self.answer = lambda: {"hidden": compared(_on_host(self.call()), case.lengths)}

    def _loss(self, case: Case) -> None:
        from lucid import no_grad
        from lucid.models import BERTForMaskedLM

        model = self._placed(BERTForMaskedLM.from_pretrained(self.setting.folder))
        ids, mask, labels = _inputs(case)

        def loss() -> Any:
            with no_grad():
                return model.get_loss(labels, ids, mask)

        self.call, self.answer = loss, lambda: {"loss": float(loss())}

    def _step(self, case: Case) -> None:
        from lucid.models import BERTForMaskedLM
        from lucid.optim import AdamW

        model = self._placed(BERTForMaskedLM.from_pretrained(self.setting.folder)).train()
        optimizer = AdamW(model, lr=LEARNING_RATE, max_grad_norm=MAX_NORM)
        ids, mask, labels = _inputs(case)

        def set_dropout(p: float) -> None:  # in eval mode there would be no gradient
            for module in model.modules():
                for name in ("p", "p_dropout"):
                    if hasattr(module, name):
                        setattr(module, name, p)

        def step() -> Any:
            loss = model.get_loss(labels, ids, mask)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        def answer() -> Answer:
            set_dropout(0.0)
            loss = model.get_loss(labels, ids, mask)
            loss.backward()
            squares = sum(float((p.grad.astype(np.float64) ** 2).sum()) for p in model.parameters() if p.grad is not None)
            optimizer.zero_grad()
            set_dropout(P_DROP)
            return {"loss": float(loss), "gradient_norm": squares**0.5, "loss_with_dropout": float(step())}

        self.call, self.answer = step, answer

    def mark(self) -> Any:
        """Note the time on the device, without waiting for it."""
        if not self.is_on_gpu:
            return super().mark()
        event = self.cuda.Event()
        event.record()
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Wait for the last mark; return the seconds between each and the next."""
        if not self.is_on_gpu:
            return super().seconds(marks)
        marks[-1].synchronize()
        return [self.cuda.get_elapsed_time(a, b) / 1e3 for a, b in pairwise(marks)]

    def peak_bytes(self) -> int | None:
        """Return what CuPy's pool has taken of the device since it was last emptied."""
        return int(self.pool.total_bytes()) if self.is_on_gpu else None

    def release(self) -> None:
        """Empty CuPy's pool."""
        if self.is_on_gpu:
            self.pool.free_all_blocks()


def _on_host(tensor: Any) -> Any:
    return tensor.to("cpu").numpy()


class Torch(Side):
    """transformers on PyTorch; its inputs are on the device before."""

    def __init__(self, name: str, setting: Setting, is_on_gpu: bool) -> None:
        super().__init__(name, setting, is_on_gpu)
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.manual_seed(0)
        torch.set_num_threads(setting.n_threads)
        self.torch, self.transformers = torch, transformers
        self.device = "cuda" if is_on_gpu else "cpu"
        self.is_reference = name == "reference"
        self.is_compiled = name.startswith("compile")
        self.has_rows = name.endswith("-rows")

    def _model(self, kind: str, dtype: Any, **options: Any) -> Any:
        attention = "eager" if self.is_reference else "sdpa"
        loaded = getattr(self.transformers, kind).from_pretrained(
            self.setting.folder, attn_implementation=attention, dtype=self.torch.float32 if self.is_reference else dtype, **options
        )
        return loaded.to(self.device).eval()

    def _ready(self, function: Any) -> Any:
        return self.torch.compile(function, dynamic=False) if self.is_compiled else function

    def _inputs(self, case: Case) -> tuple[Any, Any, Any]:
        return tuple(None if a is None else self.torch.from_numpy(a).to(self.device) for a in _inputs(case))  # type: ignore[return-value]

    def _loss_of(self, model: Any, labels: Any) -> Callable[[Any, Any], Any]:
        """Return the function from ids and mask to the loss, with the head on every row or on labelled ones."""
        if not self.has_rows:
            return lambda ids, mask: model(input_ids=ids, attention_mask=mask, labels=labels).loss
        rows = self.torch.nonzero(labels.flatten() != IGNORED).flatten()
        wanted = labels.flatten()[rows]

        def loss(ids: Any, mask: Any) -> Any:
            hidden = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            logits = model.cls(hidden.flatten(0, 1)[rows])
            return self.torch.nn.functional.cross_entropy(logits.float(), wanted)

        return loss

    def _encode(self, case: Case) -> None:
        model = self._model("BertModel", self.torch.bfloat16, add_pooling_layer=False)
        ids, mask, _ = self._inputs(case)
        encode = self._ready(model)

        def call() -> Any:
            with self.torch.no_grad():
                return encode(input_ids=ids, attention_mask=mask).last_hidden_state

        self.call, self.answer = call, lambda: {"hidden": compared(call().float().cpu(), case.lengths)}

    def _loss(self, case: Case) -> None:
        model = self._model("BertForMaskedLM", self.torch.bfloat16)
        ids, mask, labels = self._inputs(case)
        loss = self._ready(self._loss_of(model, labels))

        def call() -> Any:
            with self.torch.no_grad():
                return loss(ids, mask)

        self.call, self.answer = call, lambda: {"loss": float(call())}

    def _step(self, case: Case) -> None:
        torch = self.torch
        options = {"hidden_dropout_prob": P_DROP, "attention_probs_dropout_prob": P_DROP}
        model = self._model("BertForMaskedLM", torch.float32, **options).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
        ids, mask, labels = self._inputs(case)
        plain = self._loss_of(model, labels)
        ready = self._ready(plain)

        def forward(function: Any) -> Any:
            with torch.autocast(self.device, torch.bfloat16, enabled=not self.is_reference):
                return function(ids, mask)

        def step() -> Any:
            loss = forward(ready)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        def answer() -> Answer:
            model.eval()  # not compiled: it would be once more, without dropout
            loss = forward(plain)
            loss.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            optimizer.zero_grad()
            model.train()
            found = {"loss": float(loss.detach()), "gradient_norm": float(norm)}
            return found if self.is_reference else {**found, "loss_with_dropout": float(step())}

        self.call, self.answer = step, answer

    def mark(self) -> Any:
        """Note the time on the device, without waiting for it."""
        if not self.is_on_gpu:
            return super().mark()
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Wait for the last mark; return the seconds between each and the next."""
        if not self.is_on_gpu:
            return super().seconds(marks)
        marks[-1].synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]

    def peak_bytes(self) -> int | None:
        """Return the most that tensors took at a time, since the process began."""
        return int(self.torch.cuda.max_memory_allocated()) if self.is_on_gpu else None

    def release(self) -> None:
        """Empty PyTorch's cache."""
        if self.is_on_gpu:
            self.torch.cuda.empty_cache()


def make(name: str, setting: Setting, is_on_gpu: bool) -> Side:
    """Return a side by name; "reference" is PyTorch in float32 with attention spelled out, or without PyTorch lucid on the CPU."""
    if name == "reference" and not (version("torch") and version("transformers")):
        return Lucid(name, setting, is_on_gpu=False)
    return (Lucid if name.startswith("lucid") else Torch)(name, setting, is_on_gpu)
