"""Hugging Face folders, in and out: the only file that knows foreign tensor names.

Reading: `config.json` (config_file.py), then `model.safetensors` or the shards of `model.safetensors.index.json`. Old
spellings (gamma and beta, a missing `bert.` prefix, `module.`) are understood. Every name, shape and type
is checked before the first value is read, and every value is read before the first parameter is set, so a
model is loaded whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lucid.errors import FormatError
from lucid.models.config_file import CONFIG_FILE, read_json
from lucid.models.safetensors_file import SafetensorsFile
from lucid.nn import Linear, Module, Parameter
from lucid.ops.linear import PackedWeight
from lucid.ops.op import empty

# Parts of lucid's paths -> parts of the foreign names, for what is spelled differently.
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
WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint held, beside what the model wanted.

    Attributes
    ----------
    n_loaded : int. Parameters that were set, wholly or in part.
    missing : tensors that the model wanted and the checkpoint lacks, by today's names; they keep initial values
    unexpected : tensors that the model has no place for, by the checkpoint's names
    ignored : tensors that are known and not needed, such as the pooler under a masked LM head
    is_tied : bool. Whether decoder and word table are one parameter.
    notes : sentences on what else is worth knowing, such as a decoder that differs from the word table it is tied to
    """

    n_loaded: int = 0
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    is_tied: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"loaded {self.n_loaded} parameters; decoder and word table are {'tied' if self.is_tied else 'not tied'}"]
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected), ("ignored, not needed", self.ignored)):
            if names:
                lines.append(f"{what}: {', '.join(names)}")
        return "\n".join([*lines, *self.notes])


def foreign_names(path: str) -> list[str]:
    """Return the names under which the tensors of a parameter are stored; three for Q, K and V."""
    for own, foreign in _RENAMED.items():
        path = re.sub(rf"(?<=\.){re.escape(own)}(?=\.)", foreign, path)
    if ".attention.qkv." in path:
        return [path.replace(".attention.qkv.", f".attention.self.{part}.") for part in ("query", "key", "value")]
    return [path]


def _unwrapped(name: str) -> str:
    """Return a stored name without what torch's wrappers of modules put before it."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name)


def canonical_name(name: str, *, has_prefix: bool) -> str:
    """Return today's spelling of a stored tensor's name; `has_prefix` says whether the backbone's names begin with "bert."."""
    name = _unwrapped(name)
    name = re.sub(r"(?<=\.)(layernorm|layer_norm)(?=\.)", "LayerNorm", name)
    name = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", name)
    name = re.sub(r"(?<=LayerNorm\.)beta$", "bias", name)
    return name if has_prefix or name.startswith("cls.") else f"bert.{name}"


@dataclass(frozen=True)
class _Stored:
    """A tensor in an open file."""

    file: SafetensorsFile
    name: str

    def check(self, path: str, shape: tuple[int, ...]) -> None:
        """Raise FormatError unless the tensor can fill a parameter of this shape, whose path is `path`."""
        entry, place = self.file.entries[self.name], f"{self.file.path.name}: tensor {self.name}"
        if entry.shape != shape:
            raise FormatError(f"{place} has shape {entry.shape}, {CONFIG_FILE} makes it {shape} (for {path})")
        if not entry.is_float:
            raise FormatError(f"{place} holds {entry.dtype}, wanted floating-point numbers: save the model in float32, float16 or bfloat16")


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder."""
    if os.path.lexists(folder / WEIGHTS_FILE):
        return [folder / WEIGHTS_FILE]
    index = folder / _INDEX_FILE
    if os.path.lexists(index):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise FormatError(f"{index.name} has no weight_map from tensor names to file names")
        names = sorted(set(shards.values()))
        for name in names:
            if not _is_file_name(name):
                raise FormatError(f"{index.name} names the shard {name!r:.300}: a shard is a file in the same folder")
            if not (folder / name).exists():
                raise FormatError(f"{index.name} names the shard {name!r}, which is missing: fetch the folder again")
        return [folder / name for name in names]
    pickles = [name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (folder / name).exists()]
    if pickles:
        raise FormatError(
            f"{pickles[0]} is a pickle, which can run code when it is read; lucid reads safetensors only. Convert the folder once, "
            "where transformers and torch are installed: AutoModelForMaskedLM.from_pretrained(DIR).save_pretrained(DIR)"
        )
    raise FileNotFoundError(
        f"{folder} holds neither {WEIGHTS_FILE} nor {_INDEX_FILE}; a checkpoint that is a pytorch_model.bin has to be converted first"
    )


def _is_file_name(name: str) -> bool:
    """Return whether a name stands for something in the folder itself, on any system."""
    return name not in (".", "..") and re.fullmatch(r"[^/\\:\x00-\x1f\x7f\ud800-\udfff]+", name) is not None and len(name.encode()) <= 255


@contextlib.contextmanager
def _open_folder(folder: Path) -> Iterator[dict[str, _Stored]]:
    """Open a folder's tensors, by canonical name."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(SafetensorsFile(path)) for path in _weight_files(folder)]
        has_prefix = any(_unwrapped(name).startswith("bert.") for file in files for name in file.entries)
        stored: dict[str, _Stored] = {}
        for file in files:
            for name in file.entries:
                canonical = canonical_name(name, has_prefix=has_prefix)
                if canonical in stored:
                    other = stored[canonical]
                    raise FormatError(f"{file.path.name} holds {name!r:.100}, which is {other.name!r:.100} of {other.file.path.name} again")
                stored[canonical] = _Stored(file, name)
        yield stored


