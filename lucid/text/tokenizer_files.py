"""Read and write tokenizer folders in the form that Hugging Face checkpoints use."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from lucid.errors import FormatError
from lucid.text.vocabulary import (
    SpecialTokens,
    build_backend,
    check_max_input_chars,
    read_vocab_file,
)

TOKENIZER_FILE = "tokenizer.json"
VOCAB_FILE = "vocab.txt"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"

# These classes of transformers take tokenizer.json as it stands; the others let tokenizer_config.json overrule it.
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# transformers writes 1e30 where it knows no limit.
NO_LIMIT = 10**9


def read_folder(folder: Path) -> tuple[Tokenizer, SpecialTokens, int | None, str]:
    """Read a tokenizer from a checkpoint folder.

    Parameters
    ----------
    folder : path
        A folder with `tokenizer.json` (preferred) or `vocab.txt`; `tokenizer_config.json`, `special_tokens_map.json`
        and `added_tokens.json` are used where they exist.

    Returns
    -------
    backend : tokenizers.Tokenizer
    special : SpecialTokens
    model_max_length : int or None
        The longest sequence that the folder speaks of.
    source : str
        The file that the vocabulary came from.

    Raises
    ------
    FileNotFoundError
        Neither file is in it.
    FormatError
        A file is broken or is no WordPiece tokenizer.
    """
    config_path = folder / CONFIG_FILE
    config = _read_json(config_path) if config_path.is_file() else {}
    if (path := folder / TOKENIZER_FILE).is_file():
        backend = _read_tokenizer_json(path, config, str(config_path))
    elif (path := folder / VOCAB_FILE).is_file():
        backend = _read_vocab_txt(path, config, str(config_path))
    else:
        raise FileNotFoundError(
            f"{folder} holds no tokenizer: looked for {TOKENIZER_FILE} and {VOCAB_FILE}; "
            "copy one of them there from where the checkpoint came from"
        )
    return backend, _special_tokens(folder, config, backend), _max_length(config, str(config_path)), str(path)


def write_folder(folder: str | PathLike[str], backend: Tokenizer, special: SpecialTokens, model_max_length: int | None) -> None:
    """Write `vocab.txt`, `tokenizer.json` and `tokenizer_config.json`, making the folder if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = backend.get_vocab(with_added_tokens=False)
    lines = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__))
    (folder / VOCAB_FILE).write_text(lines, encoding="utf-8", newline="\n")
    (folder / TOKENIZER_FILE).write_text(backend.to_str(pretty=True), encoding="utf-8", newline="\n")
    config = _config(backend, special, model_max_length)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8", newline="\n")


