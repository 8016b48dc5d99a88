"""Hugging Face folders, in and out: the only file that knows foreign tensor names.

Reading: `config.json`, then `model.safetensors` or the shards of `model.safetensors.index.json`. Old
spellings (gamma and beta, a missing `bert.` prefix, `module.`) are understood. Every name, shape and type
is checked before the first value is read, so a model is loaded whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lucid.errors import FormatError
from lucid.models.bert.config import BERTConfig
from lucid.models.safetensors_file import SafetensorsFile
from lucid.nn import Module, Parameter

# lucid's path -> the foreign name, for what is spelled differently. {i} is a layer's number.
_RENAMED = {
    "attention.dense": "attention.output.dense",
    "attention.layer_norm": "attention.output.LayerNorm",
    "feed_forward.dense_in": "intermediate.dense",
    "feed_forward.dense_out": "output.dense",
    "feed_forward.layer_norm": "output.LayerNorm",
    "embeddings.layer_norm": "embeddings.LayerNorm",
    "transform.layernorm": "transform.LayerNorm",
}
_DECODER_WEIGHT = "cls.predictions.decoder.weight"
_DECODER_BIAS = "cls.predictions.decoder.bias"
_OUTPUT_BIAS = "cls.predictions.bias"
_WORD_TABLE = "bert.embeddings.word_embeddings.weight"
# Known, and of no use to the model at hand.
_IGNORED = re.compile(r"bert\.pooler\.|cls\.seq_relationship\.|bert\.output_embeddings\.|bert\.embeddings\.(position_ids|token_type_ids)$")

# Keys of config.json that carry over under their own names, with the reference implementation's defaults.
_CONFIG_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512,
    "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "use_cache": True, "is_decoder": False,
    "add_cross_attention": False, "chunk_size_feed_forward": 0, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": None, "classifier_dropout": None,
}  # fmt: skip


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint held, beside what the model wanted. Names are the checkpoint's.

    Attributes
    ----------
    n_loaded : int. Parameters that were set.
    missing : tensors that the model wanted and the checkpoint lacks; their parameters keep initial values
    unexpected : tensors that the model has no place for
    ignored : tensors that are known and not needed, such as the pooler under a masked LM head
    is_tied : bool. Whether decoder and word table are one parameter.
    """

    n_loaded: int = 0
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    is_tied: bool = False
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"loaded {self.n_loaded} parameters; decoder and word table are {'tied' if self.is_tied else 'not tied'}"]
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected), ("ignored, not needed", self.ignored)):
            if names:
                lines.append(f"{what}: {', '.join(names)}")
        return "\n".join([*lines, *self.notes])


# ---------------------------------------------------------------- config.json


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 1 MiB.

    Raises
    ------
    FileNotFoundError, FormatError
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: a checkpoint folder holds config.json and model.safetensors") from None
    if len(data) > 16 << 20:
        raise FormatError(f"{path.name} has {len(data)} bytes: too large for what it should hold")
    try:
        value = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path.name} must hold a JSON object, not a {type(value).__name__}")
    return value


def read_config(folder: Path, *, add_pooling_layer: bool) -> BERTConfig:
    """Return the configuration in a folder's `config.json`; unknown keys are ignored.

    Raises
    ------
    FileNotFoundError
        There is none.
    FormatError
        It describes no BERT, or a BERT that lucid does not run.
    """
    path = folder / "config.json"
    values = read_json(path)
    if values.get("model_type", "bert") != "bert":
        raise FormatError(f"{path.name} describes a model of type {values['model_type']!r}; lucid runs type 'bert'")
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise FormatError(f"{path.name} asks for {values['position_embedding_type']!r} positions; lucid has absolute ones")
    settings = {name: values.get(name, default) for name, default in _CONFIG_DEFAULTS.items()}
    try:
        return BERTConfig(**settings, tie_word_embedding=bool(values.get("tie_word_embeddings", True)), add_pooling_layer=add_pooling_layer)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path.name}: {error}") from error


def config_json(config: BERTConfig, architecture: str) -> dict[str, Any]:
    """Return the contents of a `config.json` that transformers reads."""
    values = {name: getattr(config, name) for name in _CONFIG_DEFAULTS}
    return {
        "architectures": [architecture],
        "model_type": "bert",
        "dtype": "float32",
        "position_embedding_type": "absolute",
        "tie_word_embeddings": config.tie_word_embedding,
        **values,
    }


# -------------------------------------------------------------------- tensors


def foreign_names(path: str) -> list[str]:
    """Return the names under which the tensors of a parameter are stored; three for Q, K and V."""
    for own, foreign in _RENAMED.items():
        path = re.sub(rf"(?<=\.){re.escape(own)}(?=\.)", foreign, path)
    if ".attention.qkv." in path:
        return [path.replace(".attention.qkv.", f".attention.self.{part}.") for part in ("query", "key", "value")]
    return [path]


