"""The built-in model, and models by size: Devlin et al. 2019 (base, large) and Turc et al. 2019 (tiny to medium)."""

from typing import Any

from lucid.hub import BUILTIN
from lucid.models.bert.backbone import BERT
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.masked_lm import BERTForMaskedLM


def from_builtin() -> BERTForMaskedLM:
    """Return the masked LM that comes with lucid: 4 layers, 192 wide, English, lower-cased; in eval mode, with its tokenizer.

    Returns
    -------
    model : BERTForMaskedLM, float32

    Notes
    -----
    lucid trained it from nothing. What it learnt from, what it can and cannot do: ``README.md`` in its folder, `lucid/models/builtin_en`.
    """
    return BERTForMaskedLM.from_pretrained(BUILTIN)


def bert_base(**config_overrides: Any) -> BERT:
    """Return a BERT-base encoder (12 layers, 768 wide) with random weights; overrides go to `BERTConfig`."""
    return BERT(BERTConfig.base(**config_overrides))


def bert_large(**config_overrides: Any) -> BERT:
    """Return a BERT-large encoder (24 layers, 1024 wide) with random weights; overrides go to `BERTConfig`."""
    return BERT(BERTConfig.large(**config_overrides))


def _masked_lm(num_hidden_layers: int, hidden_size: int, overrides: dict[str, Any]) -> BERTForMaskedLM:
    return BERTForMaskedLM(BERTConfig.sized(num_hidden_layers, hidden_size, **{"add_pooling_layer": False, **overrides}))


def bert_for_masked_lm_tiny(**config_overrides: Any) -> BERTForMaskedLM:
    """Return a masked LM of 2 layers, 128 wide, with random weights."""
    return _masked_lm(2, 128, config_overrides)


def bert_for_masked_lm_mini(**config_overrides: Any) -> BERTForMaskedLM:
    """Return a masked LM of 4 layers, 256 wide, with random weights."""
    return _masked_lm(4, 256, config_overrides)


def bert_for_masked_lm_small(**config_overrides: Any) -> BERTForMaskedLM:
    """Return a masked LM of 4 layers, 512 wide, with random weights."""
    return _masked_lm(4, 512, config_overrides)


def bert_for_masked_lm_medium(**config_overrides: Any) -> BERTForMaskedLM:
    """Return a masked LM of 8 layers, 512 wide, with random weights."""
    return _masked_lm(8, 512, config_overrides)


def bert_for_masked_lm_base(**config_overrides: Any) -> BERTForMaskedLM:
    """Return a BERT-base masked LM (12 layers, 768 wide, 109,514,298 parameters) with random weights."""
    return _masked_lm(12, 768, config_overrides)


def bert_for_masked_lm_large(**config_overrides: Any) -> BERTForMaskedLM:
    """Return a BERT-large masked LM (24 layers, 1024 wide) with random weights."""
    return _masked_lm(24, 1024, config_overrides)
