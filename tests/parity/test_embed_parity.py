"""Sentence embeddings against sentence-transformers."""

import os
from pathlib import Path

import numpy as np
import pytest

from lucid.models import BERT, BERTTokenizerFast

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "a", "mat", "##s", ".", ",", "slept"]
TEXTS = ["The cat sat on a mat.", "", "cats", "the cats slept, the mats slept, the cat sat. " * 4, "[MASK] sat on unknown."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint")
    config = transformers.BertConfig(
        hidden_size=48, num_attention_heads=3, num_hidden_layers=3, intermediate_size=96, vocab_size=len(WORDS), initializer_range=0.3
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(path)
    BERTTokenizerFast(vocab=WORDS).save_pretrained(path)
    return path


@pytest.mark.parametrize("max_length", [None, 8])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_vectors(folder: Path, pooling: str, normalize: bool, max_length: int | None) -> None:
    encoder = modules.Transformer(str(folder), max_seq_length=max_length)
    chain = [encoder, modules.Pooling(48, pooling_mode=pooling), *([modules.Normalize()] if normalize else [])]
    wanted = sentence_transformers.SentenceTransformer(modules=chain, device="cpu").encode(TEXTS, batch_size=3)
    vectors = BERT.from_pretrained(folder).embed(TEXTS, pooling, normalize=normalize, max_length=max_length).numpy()
    assert vectors.shape == wanted.shape
    assert np.abs(vectors - wanted).max() <= 4e-6 * max(1, np.abs(wanted).max())