def canonical_name(name: str, *, has_prefix: bool) -> str:
    """Return today's spelling of a stored tensor's name."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.split(".", 1)[1]
    name = re.sub(r"(?<=\.)(layernorm|layer_norm)(?=\.)", "LayerNorm", name)
    name = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", name)
    name = re.sub(r"(?<=LayerNorm\.)beta$", "bias", name)
    return name if has_prefix or name.startswith("cls.") else f"bert.{name}"


@dataclass(frozen=True)
class _Stored:
    """A tensor in an open file."""

    file: SafetensorsFile
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.entries[self.name].shape

    def read_into(self, out: np.ndarray[Any, Any]) -> None:
        self.file.read_into(self.name, out)

    def read(self) -> np.ndarray[Any, Any]:
        out = np.empty(self.shape, np.float32)
        self.read_into(out)
        return out


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise FormatError(f"{index.name} has no weight_map from tensor names to file names")
        for name in sorted(set(shards.values())):
            if os.path.basename(name) != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
                raise FormatError(f"{index.name} names the shard {name!r}: a shard is a file in the same folder")
            if not (folder / name).exists():
                raise FormatError(f"{index.name} names the shard {name!r}, which is missing: fetch the folder again")
        return [folder / name for name in sorted(set(shards.values()))]
    pickles = [name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (folder / name).exists()]
    if pickles:
        raise FormatError(
            f"{pickles[0]} is a pickle, which can run code when it is read; lucid reads safetensors only. Convert the folder once, "
            "where transformers and torch are installed: AutoModelForMaskedLM.from_pretrained(DIR).save_pretrained(DIR)"
        )
    raise FileNotFoundError(f"{folder} holds neither model.safetensors nor model.safetensors.index.json")


@contextlib.contextmanager
def _open_folder(folder: Path) -> Iterator[dict[str, _Stored]]:
    """Open a folder's tensors, by canonical name."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(SafetensorsFile(path)) for path in _weight_files(folder)]
        has_prefix = any("bert.embeddings." in name for file in files for name in file.entries)
        stored: dict[str, _Stored] = {}
        for file in files:
            for name in file.entries:
                canonical = canonical_name(name, has_prefix=has_prefix)
                if canonical in stored:
                    other = stored[canonical]
                    raise FormatError(f"{file.path.name} holds {name!r}, which is {other.name!r} of {other.file.path.name} again")
                stored[canonical] = _Stored(file, name)
        yield stored


def has_tensor(folder: Path, name: str) -> bool:
    """Return whether a folder holds a tensor, by its canonical name."""
    with _open_folder(folder) as stored:
        return name in stored


def load_tensors(model: Module, folder: Path, *, strict: bool = True) -> LoadReport:
    """Set the parameters of a masked LM, or of a backbone under the path `bert.`, from a folder.

    Parameters
    ----------
    model : Module with the paths of `BERTForMaskedLM`; one without a decoder is a backbone
    folder : Path
    strict : bool
        Whether a missing tensor is an error; otherwise its parameter keeps its initial value.

    Raises
    ------
    FormatError
        A file is broken, a tensor is missing or has the wrong shape. No parameter was set.
    """
    with _open_folder(folder) as stored:
        sources, report = _plan(model, folder, stored, strict=strict)
        wanted = dict(model.named_parameters())
        values = {path: _read(wanted[path], names, stored) for path, names in sources.items()}
    for path, array in values.items():
        wanted[path].adopt(array)
    for note in report.notes:
        warnings.warn(note, stacklevel=3)
    if report.unexpected:
        warnings.warn(f"{folder.name}: the model has no place for {_some(report.unexpected)}", stacklevel=3)
    return report


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes
    ----------
    name : str. As the file has it.
    dtype : str. The format's name, such as "F32".
    shape : tuple of int
    n_bytes : int
    file : str. Name of its file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    file: str


def list_tensors(folder: Path) -> list[StoredTensor]:
    """Return the tensors of a folder, by file and place, from the files' headers alone.

    Raises
    ------
    FileNotFoundError, FormatError
    """
    with _open_folder(folder) as stored:
        found = []
        for each in stored.values():
            entry = each.file.entries[each.name]
            found.append(
                (each.file.path.name, entry.offset, StoredTensor(each.name, entry.dtype, entry.shape, entry.n_bytes, each.file.path.name))
            )
    return [tensor for _, _, tensor in sorted(found, key=lambda place: place[:2])]


def check_tensors(model: Module, folder: Path) -> LoadReport:
    """Return what `load_tensors` would report, missing tensors included; no weights are read but a doubled decoder's.

    Raises
    ------
    FileNotFoundError, FormatError
    """
    with _open_folder(folder) as stored:
        return _plan(model, folder, stored, strict=False)[1]


