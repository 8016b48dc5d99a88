"""Text to token ids and back: `BERTTokenizerFast` on the `tokenizers` library."""

from lucid.text.tokenizer import BERTTokenizerFast
from lucid.text.vocabulary import TokenizerFormatError

__all__ = ["BERTTokenizerFast", "TokenizerFormatError"]
