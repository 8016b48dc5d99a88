"""CTranslate2: an encoder, without a head for masked words. It leaves padding out, as lucid does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmarks.peers import Setting
from benchmarks.peers.graph import Timed
from benchmarks.processes import in_own_process
from benchmarks.workloads import Case


def make(variant: str, setting: Setting) -> CTranslate2:
    """Return the peer; its model is made where it is missing."""
    return CTranslate2(setting)


class CTranslate2:
    """The encoder."""

    def __init__(self, setting: Setting) -> None:
        import ctranslate2

        self.encoder = ctranslate2.Encoder(
            str(_folder(setting)), device="cpu", compute_type="float32", inter_threads=1, intra_threads=setting.n_threads
        )

    def encode(self, case: Case) -> Timed:
        """Return the function that returns the last hidden state."""
        import numpy as np

        rows = case.rows()
        return lambda: {"hidden": np.asarray(self.encoder.forward_batch(rows).last_hidden_state)}


def make_files(variant: str, setting: Setting) -> None:
    """Make the model if it is missing."""
    _folder(setting)


def _folder(setting: Setting) -> Path:
    folder = setting.cache / "ctranslate2"
    if not folder.exists():
        in_own_process(_convert, setting.folder, folder)
    return folder


def _convert(checkpoint: Path, folder: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import ctranslate2
    import transformers

    # The converter reads the folder of an encoder; its pooler is at random, and is not asked.
    encoder = folder.with_name("ctranslate2-encoder")
    transformers.BertModel.from_pretrained(checkpoint).save_pretrained(encoder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(checkpoint / name, encoder)
    unfinished = folder.with_name("ctranslate2-unfinished")
    ctranslate2.converters.TransformersConverter(str(encoder)).convert(str(unfinished), force=True)
    shutil.rmtree(encoder)
    unfinished.rename(folder)
