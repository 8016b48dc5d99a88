"""Vectors of texts, against NumPy on the last hidden state."""

from pathlib import Path

import numpy as np
import pytest

import lucid
from lucid.models import BERT, BERTForMaskedLM
from lucid.models.bert import embed as embed_module
from lucid.models.bert.packing import by_tokens

FIXTURES = Path(__file__).parent / "fixtures"
TEXTS = ["The cat sat on the road.", "", "A king", "the " * 30, "an unhappy queen read two books and slept."]


@pytest.fixture(scope="module")
def model() -> BERT:
    return BERT.from_pretrained(FIXTURES)


def states(model: BERT, text: str) -> np.ndarray:
    return model([model.tokenizer.encode(text)])[0].numpy()[0].astype(np.float64)


@pytest.mark.parametrize(
    ("pooling", "pool"), [("mean", lambda x: x.mean(axis=0)), ("max", lambda x: x.max(axis=0)), ("cls", lambda x: x[0])]
)
def test_poolings(model: BERT, pooling: str, pool) -> None:
    wanted = np.stack([pool(states(model, text)) for text in TEXTS])
    vectors = model.embed(TEXTS, pooling).numpy()
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, wanted, rtol=1e-5, atol=1e-6)
    unit = model.embed(TEXTS, pooling, normalize=True).numpy()
    np.testing.assert_allclose(unit, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_the_mean_is_the_default(model: BERT) -> None:
    assert (model.embed(TEXTS).numpy() == model.embed(TEXTS, "mean").numpy()).all()


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_a_vector_depends_on_its_text_alone(model: BERT, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together = model.embed(TEXTS, pooling).numpy()
    for text, vector in zip(TEXTS, together, strict=True):
        alone = model.embed(text, pooling)
        assert alone.shape == (1, 36)
        assert (alone.numpy()[0] == vector).all()
    monkeypatch.setattr(embed_module, "by_tokens", lambda lengths: by_tokens(lengths, 12))
    assert (model.embed(TEXTS, pooling).numpy() == together).all()
    assert (model.embed(TEXTS[::-1], pooling).numpy()[::-1] == together).all()


def test_no_texts_no_vectors(model: BERT) -> None:
    for pooling in ("mean", "max", "cls"):
        assert model.embed([], pooling, normalize=True).shape == (0, 36)


def test_train_mode_changes_nothing_and_records_nothing() -> None:
    model = BERT.from_pretrained(FIXTURES)
    wanted = model.embed(TEXTS).numpy()
    lucid.manual_seed(0)
    vectors = model.train().embed(TEXTS)
    assert (vectors.numpy() == wanted).all() and vectors.node is None and not vectors.requires_grad


def test_the_backbone_of_a_masked_lm_knows_the_tokenizer(model: BERT) -> None:
    backbone = BERTForMaskedLM.from_pretrained(FIXTURES).bert
    assert (backbone.embed(TEXTS).numpy() == model.embed(TEXTS).numpy()).all()


def test_cut_texts(model: BERT) -> None:
    most = model.config.max_position_embeddings
    long = "the cat sat " * most
    ids = model.tokenizer.encode(long, max_length=most, truncation=True)
    assert (model.embed(long, "cls", max_length=most).numpy()[0] == model([ids])[0].numpy()[0, 0]).all()
    assert (model.embed("the cat sat on", max_length=4).numpy() == model.embed("the cat").numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["the " * 39], {}, r"the text has 41 tokens with \[CLS\] and \[SEP\], the model's position table 40 rows: give max_length=40"),
        ([["a", "the " * 39]], {}, r"texts\[1\] has 41 tokens"),
        (["a", "median"], {}, "pooling must be one of 'mean', 'max', 'cls', not 'median'"),
        (["the " * 39], {"max_length": 41}, "the text has 41 tokens"),
        (["a"], {"max_length": 1}, "max_length"),
    ],
)
def test_what_is_refused(model: BERT, arguments: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.embed(*arguments, **options)


@pytest.mark.parametrize("texts", [None, 1, [None], b"bytes"])
def test_what_is_no_text(model: BERT, texts) -> None:
    with pytest.raises(TypeError, match="texts"):
        model.embed(texts)


def test_without_a_tokenizer() -> None:
    model = BERT(lucid.models.BERTConfig.sized(1, 64, vocab_size=50))
    with pytest.raises(ValueError, match="no tokenizer"):
        model.embed("a")