def _config(backend: Tokenizer, special: SpecialTokens, model_max_length: int | None) -> dict[str, Any]:
    """Give the content of tokenizer_config.json."""
    model, normalizer = backend.model, backend.normalizer
    config: dict[str, Any] = {role: getattr(special, role) for role in SpecialTokens.__slots__}
    config |= {
        "backend": "tokenizers",
        "max_input_chars_per_word": model.max_input_chars_per_word,
        "wordpieces_prefix": model.continuing_subword_prefix,
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    is_bert = isinstance(normalizer, BertNormalizer)
    if is_bert:
        config |= {
            "clean_text": normalizer.clean_text,
            "do_lower_case": normalizer.lowercase,
            "strip_accents": normalizer.strip_accents,
            "tokenize_chinese_chars": normalizer.handle_chinese_chars,
        }
    # transformers rebuilds a BertTokenizer from its vocabulary and these flags alone, with "##", 100 and clean text;
    # any other tokenizer must be marked as one to take from tokenizer.json as it stands.
    is_rebuildable = (
        is_bert
        and normalizer.clean_text
        and isinstance(backend.pre_tokenizer, BertPreTokenizer)
        and (model.continuing_subword_prefix, model.max_input_chars_per_word) == ("##", 100)
    )
    config["tokenizer_class"] = "BertTokenizer" if is_rebuildable else GENERIC_CLASSES[0]
    return config


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds a JSON {type(content).__name__}, wanted an object")
    return content


def _read_tokenizer_json(path: Path, config: Mapping[str, Any], config_source: str) -> Tokenizer:
    """Read tokenizer.json; where tokenizer_config.json says how to normalise, it overrules, as in transformers."""
    try:
        backend = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise FormatError(f"{path} is no file of the tokenizers library: {error}") from error
    if not isinstance(backend.model, WordPiece):
        raise FormatError(f"{path} holds a {type(backend.model).__name__} model, wanted WordPiece; this is not a BERT tokenizer")
    check_max_input_chars(backend.model.max_input_chars_per_word, str(path))
    if isinstance(old := backend.normalizer, BertNormalizer) and config.get("tokenizer_class") not in GENERIC_CLASSES:
        backend.normalizer = BertNormalizer(
            clean_text=old.clean_text,
            handle_chinese_chars=_flag(config, "tokenize_chinese_chars", old.handle_chinese_chars, config_source),
            strip_accents=_flag(config, "strip_accents", old.strip_accents, config_source, may_be_null=True),
            lowercase=_flag(config, "do_lower_case", old.lowercase, config_source),
        )
    return backend


def _read_vocab_txt(path: Path, config: Mapping[str, Any], config_source: str) -> Tokenizer:
    """Build the tokenizer from vocab.txt and the flags of tokenizer_config.json."""
    if str(config.get("tokenizer_class")).startswith("BertJapanese"):
        raise FormatError(
            f"{config_source}: tokenizer_class is {config['tokenizer_class']}, which splits words by a Japanese "
            f"dictionary; {VOCAB_FILE} alone would give other ids than the model was trained with"
        )
    prefix = config.get("wordpieces_prefix", "##")
    if not isinstance(prefix, str):
        raise FormatError(f"{config_source}: wordpieces_prefix is {prefix!r}, wanted a string")
    try:
        max_input_chars = check_max_input_chars(config.get("max_input_chars_per_word", 100), config_source)
    except TypeError as error:
        raise FormatError(str(error)) from error
    backend = build_backend(
        read_vocab_file(path),
        lowercase=_flag(config, "do_lower_case", True, config_source),
        strip_accents=_flag(config, "strip_accents", None, config_source, may_be_null=True),
        handle_chinese_chars=_flag(config, "tokenize_chinese_chars", True, config_source),
        clean_text=_flag(config, "clean_text", True, config_source),
        wordpieces_prefix=prefix,
        max_input_chars_per_word=max_input_chars,
        source=str(path),
    )
    for token_id, token in sorted(_added_tokens(path.parent, config, config_source).items()):
        backend.add_tokens([token])
        if (got := backend.token_to_id(token.content)) != token_id:
            raise FormatError(
                f"{path.parent}: the added token {token.content!r} should have id {token_id}, but after {path.name} "
                f"it gets {got}; the files do not belong together"
            )
    return backend


def _added_tokens(folder: Path, config: Mapping[str, Any], config_source: str) -> dict[int, AddedToken]:
    """Give the tokens that a folder without tokenizer.json adds to its vocab.txt, by id."""
    source = config_source
    entries = config.get("added_tokens_decoder")
    try:
        if entries is not None:
            return {int(token_id): AddedToken(**fields) for token_id, fields in entries.items()}
        if (path := folder / ADDED_TOKENS_FILE).is_file():
            source = str(path)
            return {int(token_id): AddedToken(token) for token, token_id in _read_json(path).items()}
    except FormatError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{source}: the added tokens cannot be read: {error}") from error
    return {}


def _flag(config: Mapping[str, Any], key: str, default: bool | None, source: str, may_be_null: bool = False) -> Any:
    """Give a true-or-false setting of tokenizer_config.json."""
    value = config.get(key, default)
    if isinstance(value, bool) or (value is None and may_be_null):
        return value
    wanted = "true, false or null" if may_be_null else "true or false"
    raise FormatError(f"{source}: {key} is {value!r}, wanted {wanted}")


def _special_tokens(folder: Path, config: Mapping[str, Any], backend: Tokenizer) -> SpecialTokens:
    """Give the names of the special tokens: tokenizer_config.json, special_tokens_map.json, the model, BERT's own."""
    stated = [(CONFIG_FILE, config)]
    # As in transformers: the older file counts only in folders written before added_tokens_decoder existed.
    if "added_tokens_decoder" not in config and (path := folder / SPECIAL_TOKENS_FILE).is_file():
        stated.append((SPECIAL_TOKENS_FILE, _read_json(path)))
    names = {"unk_token": backend.model.unk_token}
    for file, content in stated:
        for role in SpecialTokens.__slots__:
            value = content.get(role)
            token = value.get("content") if isinstance(value, dict) else value
            if value is None:
                continue
            if not isinstance(token, str):
                raise FormatError(f'{folder / file}: {role} is {value!r}, wanted a string or an object with "content"')
            names[role] = token
    return SpecialTokens(**names)


def _max_length(config: Mapping[str, Any], source: str) -> int | None:
    """Give model_max_length, or None where the folder sets no limit."""
    value = config.get("model_max_length")
    if value is None or (isinstance(value, int | float) and value >= NO_LIMIT):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FormatError(f"{source}: model_max_length is {value!r}, wanted a positive integer")
    return value
