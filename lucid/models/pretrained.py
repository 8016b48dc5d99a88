"""What every model has that can be loaded from a folder and saved to one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from lucid.errors import FormatError, of_folder
from lucid.hub import checkpoint_folder
from lucid.models.bert.config import BERTConfig
from lucid.models.checkpoint import LoadReport, has_tensor, load_tensors
from lucid.models.config_file import config_json, read_config
from lucid.models.saving import save_folder
from lucid.nn import Module
from lucid.text import BERTTokenizerFast


class PretrainedModel(Module):
    """A module with a configuration, and perhaps a tokenizer, that lives in Hugging Face folders.

    Attributes
    ----------
    config : BERTConfig
    tokenizer : BERTTokenizerFast or None. Set by `from_pretrained` where the folder has one.
    load_report : LoadReport or None. What `from_pretrained` found.
    """

    architecture: str
    """Name of the same model in transformers, for config.json."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        if not isinstance(config, BERTConfig):
            raise TypeError(f"{type(self).__name__} wants a BERTConfig, not {type(config).__name__}; see BERTConfig.base()")
        self.config = replace(config)  # a copy: what is done to one model is not done to its siblings
        self.tokenizer: BERTTokenizerFast | None = None
        self.load_report: LoadReport | None = None

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path, *, strict: bool = True, revision: str | None = None) -> Self:
        """Load a model, and its tokenizer if there is one, from a folder or the hub. The model is in eval mode.

        Parameters
        ----------
        folder_or_hub_id : path of a folder, "org/name" on the Hugging Face hub, or "builtin" for the model that comes with lucid
            Holds ``config.json`` and ``model.safetensors`` (or its shards and their index). Numbers become
            float32, whatever the file holds.
        strict : bool
            Whether a tensor that the checkpoint lacks is an error. Otherwise its parameter starts at random.
        revision : str, optional. Branch, tag or commit on the hub.

        Raises
        ------
        FileNotFoundError
            The folder, or a file in it, is missing, or the hub does not give it.
        FormatError
            A file is broken, a tensor is missing or has the wrong shape, or the tokenizer has more words
            than the word table.

        Warns
        -----
        UserWarning
            The checkpoint holds tensors that the model has no place for, or a decoder that differs from the
            word table that config.json ties it to; it is loaded untied.
        """
        folder = checkpoint_folder(folder_or_hub_id, revision)
        with of_folder(folder):
            model = cls(read_config(folder, add_pooling_layer=cls._wants_pooler(folder)))
            model._adopt_tokenizer(folder)
            model.load_report = load_tensors(model._as_masked_lm(), folder, strict=strict)
        return model.eval()

    @classmethod
    def _wants_pooler(cls, folder: Path) -> bool:
        """Return whether the model is to have a pooler: here, as under a masked LM head, it never is."""
        return False

    def _as_masked_lm(self) -> Module:
        """Return a module whose paths are those of a masked LM: what the checkpoint's names are for."""
        return self

    def _adopt_tokenizer(self, folder: Path) -> None:
        """Take the tokenizer of a folder, if it has one; where it sets no limit, the position table does."""
        if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
            return
        self.tokenizer = BERTTokenizerFast.from_pretrained(folder)
        if self.tokenizer.vocab_size > self.config.vocab_size:
            raise FormatError(
                f"{folder.name}: the tokenizer has {self.tokenizer.vocab_size} words, the word table {self.config.vocab_size} rows: "
                "they belong to different models"
            )
        if self.tokenizer.model_max_length is None:
            self.tokenizer.model_max_length = self.config.max_position_embeddings

    def save_pretrained(self, folder: str | Path, dtype: str = "float32") -> None:
        """Write a folder that `from_pretrained` and transformers load: config.json, model.safetensors, tokenizer.

        Parameters
        ----------
        folder : path. Made if it is missing, its parents too. An older model in it is replaced at the end, whole.
        dtype : "float32" or "float16". Of the stored numbers; float16 halves the file; it keeps 11 bits of numbers above 6e-5, fewer of
            smaller ones, and none below 3e-8.

        Raises
        ------
        OSError
            The folder or a file cannot be written.
        ValueError
            Another type, or a number that float16 has no room for (above 65,504). No file was written.
        """
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be 'float32' or 'float16', not {dtype!r}")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_folder(self._as_masked_lm(), config_json(self.config, self.architecture, dtype), folder, dtype)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def extra_repr(self) -> str:
        """Return the main sizes."""
        c: Any = self.config
        return f"{c.num_hidden_layers} layers, {c.hidden_size} wide, {c.num_attention_heads} heads, {c.vocab_size} words"


def folder_has_pooler(folder: Path) -> bool:
    """Return whether a checkpoint holds a pooler."""
    return has_tensor(folder, "bert.pooler.dense.weight")
