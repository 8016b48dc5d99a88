"""Text to token ids and back: `BERTTokenizerFast` on the `tokenizers` library."""

from lucid.text.tokenizer import BERTTokenizerFast
from lucid.text.training import train_tokenizer

__all__ = ["BERTTokenizerFast", "train_tokenizer"]
