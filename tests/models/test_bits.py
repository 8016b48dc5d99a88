"""Bits do not depend on threads, nor on what else is in the batch.

A plain run tries 60 and 30 random batches at two sizes; `--slow` tries 1,000 at each, and 20 at BERT-base's size.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import lucid
from lucid.models import BERTConfig, BERTForMaskedLM

THREADS = (1, 2, 3, 8)
SOME_THREADS = (1, 2, 2, 3)  # as drawn for a batch: more threads than CPUs are slow
SIZES: dict[str, dict[str, Any]] = {
    "odd": {"vocab_size": 1021, "hidden_size": 78, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 1201},
    "mini": {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 1024},
    "wide": {"vocab_size": 1021, "num_hidden_layers": 1},  # as wide as BERT-base: K is 768 and 3072
    "base": {},
}


def make(size: str) -> BERTForMaskedLM:
    """Give a model of that size in eval mode, every number random."""
    model = BERTForMaskedLM(replace(BERTConfig.base(), **SIZES[size])).eval()
    rng = np.random.default_rng(17)
    for name, parameter in model.named_parameters():
        values = rng.standard_normal(parameter.shape, dtype=np.float32)
        values *= np.float32(0.05)
        if name.endswith(("layer_norm.weight", "layernorm.weight")):
            values += 1
        parameter.assign(values)
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, BERTForMaskedLM]:
    """Hold each model once; `base` only while it is used."""
    return {}


def get(models: dict[str, BERTForMaskedLM], size: str) -> BERTForMaskedLM:
    if size not in models:
        models[size] = make(size)
    return models[size]


@pytest.fixture(autouse=True)
def _default_threads() -> Iterator[None]:
    yield
    lucid.set_num_threads(None)


def bits(array: Any) -> np.ndarray:
    """Give the bits, in which -0.0 is not 0.0 and a NaN equals itself."""
    array = np.ascontiguousarray(np.asarray(array))
    return array.view(f"u{array.dtype.itemsize}")


# ---------------------------------------------------------------- threads


def digest(model: BERTForMaskedLM, shapes: list[tuple[int, int]]) -> str:
    """Hash everything that a model gives for batches of these shapes."""
    sha = hashlib.sha256()
    rng = np.random.default_rng(23)
    for shape in shapes:
        ids = rng.integers(0, model.config.vocab_size, shape)
        mask = (rng.random(shape) < 0.85).astype(int)
        mask[0, 0] = 1
        types = rng.integers(0, 2, shape)
        labels = np.where((mask == 1) & (rng.random(shape) < 0.3), ids, -100)
        inputs = (ids, mask, types)
        results = [*model.bert(*inputs), model(*inputs), model.predict_token_ids(*inputs), model.get_accuracy(labels, *inputs)]
        results += [model.get_loss(labels, *inputs, reduction=reduction) for reduction in ("mean", "sum", None)]
        model.train()
        results += [model(*inputs, seed=5), model.get_loss(labels, *inputs, seed=6)]
        model.eval()
        results += model.create_masked_lm_inputs(ids, mask, seed=7)
        for result in results:
            assert result.dtype != np.float32 or np.isfinite(result.numpy()).all()
            sha.update(result.numpy().tobytes())
    return sha.hexdigest()


SHAPES = {
    "odd": [(1, 1), (1, 2), (7, 31), (3, 129)],
    "mini": [(1, 1), (5, 13), (2, 64)],
    "wide": [(1, n) for n in (1, 5, 6, 7, 129)],
    "base": [(1, 1), (3, 43)],
}


@pytest.mark.parametrize("size", ["odd", "mini", "wide", pytest.param("base", marks=pytest.mark.slow)])
def test_one_hash_for_any_number_of_threads(models, size, every_size_is_threaded):
    model = get(models, size)
    hashes = {}
    for n_threads in THREADS:
        lucid.set_num_threads(n_threads)
        hashes[n_threads] = digest(model, SHAPES[size])
    assert len(set(hashes.values())) == 1, hashes


# ---------------------------------------------------------------- batches


def composition(rng: np.random.Generator, model: BERTForMaskedLM, longest: int) -> dict[str, Any]:
    """Draw a batch: up to eight texts of any length, padded anywhere, with holes, and labels for some of their tokens."""
    config = model.config
    n_sequences = int(rng.integers(1, 9))
    lengths = np.where(rng.random(n_sequences) < 0.3, rng.integers(0, 4, n_sequences), rng.integers(1, longest + 1, n_sequences))
    lengths[rng.integers(n_sequences)] += lengths.sum() == 0
    width = int(lengths.max() + rng.integers(0, 9))
    mask = np.zeros((n_sequences, width), np.int64)
    for row, length in zip(mask, lengths, strict=True):
        if rng.random() < 0.4:  # holes anywhere
            row[rng.choice(width, length, replace=False)] = 1
        else:  # padding on the right, on the left, on both sides
            begin = rng.choice([0, width - length, rng.integers(0, width - length + 1)])
            row[begin : begin + length] = 1
    shape = mask.shape
    inputs: dict[str, Any] = {"attention_mask": mask}
    if rng.random() < 0.8:
        inputs["input_ids"] = rng.integers(0, config.vocab_size, shape)
    else:
        inputs["inputs_embeds"] = (0.05 * rng.standard_normal((*shape, config.hidden_size))).astype(np.float32)
    if rng.random() < 0.5:
        inputs["token_type_ids"] = rng.integers(0, config.type_vocab_size, shape)
    if rng.random() < 0.3:
        inputs["position_ids"] = rng.integers(0, config.max_position_embeddings, shape)
    p_label = rng.choice([0.02, 0.15, 0.6, 1.0])
    labels = np.where((mask == 1) & (rng.random(shape) < p_label), rng.integers(0, config.vocab_size, shape), -100)
    return {"inputs": inputs, "labels": labels}


def alone(batch: dict[str, Any], b: int, is_dense: bool) -> dict[str, Any]:
    """Take one text out of a batch: as it stands there, or its tokens side by side with their positions told."""
    inputs = {name: array[b : b + 1] for name, array in batch["inputs"].items()}
    labels = batch["labels"][b : b + 1]
    if is_dense:
        columns = np.flatnonzero(inputs.pop("attention_mask")[0])
        inputs = {name: array[:, columns] for name, array in inputs.items()}
        inputs.setdefault("position_ids", columns[None])
        labels = labels[:, columns]
    return {"inputs": inputs, "labels": labels}


def results(model: BERTForMaskedLM, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """Give everything that belongs to a token, (B, S, ...), or to a text, (B, ...)."""
    inputs, labels = batch["inputs"], batch["labels"]
    hidden, pooled = model.bert(**inputs)
    return {
        "hidden": bits(hidden),
        "pooled": bits(pooled),
        "logits": bits(model(**inputs)),
        "losses": bits(model.get_loss(labels, **inputs, reduction=None)).reshape(labels.shape),
        "predicted": bits(model.predict_token_ids(**inputs)),
    }


def mismatches(model: BERTForMaskedLM, rng: np.random.Generator, longest: int) -> list[str]:
    """Compare each text of a random batch alone with the same text inside; name what differs."""
    batch = composition(rng, model, longest)
    lucid.set_num_threads(int(rng.choice(SOME_THREADS)))
    together = results(model, batch)
    lucid.set_num_threads(1)
    found = []
    for b, mask in enumerate(batch["inputs"]["attention_mask"]):
        is_dense = bool(rng.random() < 0.5)
        if is_dense and not mask.any():
            continue
        for name, single in results(model, alone(batch, b, is_dense)).items():
            inside = together[name][b : b + 1]
            if is_dense and name != "pooled":
                inside = inside[:, mask == 1]
            assert single.shape == inside.shape
            if not np.array_equal(single, inside):
                found.append(f"{name} of text {b} of {batch['labels'].shape}, {mask.sum()} tokens, dense {is_dense}")
    return found


@pytest.mark.parametrize(
    ("size", "longest", "n_plain", "n_slow"),
    [("odd", 60, 60, 1000), ("mini", 40, 30, 1000), pytest.param("base", 40, 20, 20, marks=pytest.mark.slow)],
)
def test_a_text_does_not_see_its_neighbours(models, request, size, longest, n_plain, n_slow):
    model = get(models, size)
    n_batches = n_slow if request.config.getoption("--slow") else n_plain
    found = {}
    for number in range(n_batches):
        if differing := mismatches(model, np.random.default_rng([29, number]), longest):
            found[number] = differing
    assert not found, f"{len(found)} of {n_batches} batches differ: {dict(list(found.items())[:3])}"


def test_large_batches(models):
    """More tokens than any block of the kernels, and one long text among short ones."""
    model = get(models, "odd")
    rng = np.random.default_rng(31)
    lengths = np.array([512, *rng.integers(1, 100, 9)])
    mask = (np.arange(512) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(0, 1021, mask.shape)
    labels = np.where((mask == 1) & (rng.random(mask.shape) < 0.2), ids, -100)
    batch = {"inputs": {"input_ids": ids, "attention_mask": mask}, "labels": labels}
    together = results(model, batch)
    for b in range(len(lengths)):
        for name, single in results(model, alone(batch, b, is_dense=False)).items():
            np.testing.assert_array_equal(single, together[name][b : b + 1], err_msg=f"{name} of text {b}")