def _plan(model: Module, folder: Path, stored: dict[str, _Stored], *, strict: bool) -> tuple[dict[str, list[str]], LoadReport]:
    """Return which tensors make which parameter, and what to report, after all checks that need no values."""
    wanted = dict(model.named_parameters())
    notes = _settle_decoder(model, wanted, stored)
    sources = {path: foreign_names(path) for path in wanted}
    missing = sorted(name for names in sources.values() for name in names if name not in stored)
    if missing and strict:
        raise FormatError(
            f"{folder.name}: the checkpoint lacks {_some(missing)}. If these are to start at random (a new head, say), pass strict=False."
        )
    for path, names in sources.items():
        _check_shapes(path, wanted[path], names, stored)
    sources = {path: names for path, names in sources.items() if all(name in stored for name in names)}
    rest = sorted(stored.keys() - {name for names in sources.values() for name in names})
    paths = dict(model._named())
    ignored = tuple(name for name in rest if _IGNORED.match(name) or (_DECODER_WEIGHT not in paths and name.startswith("cls.")))
    doubles = {_DECODER_WEIGHT, _DECODER_BIAS, _OUTPUT_BIAS}
    unexpected = tuple(name for name in rest if name not in ignored and name not in doubles)
    return sources, LoadReport(len(sources), tuple(missing), unexpected, ignored, _is_tied(model), tuple(notes))


def _is_tied(model: Module) -> bool:
    paths = dict(model._named())
    return _DECODER_WEIGHT in paths and paths[_DECODER_WEIGHT] is paths.get(_WORD_TABLE)


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _settle_decoder(model: Any, wanted: dict[str, Parameter], stored: dict[str, _Stored]) -> list[str]:
    """Decide whether the decoder shares the word table, and which of two names its bias has."""
    notes: list[str] = []
    if _DECODER_BIAS not in wanted:
        return notes
    if _DECODER_BIAS not in stored and _OUTPUT_BIAS in stored:
        stored[_DECODER_BIAS] = stored[_OUTPUT_BIAS]
    elif _DECODER_BIAS in stored and _OUTPUT_BIAS in stored and not _are_equal(stored[_DECODER_BIAS], stored[_OUTPUT_BIAS]):
        notes.append(f"{_DECODER_BIAS} and {_OUTPUT_BIAS} differ: the decoder uses the first, as the reference implementation does")
    if _is_tied(model) and _DECODER_WEIGHT in stored:
        if _WORD_TABLE not in stored:
            stored[_WORD_TABLE] = stored[_DECODER_WEIGHT]
        elif not _are_equal(stored[_DECODER_WEIGHT], stored[_WORD_TABLE]):
            notes.append(f"config.json ties the decoder to the word table, but {_DECODER_WEIGHT} differs from it: loaded untied")
            model.untie_weights()
            wanted[_DECODER_WEIGHT] = dict(model.named_parameters())[_DECODER_WEIGHT]
    return notes


def _are_equal(a: _Stored, b: _Stored) -> bool:
    return a.shape == b.shape and np.array_equal(a.read(), b.read())


def _check_shapes(path: str, parameter: Parameter, names: list[str], stored: Mapping[str, _Stored]) -> None:
    shape = (parameter.shape[0] // len(names), *parameter.shape[1:])
    for name in names:
        if name not in stored:
            continue
        stored[name].file.want_floats(stored[name].name)
        if stored[name].shape != shape:
            raise FormatError(
                f"{stored[name].file.path.name}: tensor {name} has shape {stored[name].shape}, config.json makes it {shape} (for {path})"
            )


def _read(parameter: Parameter, names: list[str], stored: Mapping[str, _Stored]) -> np.ndarray[Any, Any]:
    out = np.empty(parameter.shape, np.float32)
    rows = parameter.shape[0] // len(names)
    for i, name in enumerate(names):
        stored[name].read_into(out[i * rows : (i + 1) * rows])
    return out


def save_tensors(model: Module, folder: Path) -> None:
    """Write `model.safetensors` with the names that transformers reads. An older file is replaced at the end, whole."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for path, parameter in model.named_parameters():
        names = foreign_names(path)
        for name, part in zip(names, np.split(parameter.numpy(), len(names)), strict=True):
            tensors[_OUTPUT_BIAS if name == _DECODER_BIAS else name] = part
    if _DECODER_WEIGHT in tensors:  # untied: the reference implementation looks for both names of the bias
        tensors[_DECODER_BIAS] = tensors[_OUTPUT_BIAS].copy()
    temporary = folder / f".model.safetensors.{os.getpid()}"
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / "model.safetensors")
    finally:
        temporary.unlink(missing_ok=True)
