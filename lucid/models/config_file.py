"""`config.json`: what a checkpoint folder says of its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lucid.errors import FormatError
from lucid.models.bert.config import BERTConfig
from lucid.models.safetensors_file import open_regular_file

CONFIG_FILE = "config.json"
_MOST_JSON_BYTES = 16 << 20

# Keys of config.json that lucid reads, with the reference implementation's defaults.
_CONFIG_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512,
    "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "use_cache": True, "is_decoder": False,
    "add_cross_attention": False, "chunk_size_feed_forward": 0, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": None, "classifier_dropout": None, "tie_word_embeddings": True,
}  # fmt: skip
_CONFIG_RENAMED = {"tie_word_embeddings": "tie_word_embedding"}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 16 MiB.

    Raises
    ------
    FileNotFoundError, FormatError
    """
    try:
        descriptor, n_bytes = open_regular_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: a checkpoint folder holds {CONFIG_FILE} and model.safetensors") from None
    with open(descriptor, "rb") as file:
        if n_bytes > _MOST_JSON_BYTES:
            raise FormatError(f"{path.name} has {n_bytes} bytes, more than {_MOST_JSON_BYTES}: too large for what it should hold")
        data = file.read(_MOST_JSON_BYTES)
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or an integer of thousands of digits
        raise FormatError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path.name} must hold a JSON object, not a {type(value).__name__}")
    return value


def read_config(folder: Path, *, add_pooling_layer: bool, file_name: str = CONFIG_FILE) -> BERTConfig:
    """Return the configuration in a folder's `config.json`, or a file of another name; unknown keys are ignored.

    Raises
    ------
    FileNotFoundError
        There is none.
    FormatError
        It describes no BERT, or a BERT that lucid does not run.
    """
    path = folder / file_name
    values = read_json(path)
    if values.get("model_type", "bert") != "bert":
        raise FormatError(f"{path.name} describes a model of type {values['model_type']!r:.100}; lucid runs type 'bert'")
    if values.get("position_embedding_type") not in (None, "absolute"):
        raise FormatError(f"{path.name} asks for {values['position_embedding_type']!r:.100} positions; lucid has absolute ones")
    settings = {name: values.get(name, default) for name, default in _CONFIG_DEFAULTS.items()}
    for name, value in settings.items():
        if isinstance(_CONFIG_DEFAULTS[name], bool) and not isinstance(value, bool):
            raise FormatError(f"{path.name}: {name} must be true or false, not {value!r:.100}")
    attributes = {_CONFIG_RENAMED.get(name, name): value for name, value in settings.items()}
    try:
        return BERTConfig(**attributes, add_pooling_layer=add_pooling_layer)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path.name}: {error}") from error


def config_json(config: BERTConfig, architecture: str, dtype: str = "float32") -> dict[str, Any]:
    """Return the contents of a `config.json` that transformers reads; `dtype` is that of the stored tensors."""
    values = {name: getattr(config, _CONFIG_RENAMED.get(name, name)) for name in _CONFIG_DEFAULTS}
    return {"architectures": [architecture], "model_type": "bert", "dtype": dtype, "position_embedding_type": "absolute", **values}