def has_tensor(folder: Path, name: str) -> bool:
    """Return whether a folder holds a tensor, by its canonical name."""
    with _open_folder(folder) as stored:
        return name in stored


def load_tensors(model: Any, folder: Path, *, strict: bool = True) -> LoadReport:
    """Set the parameters of a masked LM, or of a backbone under the path `bert.`, from a folder.

    Parameters
    ----------
    model : Module with the paths of `BERTForMaskedLM`; one without a decoder is a backbone
    folder : Path
    strict : bool
        Whether a missing tensor is an error; otherwise its parameter keeps its initial value.

    Raises
    ------
    FileNotFoundError
        There is no safetensors file.
    FormatError
        A file is broken, a tensor is missing or has the wrong shape or type. The model is as it was.

    Warns
    -----
    UserWarning
        There are tensors that the model has no place for, or the decoder differs from the word table that it is
        tied to.
    """
    with _open_folder(folder) as stored:
        plan = _plan(model, folder, stored, strict=strict)
        # Weights that are multiplied with go straight into the layout that inference wants.
        packed = {id(module.weight) for module in model.modules() if isinstance(module, Linear)}
        values = {
            path: (_read_packed if id(plan.parameters[path]) in packed else _read)(plan.parameters[path], names, stored)
            for path, names in plan.sources.items()
        }
    notes = _compare_twins(values) if plan.is_tied else []
    unexpected = [f"{folder.name}: the model has no place for {_some(plan.unexpected)}"] if plan.unexpected else []
    for note in [*notes, *unexpected]:
        warnings.warn(note, stacklevel=3)
    is_tied = plan.is_tied and _DECODER_WEIGHT not in values
    if plan.is_tied and not is_tied:
        model.untie_weights()
    parameters = dict(model._named())
    for path, array in values.items():
        if isinstance(array, PackedWeight):
            parameters[path].adopt_packed(array)
        else:
            parameters[path].adopt(array)
    return LoadReport(len(values), plan.missing, plan.unexpected, plan.ignored, is_tied, tuple(notes))


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
    """Return what `load_tensors` would report, missing tensors included, without reading a weight.

    Raises
    ------
    FileNotFoundError, FormatError
    """
    with _open_folder(folder) as stored:
        plan = _plan(model, folder, stored, strict=False)
    return LoadReport(
        len(plan.sources.keys() & dict(model.named_parameters()).keys()), plan.missing, plan.unexpected, plan.ignored, plan.is_tied
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to read: path -> stored names, and what is left over. Everything is checked but the values."""

    parameters: dict[str, Parameter]
    sources: dict[str, list[str]]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]
    is_tied: bool


def _plan(model: Module, folder: Path, stored: dict[str, _Stored], *, strict: bool) -> _Plan:
    parameters = dict(model._named())  # tied ones at both paths
    sources = {path: foreign_names(path) for path, _ in model.named_parameters()}
    has_decoder = _DECODER_BIAS in sources
    if has_decoder:
        _add_decoder_sources(parameters, sources, stored)
    missing = sorted(name for names in sources.values() for name in names if name not in stored)
    if missing and strict:
        raise FormatError(f"{folder.name}: the checkpoint lacks {_some(missing)}. To let them start at random, pass strict=False.")
    for path, names in sources.items():
        for name in filter(stored.__contains__, names):
            stored[name].check(path, _part_shape(parameters[path], names))
    used = {name for names in sources.values() for name in names}
    ignored: list[str] = []
    unexpected: list[str] = []
    for name in sorted(stored.keys() - used):
        is_known = _IGNORED.match(name) or name == _OUTPUT_BIAS or (name.startswith("cls.") and not has_decoder)
        (ignored if is_known else unexpected).append(stored[name].name)
    sources = {path: names for path, names in sources.items() if any(name in stored for name in names)}
    is_tied = has_decoder and parameters[_DECODER_WEIGHT] is parameters[_WORD_TABLE]
    return _Plan(parameters, sources, tuple(missing), tuple(unexpected), tuple(ignored), is_tied)


def _add_decoder_sources(parameters: dict[str, Parameter], sources: dict[str, list[str]], stored: Mapping[str, _Stored]) -> None:
    """Say which of the names that the decoder's tensors go by are there; with both, both are read."""
    if _DECODER_BIAS not in stored:
        sources[_DECODER_BIAS] = [_OUTPUT_BIAS]
    if parameters[_DECODER_WEIGHT] is not parameters[_WORD_TABLE]:
        return
    if _DECODER_BIAS in stored and _OUTPUT_BIAS in stored:
        sources[_OUTPUT_BIAS] = [_OUTPUT_BIAS]
        parameters[_OUTPUT_BIAS] = parameters[_DECODER_BIAS]
    if _DECODER_WEIGHT in stored:
        sources[_DECODER_WEIGHT if _WORD_TABLE in stored else _WORD_TABLE] = [_DECODER_WEIGHT]


def _compare_twins(values: dict[str, Any]) -> list[str]:
    """Take out of `values` the second of two tensors that are tied; one decoder weight that differs stays. Return notes."""
    notes = []
    bias, weight = values.pop(_OUTPUT_BIAS, None), values.get(_DECODER_WEIGHT)
    if bias is not None and not np.array_equal(bias, values[_DECODER_BIAS], equal_nan=True):
        notes.append(f"{_DECODER_BIAS} and {_OUTPUT_BIAS} differ: the decoder uses the first, as the reference implementation does")
    if weight is not None:
        if np.array_equal(weight.panels, values[_WORD_TABLE].panels, equal_nan=True):
            del values[_DECODER_WEIGHT]
        else:
            notes.append(f"{CONFIG_FILE} ties the decoder to the word table, but {_DECODER_WEIGHT} differs from it: loaded untied")
    return notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"{name:.100}" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _part_shape(parameter: Parameter, names: list[str]) -> tuple[int, ...]:
    """Return the shape of the tensors that make up a parameter, one below the other."""
    return (parameter.shape[0] // len(names), *parameter.shape[1:])


def _read(parameter: Parameter, names: list[str], stored: Mapping[str, _Stored]) -> np.ndarray[Any, Any]:
    """Return a parameter's values from the tensors that make it up; where one is missing, the initial ones."""
    is_whole = all(name in stored for name in names)
    out = empty(parameter.shape, is_lasting=True) if is_whole else np.array(parameter.numpy())
    for name, part in zip(names, np.split(out, len(names)), strict=True):
        if name in stored:
            stored[name].file.read_into(stored[name].name, part)
    return out


def _read_packed(parameter: Parameter, names: list[str], stored: Mapping[str, _Stored]) -> PackedWeight:
    """Return a weight as `_read` does, packed while it is read."""
    if not all(name in stored for name in names):
        return PackedWeight.pack(_read(parameter, names, stored))
    n_rows = _part_shape(parameter, names)[0]

    def read(begin: int, out: np.ndarray[Any, Any]) -> None:
        end = begin + len(out)
        for i, name in enumerate(names):  # the tensors' rows i * n_rows to (i + 1) * n_rows
            first, last = max(begin, i * n_rows), min(end, (i + 1) * n_rows)
            if first < last:
                stored[name].file.read_rows_into(stored[name].name, first - i * n_rows, out[first - begin : last - begin])

    return PackedWeight.from_rows((parameter.shape[0], parameter.shape[1]), read)


def foreign_tensors(model: Module) -> dict[str, np.ndarray[Any, Any]]:
    """Return what `model.safetensors` is to hold: the parameters, read-only, under the names that transformers reads."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for path, parameter in model.named_parameters():
        names = foreign_names(path)
        for name, part in zip(names, np.split(parameter.numpy(), len(names)), strict=True):
            tensors[_OUTPUT_BIAS if name == _DECODER_BIAS else name] = part
    if _DECODER_WEIGHT in tensors:  # untied: the reference implementation looks for both names of the bias
        tensors[_DECODER_BIAS] = tensors[_OUTPUT_BIAS]
    return tensors
