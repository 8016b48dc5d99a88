"""Small models and batches for the tests of whole gradients."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from lucid.models import BERTConfig, BERTForMaskedLM
from lucid.nn import Parameter

Array = Any

ODD: dict[str, Any] = {
    "vocab_size": 1021,
    "hidden_size": 78,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "intermediate_size": 1201,
    "max_position_embeddings": 131,
}
"""Sizes that no block of the kernels divides: heads 26 wide, prime vocabulary and feed-forward."""


def make_model(seed: int = 17, **overrides: Any) -> BERTForMaskedLM:
    """Give a model in train mode without dropout, every number random; `ODD` unless overridden."""
    settings = {**ODD, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "add_pooling_layer": False, **overrides}
    model = BERTForMaskedLM(BERTConfig.base(**settings))
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        is_gain = name.endswith(("layer_norm.weight", "layernorm.weight"))
        values = rng.standard_normal(parameter.shape, dtype=np.float32) * np.float32(0.1 if is_gain else 0.05)
        parameter.assign(values + np.float32(is_gain))
    return model


def make_batch(
    model: BERTForMaskedLM, n_sequences: int = 4, length: int = 37, seed: int = 5, has_holes: bool = True, p_label: float = 0.2
) -> dict[str, Array]:
    """Give ids, mask, types and labels: sequences of unequal length, with holes, and labels on some real tokens."""
    rng = np.random.default_rng(seed)
    shape = n_sequences, length
    mask = (np.arange(length) < rng.integers(length // 2, length + 1, n_sequences)[:, None]).astype(np.int64)
    if has_holes:
        mask[rng.random(shape) < 0.1] = 0
        mask[:, 1] = 1
    ids = rng.integers(0, model.config.vocab_size, shape)
    is_labelled = (rng.random(shape) < p_label) & (mask == 1)
    is_labelled[0, 1] = True
    return {
        "input_ids": np.where(is_labelled, 103, ids),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, shape),
        "labels": np.where(is_labelled, ids, -100),
    }


def gradients_of(model: BERTForMaskedLM) -> dict[str, Array]:
    """Give copies of all gradients by path, zeros where there is none."""
    return {name: np.zeros(p.shape, np.float32) if p.grad is None else np.array(p.grad) for name, p in model.named_parameters()}


def relative(got: Array, want: Array) -> float:
    """||got - want|| / ||want||."""
    return float(np.linalg.norm(got.astype(np.float64) - want) / max(np.linalg.norm(want.astype(np.float64)), 1e-30))


def digest(arrays: Iterable[Array]) -> str:
    """Hash the bits of arrays."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def weights_of(model: BERTForMaskedLM) -> list[Array]:
    """Give copies of all parameters."""
    return [np.array(p.array) for p in model.parameters()]


def state_of(parameters: Iterable[Parameter]) -> str:
    """Hash the bits of parameters."""
    return digest(p.array for p in parameters)
