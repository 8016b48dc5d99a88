"""A vocabulary from text: WordPiece, as the tokenizers library trains it."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import trainers

from lucid.errors import FormatError
from lucid.text.tokenizer import BERTTokenizerFast
from lucid.text.vocabulary import build_backend

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tokenizer(
    lines: Iterable[str],
    vocab_size: int,
    *,
    lowercase: bool = True,
    min_frequency: int = 2,
    most_characters: int = 1000,
) -> BERTTokenizerFast:
    """Train a WordPiece vocabulary on text.

    Parameters
    ----------
    lines : iterable of str. Read twice.
    vocab_size : int. Words at most, the five special ones included; [PAD] is 0.
    lowercase : bool. Lowercase and drop accents, here and whenever the tokenizer is used.
    min_frequency : int. A pair of pieces that is seen less often is not joined.
    most_characters : int. Rarer characters than so many become [UNK].

    Raises
    ------
    FormatError
        There is no word in the text.
    TypeError
        `lines` can be read only once.
    ValueError
        The vocabulary is too small for the characters of the text.
    """
    if vocab_size < len(_SPECIAL) + 1:
        raise ValueError(f"a vocabulary has the five special tokens and a word at least, not {vocab_size}")
    if iter(lines) is lines:
        raise TypeError("lines are read twice: give a list, or an object that can be iterated again")

    def train(first: list[str], n_words: int) -> dict[str, int]:
        backend = build_backend(_SPECIAL, lowercase=lowercase)
        trainer = trainers.WordPieceTrainer(
            vocab_size=n_words,
            min_frequency=min_frequency,
            limit_alphabet=min(most_characters, vocab_size),
            special_tokens=first,
            continuing_subword_prefix="##",
            show_progress=False,
        )
        backend.train_from_iterator(lines, trainer)
        vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        return vocab

    # The library numbers the letters that go on a word at random, and lets the numbers decide between pairs that are equally
    # frequent. So a first pass finds these letters, and the second is given them in order.
    letters = sorted(token for token in train(_SPECIAL, 0) if token.startswith("##") and len(token) == 3)
    vocab = train([*_SPECIAL, *letters], vocab_size)
    if len(vocab) <= len(_SPECIAL):
        raise FormatError("no words: the text is empty")
    if len(vocab) > vocab_size:
        raise ValueError(f"the characters of the text alone make {len(vocab)} words: a vocabulary of {vocab_size} does not hold them")
    return BERTTokenizerFast(vocab=vocab, lowercase=lowercase)
