"""Made-up text, and a tokenizer for it."""

from pathlib import Path

import numpy as np

from lucid.text import BERTTokenizerFast

WORDS = ["sun", "moon", "river", "stone", "walks", "sees", "under", "over", "the", "a", "old", "new", "green", "far", "home", "sing"]
PIECES = ["##s", "##er", "##ing"]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PIECES, "."]


def tokenizer() -> BERTTokenizerFast:
    return BERTTokenizerFast(vocab=VOCAB)


def sentence(rng: np.random.Generator, n_words: int) -> str:
    words = [WORDS[i] for i in rng.integers(0, len(WORDS), n_words)]
    endings = rng.choice(["", "", "", "s", "er", "ing"], n_words)
    return " ".join(word + end for word, end in zip(words, endings, strict=True)) + "."


def documents(seed: int, n_documents: int, n_lines: int = 6, n_words: int = 9) -> list[list[str]]:
    rng = np.random.default_rng([seed, 77])
    return [[sentence(rng, int(rng.integers(1, n_words))) for _ in range(int(rng.integers(1, n_lines)))] for _ in range(n_documents)]


def write(path: Path, found: list[list[str]]) -> Path:
    path.write_text("\n\n".join("\n".join(lines) for lines in found) + "\n", encoding="utf-8")
    return path
