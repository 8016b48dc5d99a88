"""BERT's tokenizer: text to pieces of words to ids, and back."""

import hashlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from tokenizers import Tokenizer

from lucid.errors import of_folder
from lucid.hub import TOKENIZER_FILES, checkpoint_folder
from lucid.text.pieces import listed, split
from lucid.text.template import Template, pad
from lucid.text.tokenizer_files import folder_files, read_folder
from lucid.text.vocabulary import SpecialTokens, build_backend, finish_backend, read_vocab_file


class BERTTokenizerFast:
    """WordPiece tokenizer of BERT on the `tokenizers` library.

    Parameters
    ----------
    vocab : mapping of str to int, or iterable of str, optional
        Tokens with their ids 0..n-1, or tokens in the order of their ids.
    vocab_file : path, optional
        A `vocab.txt`, one token a line. Exactly one of `vocab` and `vocab_file` is needed.
    unk_token, pad_token, cls_token, mask_token, sep_token : str
        The tokens with a role; each must be in the vocabulary. In a text they stand for themselves.
    lowercase : bool
        Lowercase and drop accents.
    wordpieces_prefix : str
        What marks a piece that goes on a word.
    max_input_chars_per_word : int, 1 to 1000
        Longer words become `unk_token`.
    clean_text : bool
        Drop control characters and make all white space plain.

    Attributes
    ----------
    unk_token, pad_token, cls_token, mask_token, sep_token : str
    unk_token_id, pad_token_id, cls_token_id, mask_token_id, sep_token_id : int
    all_special_tokens, all_special_ids : list
        The five in transformers' order (unk, sep, pad, cls, mask), then any further ones that a folder declares.
    model_max_length : int or None
        The longest sequence that the loaded folder speaks of; `truncation=True` without `max_length` uses it.

    Raises
    ------
    TypeError
        Neither or both of `vocab` and `vocab_file`, or a wrong type inside.
    FormatError
        A ValueError: a vocabulary with gaps, repeats or bytes that are not UTF-8, or without a special token.

    Notes
    -----
    Ids are those of transformers' `BertTokenizer`. An object is never changed after it is made: threads may share it.
    """

    def __init__(
        self,
        vocab: Mapping[str, int] | Iterable[str] | None = None,
        vocab_file: str | PathLike[str] | None = None,
        unk_token: str = "[UNK]",
        pad_token: str = "[PAD]",
        cls_token: str = "[CLS]",
        mask_token: str = "[MASK]",
        sep_token: str = "[SEP]",
        lowercase: bool = True,
        wordpieces_prefix: str = "##",
        max_input_chars_per_word: int = 100,
        clean_text: bool = True,
    ) -> None:
        if (vocab is None) == (vocab_file is None):
            given = "neither" if vocab is None else "both"
            raise TypeError(
                f"wanted exactly one of vocab (a dict or list of tokens) and vocab_file (a path), got {given}; "
                "for a checkpoint folder use BERTTokenizerFast.from_pretrained(folder)"
            )
        source = "vocab" if vocab_file is None else str(vocab_file)
        backend = build_backend(
            read_vocab_file(vocab_file) if vocab is None else vocab,  # type: ignore[arg-type]
            lowercase=lowercase,
            clean_text=clean_text,
            wordpieces_prefix=wordpieces_prefix,
            max_input_chars_per_word=max_input_chars_per_word,
            source=source,
        )
        special = SpecialTokens(unk_token=unk_token, sep_token=sep_token, pad_token=pad_token, cls_token=cls_token, mask_token=mask_token)
        self._adopt(backend, special, None, source)

    def _adopt(self, backend: Tokenizer, special: SpecialTokens, model_max_length: int | None, source: str) -> None:
        """Take a pipeline over, checked and finished."""
        vocab = finish_backend(backend, special, source)
        self._backend = backend
        self._special = special
        self._id_of = vocab
        self._token_of = sorted(vocab, key=vocab.__getitem__)
        self.model_max_length = model_max_length
        self.unk_token, self.unk_token_id = special.unk_token, vocab[special.unk_token]
        self.pad_token, self.pad_token_id = special.pad_token, vocab[special.pad_token]
        self.cls_token, self.cls_token_id = special.cls_token, vocab[special.cls_token]
        self.sep_token, self.sep_token_id = special.sep_token, vocab[special.sep_token]
        self.mask_token, self.mask_token_id = special.mask_token, vocab[special.mask_token]
        further = (token.content for token in backend.get_added_tokens_decoder().values() if token.special)
        five = (getattr(special, role) for role in SpecialTokens.__slots__)
        self.all_special_tokens = list(dict.fromkeys((*five, *further)))
        self.all_special_ids = [vocab[token] for token in self.all_special_tokens]
        self._is_special = np.zeros(len(vocab), np.int64)
        self._is_special[self.all_special_ids] = 1

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | PathLike[str], *, revision: str | None = None) -> Self:
        """Load the tokenizer of a Hugging Face checkpoint, from a folder or the hub.

        Parameters
        ----------
        folder_or_hub_id : path of a folder, or "org/name" on the Hugging Face hub
            Holds `tokenizer.json`, or else `vocab.txt`. Where `tokenizer_config.json` says how to normalise
            (`do_lower_case`, `strip_accents`, `tokenize_chinese_chars`) it overrules `tokenizer.json`, as in
            transformers. Truncation and padding stored in `tokenizer.json` are not taken over: each call says its own.
        revision : str, optional. Branch, tag or commit on the hub.

        Returns
        -------
        BERTTokenizerFast

        Raises
        ------
        FileNotFoundError
            No such folder, no tokenizer in it, or the hub does not give it.
        FormatError
            A ValueError: a file is broken or holds another kind of tokenizer.
        """
        tokenizer = cls.__new__(cls)
        folder = checkpoint_folder(folder_or_hub_id, revision, files=TOKENIZER_FILES, wanted="tokenizer.json or vocab.txt")
        with of_folder(folder):
            tokenizer._adopt(*read_folder(folder))
        return tokenizer

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `vocab.txt`, `tokenizer.json` and `tokenizer_config.json`; lucid and transformers load the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.to_files().items():
            (folder / name).write_bytes(content)

    def to_files(self) -> dict[str, bytes]:
        """Give what `save_pretrained` writes: the contents of its files, by name."""
        return folder_files(self._backend, self._special, self.model_max_length)

    def __repr__(self) -> str:
        """Give the class, the size and the normaliser."""
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, normalizer={self._backend.normalizer})"

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self._token_of)

    def tokenize(self, text: str) -> list[str]:
        """Split a text into tokens, without [CLS] and [SEP]."""
        return split(self._backend, [text], "text", has_places=False)[0].tokens

    def encode_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Give the ids of each text's tokens, without [CLS] and [SEP]; several texts in parallel."""
        return [encoding.ids for encoding in split(self._backend, listed(texts, "texts"), "texts[{}]", has_places=False)]

    @property
    def continues_word(self) -> np.ndarray[Any, Any]:
        """For each id whether its token goes on a word, as booleans of shape (vocab_size,)."""
        prefix = self._backend.model.continuing_subword_prefix
        return np.array([bool(prefix) and token.startswith(prefix) and token != prefix for token in self._token_of])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides what ids a text has, in hexadecimal; saving and loading keeps it."""
        rules = json.loads(self._backend.to_str())
        model = {name: value for name, value in rules["model"].items() if name != "vocab"}
        parts = [self._token_of, self.all_special_tokens, model, rules["normalizer"], rules["pre_tokenizer"]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Give the id of a token, or the list of ids of several; an unknown token gets `unk_token_id`."""
        several = [tokens] if isinstance(tokens, str) else list(tokens)
        for token in several:
            if not isinstance(token, str):
                raise TypeError(f"token {token!r:.60} is a {type(token).__name__}, wanted a str")
        ids = [self._id_of.get(token, self.unk_token_id) for token in several]
        return ids[0] if isinstance(tokens, str) else ids

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Give the token of an id, or the list of tokens of several; IndexError for an id that does not exist."""
        try:
            single = operator.index(ids)
        except TypeError:
            kept = self._checked_ids(ids, "ids")
            return [self._token_of[i] for i in kept if not (skip_special_tokens and self._is_special[i])]
        return self._token_of[self._checked_ids([single], "ids")[0]]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Join tokens to a text: pieces of a word together, punctuation where English puts it."""
        return str(self._backend.decoder.decode(list(tokens)))

    def build_inputs_with_special_tokens(self, ids_a: Sequence[int], ids_b: Sequence[int] | None = None) -> list[int]:
        """Give `[CLS] a [SEP]`, or `[CLS] a [SEP] b [SEP]`."""
        ids = [self.cls_token_id, *ids_a, self.sep_token_id]
        return ids if ids_b is None else [*ids, *ids_b, self.sep_token_id]

    def encode(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        max_length: int | None = None,
        truncation: bool = False,
    ) -> list[int]:
        """Give the ids of a text or of a pair of texts; see `encode_plus`."""
        encoded = self.encode_plus(text, text_pair, add_special_tokens=add_special_tokens, max_length=max_length, truncation=truncation)
        return encoded["input_ids"]

    def encode_plus(
        self,
        text_a: str,
        text_b: str | None = None,
        *,
        add_special_tokens: bool = True,
        max_length: int | None = None,
        truncation: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets: bool = False,
        return_word_ids: bool = False,
    ) -> dict[str, list[Any]]:
        """Encode a text or a pair of texts.

        Parameters
        ----------
        text_a : str
        text_b : str, optional
            An empty text is a text: it gets its [SEP].
        add_special_tokens : bool
            Put [CLS] and [SEP] around the texts.
        max_length : int, optional
            The longest result allowed, special tokens included. A longer one is a ValueError unless `truncation`.
        truncation : bool
            Cut texts at their ends to `max_length`, or to `model_max_length` where that is not given. [CLS] and [SEP]
            stay; of a pair the longer text is cut first.
        return_special_tokens_mask : bool
            Add `special_tokens_mask`, for `create_masked_lm_inputs`: 1 for every special token, also one that the text
            itself wrote ([MASK]) or that stands for a word ([UNK]).
        return_offsets : bool
            Add `offsets`: for each token (start, end) in characters of its text; (0, 0) for [CLS] and [SEP].
        return_word_ids : bool
            Add `word_ids`: for each token the number of its word in its text; None for [CLS] and [SEP].

        Returns
        -------
        dict of lists
            `input_ids`; `token_type_ids`, 1 from the second text on; `attention_mask`, all 1; and what else was asked
            for. A model takes rows: ``model(**tokenizer.encode_batch([text]))``.
        """
        template = self._template(
            add_special_tokens,
            max_length,
            truncation,
            has_special=return_special_tokens_mask,
            has_offsets=return_offsets,
            has_word_ids=return_word_ids,
        )
        encoded = self._encode([text_a], None if text_b is None else [text_b], ("text_a", "text_b"), template)
        return {key: rows[0] for key, rows in encoded.items()}

    def encode_batch(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets: bool = False,
        return_word_ids: bool = False,
    ) -> dict[str, Any]:
        """Encode many texts, or pairs of texts, in parallel.

        Parameters
        ----------
        texts : iterable of str
        pairs : iterable of str, optional
            As many second texts.
        padding : bool or "max_length"
            True pads to the longest of the batch, "max_length" to `max_length`, False not at all.
        add_special_tokens, max_length, truncation, return_special_tokens_mask, return_offsets, return_word_ids
            As in `encode_plus`.

        Returns
        -------
        dict
            As `encode_plus`, with one row a text. Padded: int64 arrays of shape (N, S), where padding is
            `pad_token_id`, type 0, attention 0, special 1. Not padded: lists. `offsets` and `word_ids` are lists that
            are not padded.
        """
        if padding not in (True, False, "max_length"):
            raise ValueError(f'padding is {padding!r}, wanted True, False or "max_length"')
        template = self._template(
            add_special_tokens,
            max_length,
            truncation,
            has_special=return_special_tokens_mask,
            has_offsets=return_offsets,
            has_word_ids=return_word_ids,
        )
        encoded = self._encode(
            listed(texts, "texts"),
            None if pairs is None else listed(pairs, "pairs"),
            ("texts[{}]", "pairs[{}]"),
            template,
        )
        if not padding:
            return encoded
        width = max(map(len, encoded["input_ids"]), default=0)
        if padding == "max_length":
            if template.limit is None:
                raise ValueError('padding="max_length" needs max_length=...')
            width = template.limit
        fills = {"input_ids": self.pad_token_id, "token_type_ids": 0, "attention_mask": 0, "special_tokens_mask": 1}
        return {key: pad(rows, width, fills[key]) if key in fills else rows for key, rows in encoded.items()}

    def encode_pretraining_inputs(
        self,
        text_a: str | Iterable[str],
        text_b: str | Iterable[str] | None = None,
        return_tensor: bool = False,
        device: Literal["cpu", "gpu"] = "cpu",
    ) -> dict[str, Any]:
        """Give what a BERT takes for a text, a pair, or a list of either.

        Parameters
        ----------
        text_a, text_b : str, or iterables of str
        return_tensor : bool
            Give int64 `lucid.Tensor`s instead of lists.
        device : "cpu" or "gpu"
            Where the tensors go.

        Returns
        -------
        dict
            `input_ids`, `token_type_ids`, `attention_mask`, `special_tokens_mask`. For one text flat lists, or tensors
            of shape (1, S); for N texts padded lists of lists, or tensors of shape (N, S).
        """
        is_single = isinstance(text_a, str)
        if text_b is not None and isinstance(text_b, str) != is_single:
            raise TypeError("text_a and text_b must both be a str or both be lists of str")
        if not is_single:
            arrays = self.encode_batch(text_a, text_b, return_special_tokens_mask=True)
        elif return_tensor:
            arrays = self.encode_batch([text_a], None if text_b is None else [text_b], return_special_tokens_mask=True)  # type: ignore[list-item]
        else:
            return self.encode_plus(text_a, text_b, return_special_tokens_mask=True)  # type: ignore[arg-type]
        if not return_tensor:
            return {key: array.tolist() for key, array in arrays.items()}
        from lucid.tensor import Tensor  # here, since text that stays text needs no tensors

        return {key: Tensor(array, device=device) for key, array in arrays.items()}

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        """Give the text of a sequence of ids; IndexError for an id that does not exist."""
        return self._backend.decode(self._checked_ids(ids, "ids"), skip_special_tokens=skip_special_tokens)

    def batch_decode(self, ids: Iterable[Any], skip_special_tokens: bool = True) -> list[str]:
        """Give the texts of many sequences of ids, in parallel."""
        rows = [self._checked_ids(row, f"ids[{i}]") for i, row in enumerate(ids)]
        return self._backend.decode_batch(rows, skip_special_tokens=skip_special_tokens)

    def _encode(self, texts: list[str], pairs: list[str] | None, names: tuple[str, str], template: Template) -> dict[str, list[Any]]:
        """Encode lists of texts: for each key of `encode_plus` a list of rows."""
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"texts holds {len(texts)} texts but pairs {len(pairs)}; wanted as many")
        template.check_room(is_pair=pairs is not None)
        has_places = template.has_offsets or template.has_word_ids
        first = split(self._backend, texts, names[0], has_places)
        second = [None] * len(texts) if pairs is None else split(self._backend, pairs, names[1], has_places)
        rows = [template.fill(a, b, names[0].format(place)) for place, (a, b) in enumerate(zip(first, second, strict=True))]
        return {key: [row[key] for row in rows] for key in template.keys}

    def _template(self, add_special_tokens: bool, max_length: int | None, truncation: bool, **further: bool) -> Template:
        """Check the arguments that say how sequences are laid out."""
        if max_length is not None:
            try:
                max_length = operator.index(max_length)
            except TypeError:
                raise TypeError(f"max_length is {max_length!r} ({type(max_length).__name__}), wanted an int or None") from None
        if not isinstance(truncation, bool):
            raise TypeError(f"truncation is {truncation!r}, wanted True or False; pairs are always cut longest first")
        if truncation and max_length is None:
            max_length = self.model_max_length
            if max_length is None:
                raise ValueError("truncation=True needs max_length=..., since this tokenizer knows no model_max_length")
        return Template(self.cls_token_id, self.sep_token_id, self._is_special, add_special_tokens, max_length, truncation, **further)

    def _checked_ids(self, ids: Any, name: str) -> list[int]:
        """Give a sequence or array of ids as a list of ints that exist."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
            raise TypeError(f"{name} is {ids!r:.60} ({type(ids).__name__}), wanted a sequence of ints")
        checked = []
        for place, given in enumerate(ids):
            try:
                token_id = operator.index(given)
            except TypeError:
                raise TypeError(f"{name}[{place}] is {given!r:.60} ({type(given).__name__}), wanted an int") from None
            if not 0 <= token_id < len(self._token_of):
                raise IndexError(f"{name}[{place}] is {token_id}, wanted 0 to {len(self._token_of) - 1}")
            checked.append(token_id)
        return checked
