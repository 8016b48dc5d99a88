"""The bits of training: gradients of a whole model, and its weights after three steps.

They do not change with
- the number of threads;
- columns of padding appended to the batch, or rows of nothing but padding appended below it, dropout on;
- what stands under the padding, and how the mask is written;
- where padding stands, on the left, in the middle, on the right, dropout on and with the positions told: unless told, a
  token's position is its column;
- the instruction set, if it has fused multiply-adds;
- the layout that weights were in before, and whether layers are recomputed.

They do change with the order of the sequences: sums over tokens run in the batch's order, and dropout counts examples.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lucid
from gradients.cases import for_each_thread_count
from gradients.models import digest, gradients_of, make_batch, make_model, weights_of
from lucid._ext import _cpu
from lucid.models import BERTForMaskedLM
from lucid.optim import AdamW

Array = Any
Batch = dict[str, Array]
DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
WIDE: dict[str, Any] = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 1, "vocab_size": 521}
LONG: dict[str, Any] = {"max_position_embeddings": 512, "num_hidden_layers": 1}


def steps(model: BERTForMaskedLM, batch: Batch, n_steps: int = 3) -> str:
    """Train on one batch; hash the losses, the gradients of every step and the weights at the end."""
    optimizer = AdamW(model, lr=1e-3, max_grad_norm=1.0)
    seen = []
    for step in range(n_steps):
        model.zero_grad()
        loss = model.get_loss(**batch, seed=step)
        loss.backward()
        seen += [loss.numpy(), *gradients_of(model).values()]
        optimizer.step(loss)
    return digest([*seen, *weights_of(model)])


def padded(batch: Batch, columns: int, rows: int = 0) -> Batch:
    """Append columns, and rows of nothing but padding; what stands there is noise."""
    rng = np.random.default_rng(1)

    def grow(name: str, array: Array) -> Array:
        fill = {"attention_mask": 0, "labels": -100}.get(name)
        shape = array.shape[0] + rows, array.shape[1] + columns
        grown = rng.integers(0, 2, shape) if fill is None else np.full(shape, fill)
        grown[: array.shape[0], : array.shape[1]] = array
        return grown

    return {name: grow(name, array) for name, array in batch.items()}


def moved(batch: Batch, order: Array) -> Batch:
    """Spread each row over more columns, in order, so that padding stands elsewhere; positions are told."""
    n, width = batch["input_ids"].shape
    positions = np.tile(np.arange(width), (n, 1))
    wide = 3 * width
    fills = {"attention_mask": 0, "labels": -100}
    spread = {}
    for name, array in {**batch, "position_ids": positions}.items():
        spread[name] = np.full((n, wide), fills.get(name, 1))
        for row in range(n):
            spread[name][row, order[row]] = array[row]
    return spread


@pytest.mark.parametrize(
    ("size", "batch"),
    [
        ({}, {"n_sequences": 4, "length": 37}),
        ({**LONG, "max_position_embeddings": 400}, {"n_sequences": 2, "length": 390}),
        (WIDE, {"n_sequences": 3, "length": 23}),
    ],
    ids=["odd", "long", "wide"],
)
def test_one_hash_for_any_number_of_threads(size: dict[str, Any], batch: dict[str, int]) -> None:
    def run() -> str:
        model = make_model(**{**DROPOUT, **size})
        return steps(model, make_batch(model, **batch))

    hashes = for_each_thread_count(run)
    assert len(set(hashes)) == 1, hashes


IN_A_PROCESS = """
import sys
sys.path[:0] = {paths!r}
from gradients.test_bits import DROPOUT, steps
from gradients.models import make_batch, make_model
model = make_model(**DROPOUT)
print(steps(model, make_batch(model)))
"""


def test_one_hash_for_every_instruction_set_with_fused_products() -> None:
    sets = [name for name in _cpu.instruction_sets() if name != "baseline"]
    if len(sets) < 2:
        pytest.skip(f"this CPU runs {', '.join(sets) or 'the baseline'} only: nothing to compare with")
    script = IN_A_PROCESS.format(paths=[str(Path(__file__).parents[1]), str(Path(lucid.__file__).parents[1])])
    hashes = {
        name: subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "LUCID_ISA": name}, check=True, capture_output=True, text=True, timeout=300
        ).stdout.strip()
        for name in sets
    }
    assert len(set(hashes.values())) == 1, hashes
    assert len(hashes[sets[0]]) == 64


def test_padding_that_is_appended_changes_no_bit() -> None:
    model = make_model(**DROPOUT)
    batch = make_batch(model)
    want = steps(model, batch)
    for columns, rows in ((1, 0), (90, 0), (0, 3), (5, 1)):
        assert steps(make_model(**DROPOUT), padded(batch, columns, rows)) == want, (columns, rows)


def test_what_stands_under_the_padding_changes_no_bit() -> None:
    model = make_model(**DROPOUT)
    batch = make_batch(model)
    want = steps(model, batch)
    is_padding = batch["attention_mask"] == 0
    assert is_padding.any()
    noise = np.random.default_rng(2).integers(-(10**9), 10**9, is_padding.shape)
    other = {**batch, **{name: np.where(is_padding, noise, batch[name]) for name in ("input_ids", "token_type_ids")}}
    other["attention_mask"] = batch["attention_mask"].astype(bool)
    assert steps(make_model(**DROPOUT), other) == want


def test_no_mask_is_a_mask_of_ones() -> None:
    model = make_model(**DROPOUT)
    batch = make_batch(model, has_holes=False)
    batch["attention_mask"] = np.ones_like(batch["attention_mask"])
    want = steps(model, batch)
    del batch["attention_mask"]
    assert steps(make_model(**DROPOUT), batch) == want


@pytest.mark.parametrize("settings", [{}, DROPOUT], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("where", ["left", "middle", "anywhere"])
def test_where_padding_stands_changes_no_bit(where: str, settings: dict[str, Any]) -> None:
    model = make_model(**settings)
    batch = make_batch(model)
    n, width = batch["input_ids"].shape
    rng = np.random.default_rng(3)
    right = np.tile(np.arange(width), (n, 1))
    orders = {
        "left": right + 2 * width,
        "middle": np.where(right < width // 2, right, right + 2 * width),
        "anywhere": np.sort(np.stack([rng.choice(3 * width, width, replace=False) for _ in range(n)]), axis=1),
    }
    assert steps(make_model(**settings), moved(batch, orders[where])) == steps(model, batch)


def test_a_hole_moves_no_mask_of_dropout() -> None:
    """A hole that is cut out leaves the bits as they are, if the positions stay."""
    model = make_model(**DROPOUT)
    batch = make_batch(model)
    n, width = batch["input_ids"].shape
    holes = batch["attention_mask"] == 0
    order = np.argsort(holes, axis=1, kind="stable")  # real tokens first, in their order
    batch["position_ids"] = np.tile(np.arange(width), (n, 1))
    assert (holes[:, :-1] & ~holes[:, 1:]).any()
    assert steps(make_model(**DROPOUT), {name: np.take_along_axis(array, order, axis=1) for name, array in batch.items()}) == steps(
        model, batch
    )


def test_the_order_of_sequences_does_change_bits_but_little_else() -> None:
    model, other = make_model(), make_model()
    batch = make_batch(model)
    model.get_loss(**batch).backward()
    other.get_loss(**{name: array[::-1] for name, array in batch.items()}).backward()
    a, b = gradients_of(model), gradients_of(other)
    assert digest(a.values()) != digest(b.values())
    for name in a:
        if not name.endswith("qkv.bias"):
            assert np.linalg.norm(a[name] - b[name]) <= 2e-6 * np.linalg.norm(a[name]), name


def test_neither_eval_in_between_nor_saving_changes_a_bit() -> None:
    """Both turn weights over: packed for inference, row-major for training."""
    model, other = make_model(**DROPOUT), make_model(**DROPOUT)
    batch = make_batch(model)
    inputs = {name: array for name, array in batch.items() if name != "labels"}
    optimizers = [AdamW(m, lr=1e-3) for m in (model, other)]
    for step in range(3):
        for m, optimizer in zip((model, other), optimizers, strict=True):
            m.zero_grad()
            m.get_loss(**batch, seed=step).backward()
            optimizer.step()
        other.eval()
        other.predict_token_ids(**inputs)
        with lucid.no_grad():
            other.get_loss(**batch)
        other.train()
        other.predict_token_ids(**inputs)
        other.state_dict()
    assert digest(weights_of(model)) == digest(weights_of(other))


def test_a_seed_is_all_that_dropout_hangs_on() -> None:
    def gradients(seed: int | None) -> str:
        model = make_model(**DROPOUT)
        model.get_loss(**make_batch(model), seed=seed).backward()
        return digest(gradients_of(model).values())

    assert gradients(5) == gradients(5) != gradients(6)
    lucid.manual_seed(11)
    first, second = gradients(None), gradients(None)
    lucid.manual_seed(11)
    assert first != second
    # Building a model takes seeds as well, the same ones each time.
    assert (gradients(None), gradients(None)) == (first, second)
