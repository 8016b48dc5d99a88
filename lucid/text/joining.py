"""Tokens back to a text, one token at a time."""

from collections.abc import Iterable

from lucid.text.tokenizer import BERTTokenizerFast


class Joiner:
    """What each token adds to a text, remembered: for writing many texts that differ in few tokens.

    Parameters
    ----------
    tokenizer : BERTTokenizerFast

    Notes
    -----
    `tokenizer.decode` spells every token by itself: a space before it unless it goes on a word or is punctuation. So the
    text of a sequence is that of its first token and what each later one adds.
    """

    def __init__(self, tokenizer: BERTTokenizerFast) -> None:
        self._tokenizer = tokenizer
        # Not part of a text. Masks are: one that is not filled stays visible.
        self._dropped = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
        self._anchor = self._decode([tokenizer.unk_token_id])
        self._first: dict[int, str] = {}
        self._later: dict[int, str] = {}

    def join(self, ids: Iterable[int], *, is_start: bool = True) -> str:
        """Give the text of ids without [CLS], [SEP] and padding.

        Parameters
        ----------
        ids : iterable of int
        is_start : bool
            False for the rest of a text: its first token then gets its space.
        """
        kept = [i for i in ids if i not in self._dropped]
        later = self._later
        for i in kept:
            if i not in later:
                later[i] = self._decode([self._tokenizer.unk_token_id, i])[len(self._anchor) :]
        if not is_start or not kept:
            return "".join([later[i] for i in kept])
        if kept[0] not in self._first:
            self._first[kept[0]] = self._decode(kept[:1])
        return self._first[kept[0]] + "".join([later[i] for i in kept[1:]])

    def token(self, token_id: int) -> str:
        """Give the token of an id; the unknown token for a word that only the model has."""
        return str(self._tokenizer.convert_ids_to_tokens(self._known(token_id)))

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode([self._known(i) for i in ids], skip_special_tokens=False)

    def _known(self, token_id: int) -> int:
        return token_id if token_id < self._tokenizer.vocab_size else self._tokenizer.unk_token_id
