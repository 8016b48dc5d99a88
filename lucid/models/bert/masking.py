"""Masking tokens for training: which are asked for, and what stands in their place."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid.models.bert.packing import attention_cells, flags, integers, want_range
from lucid.ops.mlm_mask import mlm_mask
from lucid.random import resolve_seed
from lucid.tensor import Tensor

MASK_TOKEN_ID = 103
"""Of the released BERT vocabularies."""


class TokenMasking:
    """Methods that mask tokens; mixed into `BERTForMaskedLM`, which is what `self` is."""

    def create_masked_lm_inputs(
        self: Any,
        input_ids: Any,
        attention_mask: Any = None,
        special_tokens_mask: Any = None,
        *,
        mask_token_id: int = MASK_TOKEN_ID,
        mlm_probability: float = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        ignore_index: int = -100,
        seed: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Choose tokens to ask for, and corrupt them (Devlin et al. 2019, section 3.1).

        Parameters
        ----------
        input_ids : integers, shape (B, S)
        attention_mask : 0 and 1, shape (B, S), optional. Padding is never chosen.
        special_tokens_mask : 0 and 1, shape (B, S), optional. 1 is never chosen. Default: the model's
            special tokens, which are never drawn as random words either.
        mask_token_id : int. What stands for a masked token. 103, the default, stands for the tokenizer's [MASK] where the model
            has a tokenizer, whatever its word 103 is.
        mlm_probability : float. That a token is chosen.
        mask_replace_prob, random_replace_prob : float. That a chosen token becomes [MASK], or a random
            word; else it stays as it is.
        ignore_index : int. Label of a token that was not chosen.
        seed : int, optional. The same seed chooses the same tokens, whatever else is in the batch.

        Returns
        -------
        masked_input_ids, labels : Tensor, int64, shape (B, S)

        Raises
        ------
        IndexError
            An id is out of range.
        TypeError, ValueError
            Wrong dtypes, shapes or probabilities.
        """
        ids = integers("input_ids", input_ids)
        is_real = attention_cells(attention_mask, ids.shape)
        want_range("input_ids", ids, is_real, self.config.vocab_size, "the vocabulary has that many words")
        if mask_token_id == MASK_TOKEN_ID and self.tokenizer is not None:
            mask_token_id = self.tokenizer.mask_token_id
        if special_tokens_mask is None:
            may_mask = is_real & ~np.isin(ids, self.special_token_ids)
        else:
            may_mask = is_real & ~flags("special_tokens_mask", special_tokens_mask, ids.shape)
        n_sequences, length = ids.shape
        masked, labels = self.mask_tokens(
            np.ascontiguousarray(ids).reshape(-1),
            may_mask.reshape(-1),
            np.maximum(np.cumsum(is_real, axis=1, dtype=np.int32) - 1, 0).reshape(-1),
            np.repeat(np.arange(n_sequences, dtype=np.int32), length),
            mask_token_id=mask_token_id,
            mlm_probability=mlm_probability,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            ignore_index=ignore_index,
            seed=seed,
        )
        return Tensor(masked.reshape(ids.shape)), Tensor(labels.reshape(ids.shape))

    def mask_tokens(
        self: Any, ids: Any, may_mask: Any, columns: Any, examples: Any, *, seed: int | None = None, **settings: Any
    ) -> tuple[Any, Any]:
        """Do what `create_masked_lm_inputs` does, for tokens in a row, (T,), of which place and example are said."""
        return mlm_mask(  # type: ignore[no-any-return]
            ids,
            may_mask=may_mask.astype(np.uint8),
            columns=columns,
            examples=examples,
            special_ids=np.asarray(self.special_token_ids, np.int32),
            vocab_size=self.config.vocab_size,
            seed=resolve_seed(seed),
            **settings,
        )
