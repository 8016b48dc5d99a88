"""The vocabulary and the rules of a BERT tokenizer, checked, as one `tokenizers.Tokenizer`."""

import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from lucid.errors import FormatError

MAX_INPUT_CHARS_PER_WORD = 1000

# What a line of a UTF-8 vocab.txt cannot hold: line breaks and lone surrogates.
_UNWRITABLE = re.compile(r"[\r\n\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The five tokens that BERT gives a role, under the names that tokenizer_config.json uses."""

    unk_token: str = "[UNK]"
    sep_token: str = "[SEP]"
    pad_token: str = "[PAD]"
    cls_token: str = "[CLS]"
    mask_token: str = "[MASK]"


def read_vocab_file(path: str | PathLike[str]) -> list[str]:
    r"""Read a `vocab.txt`: one token a line, the line's number is its id.

    Parameters
    ----------
    path : path
        The file. Lines end with ``\n`` or ``\r\n``; empty lines at the end are no tokens.

    Returns
    -------
    list of str
        The tokens in the order of their ids, not yet checked for duplicates.

    Raises
    ------
    FormatError
        The file is not UTF-8.
    OSError
        The file cannot be read.
    """
    raw = Path(path).read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FormatError(
            f"{path}: line {line} is not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}); "
            "save the vocabulary as UTF-8, one token a line"
        ) from error
    # str.splitlines would also split at U+2028 and its like, which are tokens in some vocabularies.
    return text.replace("\r\n", "\n").rstrip("\n").split("\n")


def check_vocab(vocab: Mapping[str, int] | Iterable[str], source: str) -> dict[str, int]:
    """Give a vocabulary as a dict whose ids are exactly 0, 1, ..., n - 1.

    Parameters
    ----------
    vocab : mapping of str to int, or iterable of str
        Tokens with their ids, or tokens in the order of their ids.
    source : str
        What to call the vocabulary in an error: an argument's or a file's name.

    Returns
    -------
    dict of str to int
        A copy, in the order of the ids.

    Raises
    ------
    TypeError
        A token is not a str or an id not an int, or the vocabulary is a single str.
    FormatError
        No tokens, an empty token, a token with a line break, a token or an id given twice, or an id left out.
    """
    if isinstance(vocab, str | bytes):
        raise TypeError(f"{source} is a {type(vocab).__name__}, wanted a dict or list of tokens; a path is vocab_file")
    pairs = list(vocab.items()) if isinstance(vocab, Mapping) else [(token, i) for i, token in enumerate(vocab)]
    if not pairs:
        raise FormatError(f"{source} holds no tokens")
    token_of: dict[int, str] = {}
    id_of: dict[str, int] = {}
    for token, given in pairs:
        if not isinstance(token, str):
            raise TypeError(f"{source}: token {token!r} (id {given!r}) is a {type(token).__name__}, wanted a str")
        try:
            token_id = operator.index(given)
        except TypeError:
            raise TypeError(f"{source}: the id of {token!r} is {given!r} ({type(given).__name__}), wanted an int") from None
        if token_id < 0:
            raise FormatError(f"{source}: the id of {token!r} is {token_id}; ids run from 0")
        if not token or _UNWRITABLE.search(token):
            raise FormatError(f"{source}: token {token!r} (id {token_id}) is empty, or has a line break or a lone surrogate")
        if token in id_of:
            raise FormatError(f"{source}: token {token!r} has two ids, {id_of[token]} and {token_id}; remove or rename one of them")
        if token_id in token_of:
            raise FormatError(f"{source}: id {token_id} belongs to {token_of[token_id]!r} and to {token!r}")
        id_of[token] = token_id
        token_of[token_id] = token
    check_ids(token_of, source)
    return {token_of[i]: i for i in range(len(token_of))}


def check_ids(ids: Iterable[int], source: str) -> None:
    """Raise `FormatError` unless the ids are 0, 1, ..., n - 1 in some order."""
    for wanted, found in enumerate(sorted(ids)):
        if found > wanted:
            raise FormatError(f"{source}: ids must run from 0 without gaps, but no token has id {wanted}")
        if found < wanted:
            raise FormatError(f"{source}: ids must run from 0 without repeats, but {found} is there twice")


def check_max_input_chars(value: object, source: str) -> int:
    """Give `max_input_chars_per_word` back if it is an int in 1..1000, else raise.

    Notes
    -----
    WordPiece tries every prefix of the rest of a word, so a word of n characters costs up to n * n / 2 look-ups;
    the cap is what keeps a hostile text or file from costing more than a constant per character.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{source}: max_input_chars_per_word is {value!r} ({type(value).__name__}), wanted an int")
    if not 1 <= value <= MAX_INPUT_CHARS_PER_WORD:
        raise FormatError(f"{source}: max_input_chars_per_word is {value}, wanted 1 to {MAX_INPUT_CHARS_PER_WORD}; BERT uses 100")
    return value


def build_backend(
    vocab: Mapping[str, int] | Iterable[str],
    *,
    unk_token: str = "[UNK]",
    lowercase: bool = True,
    strip_accents: bool | None = None,
    handle_chinese_chars: bool = True,
    clean_text: bool = True,
    wordpieces_prefix: str = "##",
    max_input_chars_per_word: int = 100,
    source: str = "vocab",
) -> Tokenizer:
    """Make the `tokenizers` pipeline of BERT from a vocabulary.

    Parameters
    ----------
    vocab : mapping of str to int, or iterable of str
        See `check_vocab`.
    unk_token : str
        What a word becomes that has no pieces.
    lowercase, clean_text, handle_chinese_chars : bool
        Lowercase; drop control characters and make white space plain; set CJK characters apart.
    strip_accents : bool or None
        None follows `lowercase`, as BERT does.
    wordpieces_prefix : str
        What marks a piece that goes on a word.
    max_input_chars_per_word : int
        Longer words become `unk_token`.
    source : str
        What to call the vocabulary in an error.

    Returns
    -------
    tokenizers.Tokenizer
        Without special tokens; `finish_backend` adds them.
    """
    backend = Tokenizer(
        WordPiece(
            check_vocab(vocab, source),
            unk_token=unk_token,
            continuing_subword_prefix=wordpieces_prefix,
            max_input_chars_per_word=check_max_input_chars(max_input_chars_per_word, source),
        )
    )
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=clean_text,
        handle_chinese_chars=handle_chinese_chars,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def finish_backend(backend: Tokenizer, special: SpecialTokens, source: str) -> dict[str, int]:
    """Give a pipeline BERT's special tokens, in place, and take its own truncation and padding away.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        A WordPiece pipeline. Changed here and never again: afterwards threads share it.
    special : SpecialTokens
        The names; each must be in the vocabulary.
    source : str
        What to call the vocabulary in an error.

    Returns
    -------
    dict of str to int
        The whole vocabulary, added tokens included.

    Raises
    ------
    FormatError
        A special token is missing, or ids have gaps or repeats.
    """
    vocab = backend.get_vocab(with_added_tokens=True)
    check_ids(vocab.values(), source)
    for role in SpecialTokens.__slots__:
        token = getattr(special, role)
        if not isinstance(token, str):
            raise TypeError(f"{role} is {token!r} ({type(token).__name__}), wanted a str")
        if token not in vocab:
            raise FormatError(
                f"{source} has no {token!r}, which is its {role}; add it to the vocabulary, or name the token that "
                f"plays this role: {role}=..."
            )
    if backend.model.token_to_id(special.unk_token) is None:
        raise FormatError(f"{source}: {special.unk_token!r} is only an added token; the unk_token must be in the model's vocabulary")
    backend.no_truncation()
    backend.no_padding()
    backend.model.unk_token = special.unk_token
    registered = {added.content for added in backend.get_added_tokens_decoder().values() if added.special}
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in (getattr(special, role) for role in SpecialTokens.__slots__)
            if token not in registered
        ]
    )
    backend.post_processor = processors.BertProcessing(
        (special.sep_token, vocab[special.sep_token]), (special.cls_token, vocab[special.cls_token])
    )
    backend.decoder = decoders.WordPiece(prefix=backend.model.continuing_subword_prefix)
    return vocab
