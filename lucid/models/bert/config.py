"""The shape of a BERT."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from lucid.ops.activation import ACTIVATIONS


@dataclass
class BERTConfig:
    """Sizes and settings of a BERT model.

    Attributes
    ----------
    vocab_size : int. Rows of the word table.
    hidden_size : int. Width of a token's vector; a multiple of num_attention_heads.
    num_attention_heads, num_hidden_layers : int
    intermediate_size : int. Width inside the feed-forward block.
    hidden_act : str. "gelu" (the erf form, as in Hugging Face checkpoints), "gelu_new" (tanh form), "relu", "silu", "tanh".
    hidden_dropout_prob, attention_probs_dropout_prob : float in [0, 1)
    max_position_embeddings : int. The longest sequence.
    tie_word_embedding : bool. Whether the decoder shares the word table.
    type_vocab_size : int. Rows of the segment table.
    initializer_range : float. Standard deviation of initial weights.
    layer_norm_eps : float
    use_cache, is_decoder, add_cross_attention, chunk_size_feed_forward
        Kept for compatibility: lucid runs encoders, so is_decoder and add_cross_attention must be False.
    pad_token_id, bos_token_id, eos_token_id : int or None
    classifier_dropout : float or None. Kept for compatibility.
    add_pooling_layer : bool. Whether the backbone ends in a pooler.

    Raises
    ------
    TypeError, ValueError
        A value of the wrong type, or out of range; the message names it.
    """

    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    intermediate_size: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    max_position_embeddings: int
    tie_word_embedding: bool
    type_vocab_size: int
    initializer_range: float
    layer_norm_eps: float
    use_cache: bool
    is_decoder: bool
    add_cross_attention: bool
    chunk_size_feed_forward: int
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    classifier_dropout: float | None = None
    add_pooling_layer: bool = True

    def __post_init__(self) -> None:
        for name, most in (
            ("vocab_size", 1 << 24),
            ("hidden_size", 1 << 16),
            ("num_attention_heads", 1 << 12),
            ("num_hidden_layers", 255),
            ("intermediate_size", 1 << 20),
            ("max_position_embeddings", 1 << 16),
            ("type_vocab_size", 1 << 16),
        ):
            setattr(self, name, _number(name, getattr(self, name), int, 1, most))
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            setattr(self, name, _number(name, getattr(self, name), float, 0, 1))
            if getattr(self, name) == 1:
                raise ValueError(f"BERTConfig: {name} must be smaller than 1")
        self.initializer_range = _number("initializer_range", self.initializer_range, float, 0, 1e3)
        self.layer_norm_eps = _number("layer_norm_eps", self.layer_norm_eps, float, 1e-30, 1)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"BERTConfig: hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if not isinstance(self.hidden_act, str):
            raise TypeError(f"BERTConfig: hidden_act must be a name, one of {', '.join(ACTIVATIONS)}; not {type(self.hidden_act).__name__}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"BERTConfig: hidden_act {self.hidden_act!r} is unknown; known: {', '.join(ACTIVATIONS)}")
        if self.is_decoder or self.add_cross_attention:
            raise ValueError("BERTConfig: is_decoder and add_cross_attention must be False: lucid runs BERT as an encoder")
        if self.pad_token_id is not None:
            self.pad_token_id = _number("pad_token_id", self.pad_token_id, int, 0, self.vocab_size - 1)

    @classmethod
    def base(cls, **overrides: Any) -> BERTConfig:
        """Return the configuration of BERT-base (12 layers, 768 wide), with any attribute overridden."""
        return cls.sized(12, 768, **overrides)

    @classmethod
    def large(cls, **overrides: Any) -> BERTConfig:
        """Return the configuration of BERT-large (24 layers, 1024 wide), with any attribute overridden."""
        return cls.sized(24, 1024, **overrides)

    @classmethod
    def sized(cls, num_hidden_layers: int, hidden_size: int, /, **overrides: Any) -> BERTConfig:
        """Return a configuration in BERT's proportions: heads 64 wide, feed-forward 4 times the width."""
        settings: dict[str, Any] = {
            "vocab_size": 30522,
            "hidden_size": hidden_size,
            "num_attention_heads": hidden_size // 64,
            "num_hidden_layers": num_hidden_layers,
            "intermediate_size": 4 * hidden_size,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "max_position_embeddings": 512,
            "tie_word_embedding": True,
            "type_vocab_size": 2,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-12,
            "use_cache": False,
            "is_decoder": False,
            "add_cross_attention": False,
            "chunk_size_feed_forward": 0,
        }
        unknown = sorted(overrides.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise TypeError(f"BERTConfig has no {', '.join(unknown)}; it has {', '.join(cls.__dataclass_fields__)}")
        return cls(**{**settings, **overrides})


def _number(name: str, value: Any, kind: type, least: float, most: float) -> Any:
    """Return a number, NumPy's too, as Python's int or float."""
    wanted: Any = Integral if kind is int else Real
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise TypeError(f"BERTConfig: {name} must be {'an integer' if kind is int else 'a number'}, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"BERTConfig: {name} must lie between {least} and {most}, not {value}")
    return kind(value)
