"""`fill_mask` beside transformers' fill-mask pipeline, on the trained checkpoint and real sentences.

A plain run takes 100 sentences of the validation corpus, `--slow` 1,000.
"""

import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid.models import BERTForMaskedLM, MaskFill

pytest.importorskip("torch", reason="torch is the reference; it is not installed")
pytest.importorskip("transformers", reason="transformers is the reference; it is not installed")

from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
CHECKPOINT = SHARED / "models" / "splade-tiny"
CORPUS = SHARED / "corpus" / "validation.txt.xz"

pytestmark = [
    pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="the shared checkpoint splade-tiny is not there"),
    pytest.mark.skipif(not CORPUS.is_file(), reason="the shared corpus file validation.txt.xz is not there"),
]

TOLERANCE = 1e-5


def masked_sentences(n_sentences: int) -> list[str]:
    """Give sentences of 5 to 60 words from all over the corpus, one word of each replaced by [MASK]."""
    with lzma.open(CORPUS, "rt", encoding="utf-8") as file:
        sentences = [sentence for line in file for sentence in re.split(r"(?<=[.!?]) ", line.strip())]
    sentences = [sentence for sentence in sentences if 5 <= len(sentence.split()) <= 60]
    assert len(sentences) >= 4 * n_sentences
    rng = np.random.default_rng(41)
    chosen = []
    for place in np.sort(rng.choice(len(sentences), n_sentences, replace=False)):
        words = sentences[place].split()
        at = rng.integers(len(words))
        words[at] = re.sub(r"\w[\w'’-]*", "[MASK]", words[at], count=1) if re.search(r"\w", words[at]) else "[MASK]"
        chosen.append(" ".join(words))
    return chosen


@pytest.fixture(scope="module")
def texts(request: pytest.FixtureRequest) -> list[str]:
    texts = masked_sentences(1000 if request.config.getoption("--slow") else 100)
    assert len(set(texts)) == len(texts)
    assert all(text.count("[MASK]") == 1 for text in texts)
    return texts


@pytest.fixture(scope="module")
def ours() -> BERTForMaskedLM:
    return BERTForMaskedLM.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        model = AutoModelForMaskedLM.from_pretrained(CHECKPOINT).eval()
        yield pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(CHECKPOINT), device="cpu")


def check_same(text: str, fills: list[MaskFill], wanted: list[dict[str, Any]]) -> float:
    """Check one mask's guesses; return the largest difference of probabilities.

    The same scores in order, and the same words; two words whose scores differ by less than the tolerance may change
    places, also over the edge of the list.
    """
    scores, wanted_scores = (np.array(values) for values in ([fill.score for fill in fills], [fill["score"] for fill in wanted]))
    assert len(scores) == len(wanted_scores)
    error = float(np.abs(scores - wanted_scores).max())
    assert error <= TOLERANCE, text
    tokens, wanted_tokens = [fill.token for fill in fills], [fill["token"] for fill in wanted]
    for place, (token, wanted_token) in enumerate(zip(tokens, wanted_tokens, strict=True)):
        if token == wanted_token:
            continue
        near = np.flatnonzero(np.abs(wanted_scores - wanted_scores[place]) < TOLERANCE)
        reaches_edge = near[-1] == len(tokens) - 1
        assert reaches_edge or token in [wanted_tokens[i] for i in near], (text, tokens, wanted_tokens)
    by_token = {fill["token"]: fill for fill in wanted}
    for fill in fills:
        if fill.token in by_token:
            assert fill.token_str == by_token[fill.token]["token_str"].replace(" ", "")
            assert fill.score == pytest.approx(by_token[fill.token]["score"], abs=TOLERANCE)
    return error


def test_sentences(ours, theirs, texts):
    """All sentences in one call of ours; theirs, which pads, one by one."""
    all_fills = ours.fill_mask(texts)
    assert len(all_fills) == len(texts)
    errors, n_swapped = [], 0
    for text, (fills,) in zip(texts, all_fills, strict=True):
        wanted = theirs(text, top_k=5)
        errors.append(check_same(text, fills, wanted))
        n_swapped += [fill.token for fill in fills] != [fill["token"] for fill in wanted]
    print(f"parity: fill-mask: {len(texts)} sentences, largest difference {max(errors):.2e}, {n_swapped} in another order")
    assert n_swapped <= len(texts) // 100


def test_sequences(ours, theirs, texts):
    """The filled text reads as theirs, up to how spaces stand around punctuation."""
    for text in texts[:20]:
        (fills,), wanted = ours.fill_mask(text), theirs(text, top_k=5)
        for fill, other in zip(fills, wanted, strict=True):
            if fill.token == other["token"]:
                assert fill.sequence.replace(" ", "") == other["sequence"].replace(" ", "")


def test_many_masks(ours, theirs, texts):
    """Two masks in a text: theirs gives a list for each."""
    for text in texts[:20]:
        words = text.split()
        words[0 if "[MASK]" in words[-1] else -1] = "[MASK]"
        double = " ".join(words)
        if double.count("[MASK]") != 2:
            continue
        fills, wanted = ours.fill_mask(double, top_k=7), theirs(double, top_k=7)
        assert len(fills) == len(wanted) == 2
        for mine, other in zip(fills, wanted, strict=True):
            check_same(double, mine, other)


def test_targets(ours, theirs, texts):
    words = ["the", "city", "people", "water", "was", "new"]
    for text in texts[:20]:
        (fills,) = ours.fill_mask(text, targets=words)
        wanted = theirs(text, targets=words, top_k=5)
        check_same(text, fills, wanted)
        assert {fill.token_str for fill in fills} <= set(words)
