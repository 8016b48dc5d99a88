"""BERT's template: where [CLS] and [SEP] stand, what is cut, what is padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding


@dataclass(frozen=True, slots=True)
class Template:
    """How the tokens of one or two texts become one sequence.

    Parameters
    ----------
    cls_id, sep_id : int
    is_special : int64 array, shape (vocabulary,)
        1 for every special token.
    add_special_tokens : bool
        Put [CLS] and [SEP] around the texts.
    limit : int or None
        The longest sequence allowed, special tokens included.
    truncation : bool
        Cut what is longer; otherwise it is a ValueError.
    has_special, has_offsets, has_word_ids : bool
        Whether to give the special tokens mask and these too.
    """

    cls_id: int
    sep_id: int
    is_special: npt.NDArray[np.int64]
    add_special_tokens: bool
    limit: int | None
    truncation: bool
    has_special: bool = False
    has_offsets: bool = False
    has_word_ids: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """What a filled template holds."""
        further = {"special_tokens_mask": self.has_special, "offsets": self.has_offsets, "word_ids": self.has_word_ids}
        return ("input_ids", "token_type_ids", "attention_mask", *(key for key, is_wanted in further.items() if is_wanted))

    def check_room(self, is_pair: bool) -> None:
        """Raise ValueError where the limit leaves no room for the special tokens."""
        if self.limit is not None and self.limit < self._n_special(is_pair):
            raise ValueError(
                f"max_length is {self.limit}, wanted at least {self._n_special(is_pair)}, since [CLS] and [SEP] take that many"
            )

    def fill(self, a: Encoding, b: Encoding | None, name: str) -> dict[str, list[Any]]:
        """Give the sequence of one text or pair as lists; `name` is what an error calls it."""
        n_a, n_b = len(a), 0 if b is None else len(b)
        n_special = self._n_special(b is not None)
        if self.limit is not None and n_a + n_b + n_special > self.limit:
            if not self.truncation:
                raise ValueError(
                    f"{name} gives {n_a + n_b + n_special} tokens, more than max_length={self.limit}; "
                    "pass truncation=True to cut it, or split the text"
                )
            n_a, n_b = longest_first(n_a, n_b, self.limit - n_special)
        ids = self._frame(a.ids[:n_a], None if b is None else b.ids[:n_b], self.cls_id, self.sep_id)
        n_second = 0 if b is None else n_b + self.add_special_tokens
        filled: dict[str, list[Any]] = {
            "input_ids": ids,
            "token_type_ids": [0] * (len(ids) - n_second) + [1] * n_second,
            "attention_mask": [1] * len(ids),
        }
        if self.has_special:
            # By id: the library's own mask leaves out a [MASK] that the text wrote, and masking must not choose it.
            filled["special_tokens_mask"] = self.is_special[ids].tolist()
        if self.has_offsets:
            filled["offsets"] = self._frame(a.offsets[:n_a], None if b is None else b.offsets[:n_b], (0, 0), (0, 0))
        if self.has_word_ids:
            filled["word_ids"] = self._frame(a.word_ids[:n_a], None if b is None else b.word_ids[:n_b], None, None)
        return filled

    def _n_special(self, is_pair: bool) -> int:
        return (2 + is_pair) * self.add_special_tokens

    def _frame(self, a: list[Any], b: list[Any] | None, cls: Any, sep: Any) -> list[Any]:
        """Give `cls a sep`, or `cls a sep b sep`; without special tokens `a b`."""
        start, end = ([cls], [sep]) if self.add_special_tokens else ([], [])
        return start + a + end if b is None else start + a + end + b + end


def longest_first(n_a: int, n_b: int, room: int) -> tuple[int, int]:
    """Give how many tokens two texts keep, together `room`, when the longer one is cut first.

    Notes
    -----
    Where both end up cut, the text that was longer keeps the odd token; of two equally long ones the second does.
    That is the rule of the `tokenizers` library.
    """
    if n_a > n_b:
        n_b = min(n_b, room // 2)
        return room - n_b, n_b
    n_a = min(n_a, room // 2)
    return n_a, room - n_a


def pad(rows: Sequence[Sequence[int]], width: int, value: int) -> npt.NDArray[np.int64]:
    """Give rows of different lengths as one array of shape (rows, width), filled up with a value."""
    padded = np.full((len(rows), width), value, np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
