"""A vocabulary and texts of the suite's own: the same on every machine, with nothing to fetch.

Words are made of syllables. The vocabulary has BERT's layout: padding first, the special tokens at 100 to 103, letters,
continuation pieces, words. Nothing that is timed depends on what a word means.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

N_WORDS = 30522
CLS, SEP, MASK = 101, 102, 103
_CONSONANTS = "bcdfghjklmnprstvwxyz"
_VOWELS = "aeiou"
_SYLLABLES = [c + v for c in _CONSONANTS for v in _VOWELS]
_ENDINGS = ["", "n", "r", "s", "t"]
_PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
# Coprime with the number of words that can be made, so that every word is met once, in no visible order.
_STRIDE = 7919


def _word(k: int) -> str:
    """Return the k-th word: two syllables and an ending."""
    n = len(_SYLLABLES)
    k = k * _STRIDE % (n * n * len(_ENDINGS))
    return _SYLLABLES[k % n] + _SYLLABLES[k // n % n] + _ENDINGS[k // n // n]


def _before_words() -> list[str]:
    """Return the tokens that stand before the words."""
    signs = [*map(chr, range(ord("a"), ord("z") + 1)), *map(str, range(10))]
    unused = (f"[unused{i}]" for i in range(99))
    return [
        "[PAD]",
        *unused,
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *_PUNCTUATION,
        *signs,
        *(f"##{piece}" for piece in (*signs, *_SYLLABLES)),
    ]


FIRST_WORD = len(_before_words())


def vocabulary() -> list[str]:
    """Return the tokens in the order of their ids: `N_WORDS` of them, all different."""
    return [*_before_words(), *(_word(k) for k in range(N_WORDS - FIRST_WORD))]


def lengths_between(shortest: int, longest: int, n: int) -> tuple[int, ...]:
    """Return `n` lengths, evenly spread, in a fixed order that is not sorted."""
    step = (longest - shortest) / max(1, n - 1)
    lengths = [shortest + round(i * step) for i in range(n)]
    random.Random(n).shuffle(lengths)
    return tuple(lengths)


def texts_of(lengths: Sequence[int], seed: int) -> list[str]:
    """Return a text for each length, in tokens with [CLS] and [SEP], that holds one [MASK] somewhere."""
    draw = random.Random(seed)
    made = []
    for length in lengths:
        words = [_word(int(draw.random() * (N_WORDS - FIRST_WORD))) for _ in range(length - 2)]
        words[int(draw.random() * len(words))] = "[MASK]"
        made.append(" ".join(words))
    return made


def ids_of(lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Return the ids of a text for each length, [CLS] first and [SEP] last, without masks."""
    draw = random.Random(seed)
    return [[CLS, *(FIRST_WORD + int(draw.random() * (N_WORDS - FIRST_WORD)) for _ in range(n - 2)), SEP] for n in lengths]
