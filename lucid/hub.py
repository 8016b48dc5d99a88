"""Checkpoints by name: a folder, lucid's own model, or the Hugging Face hub through its own library and cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

# What lucid reads of a repository; pickles and other frameworks' files stay where they are.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt")
MODEL_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors", *TOKENIZER_FILES)
BUILTIN = "builtin"
"""Name of the model that comes with lucid; a folder of that name is ./builtin."""
_BUILTIN_FOLDER = Path(__file__).parent / "models" / "builtin_en"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def checkpoint_folder(
    folder_or_hub_id: str | PathLike[str],
    revision: str | None = None,
    *,
    files: Sequence[str] = MODEL_FILES,
    wanted: str = "config.json and model.safetensors",
) -> Path:
    """Return the local folder of a checkpoint, fetching it into the hub's cache if it has to be.

    Parameters
    ----------
    folder_or_hub_id : path of a folder, "builtin" for the model that comes with lucid, or "org/name" on the hub
    revision : str, optional. Branch, tag or commit on the hub.
    files : patterns of the files to fetch
    wanted : str. What such a folder holds, for the error.

    Raises
    ------
    FileNotFoundError
        There is no such folder, and no such repository can be had: unknown, not in the cache while
        ``HF_HUB_OFFLINE=1``, or the network is out of reach.
    ValueError
        A revision was given for a folder.

    Notes
    -----
    The cache is the hub library's own (``HF_HOME``, ``HF_HUB_CACHE``); ``HF_HUB_OFFLINE=1`` forbids the network.
    """
    folder = _BUILTIN_FOLDER if folder_or_hub_id == BUILTIN else Path(folder_or_hub_id)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{folder} is a folder: a revision is for names on the hub")
        return folder
    if not isinstance(folder_or_hub_id, str) or folder.exists() or not _HUB_ID.fullmatch(folder_or_hub_id):
        what = "is a file, no folder" if folder.exists() else "is no folder"
        raise FileNotFoundError(f"{folder} {what}: give one that holds {wanted}, a name on the hub like org/name, or builtin")
    # Slow to import, and needed by few: not before it is.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(folder_or_hub_id, revision=revision, allow_patterns=list(files)))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        at = "" if revision is None else f" at revision {revision!r}"
        raise FileNotFoundError(
            f"{folder_or_hub_id!r}{at} is neither a folder here nor a repository that can be had: {_first_line(error)}. Check the name; "
            "offline (HF_HUB_OFFLINE=1) only what is in the cache can be loaded"
        ) from error


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
