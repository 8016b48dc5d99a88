"""Text to token ids and back: `BERTTokenizerFast` on the `tokenizers` library."""

from lucid.text.tokenizer import BERTTokenizerFast

__all__ = ["BERTTokenizerFast"]
