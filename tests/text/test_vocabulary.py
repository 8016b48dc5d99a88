"""`lucid.text.vocabulary`: what a vocabulary may hold, and what is said where it may not."""

import pytest

from lucid.errors import FormatError
from lucid.text import BERTTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB = [*SPECIAL, "hello", "world", "un", "##aff", "##able"]
ID = {token: i for i, token in enumerate(VOCAB)}


def lines(vocab: list[str]) -> str:
    return "".join(f"{token}\n" for token in vocab)


def test_exactly_one_source(tmp_path):
    with pytest.raises(TypeError, match=r"exactly one of vocab .* and vocab_file .*, got neither"):
        BERTTokenizerFast()
    with pytest.raises(TypeError, match="got both"):
        BERTTokenizerFast(VOCAB, tmp_path / "vocab.txt")


@pytest.mark.parametrize("token", SPECIAL)
def test_special_token_missing(token):
    with pytest.raises(ValueError, match=rf"vocab has no '\[{token[1:-1]}\]', which is its {token[1:-1].lower()}"):
        BERTTokenizerFast([other for other in VOCAB if other != token])


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ([*VOCAB, "hello"], "token 'hello' has two ids, 5 and 10"),
        (ID | {"new": 5}, "id 5 belongs to 'hello' and to 'new'"),
        (ID | {"new": 11}, "no token has id 10"),
        ({token: i + 1 for token, i in ID.items()}, "no token has id 0"),
        (ID | {"new": -1}, "the id of 'new' is -1; ids run from 0"),
        ([*VOCAB, ""], r"token '' \(id 10\) is empty"),
        ([*VOCAB, "a\nb"], "has a line break"),
        ([*VOCAB, "a\rb"], "has a line break"),
        ([*VOCAB, "a\udc80"], "a lone surrogate"),
        ([], "holds no tokens"),
        ({}, "holds no tokens"),
    ],
)
def test_content(vocab, message):
    with pytest.raises(FormatError, match=message):
        BERTTokenizerFast(vocab)
    assert issubclass(FormatError, ValueError)


@pytest.mark.parametrize("vocab", ["vocab.txt", b"x", [*VOCAB, 3], ID | {"new": 10.0}, ID | {"new": "10"}])
def test_types(vocab):
    with pytest.raises(TypeError, match="wanted a"):
        BERTTokenizerFast(vocab)


@pytest.mark.parametrize("cap", [0, -5, 1001, 10**9])
def test_max_input_chars_range(cap):
    with pytest.raises(ValueError, match=f"max_input_chars_per_word is {cap}, wanted 1 to 1000"):
        BERTTokenizerFast(VOCAB, max_input_chars_per_word=cap)


@pytest.mark.parametrize("cap", [True, 100.0, "100", None])
def test_max_input_chars_type(cap):
    with pytest.raises(TypeError, match="wanted an int"):
        BERTTokenizerFast(VOCAB, max_input_chars_per_word=cap)


def test_special_token_of_a_wrong_type():
    with pytest.raises(TypeError, match="mask_token is 4"):
        BERTTokenizerFast(VOCAB, mask_token=4)  # type: ignore[arg-type]


def test_file_without_utf8(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(lines(VOCAB[:7]).encode() + b"caf\xe9\n")
    with pytest.raises(FormatError, match=r"vocab.txt: line 8 is not UTF-8 \(byte 0xe9 at offset 46\)"):
        BERTTokenizerFast(vocab_file=path)


def test_file_with_repeats_and_blank_lines(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(lines([*VOCAB, "un"]), encoding="utf-8")
    with pytest.raises(FormatError, match=r"vocab.txt: token 'un' has two ids, 7 and 10"):
        BERTTokenizerFast(vocab_file=path)
    path.write_text(lines([*VOCAB, "", "more"]), encoding="utf-8")
    with pytest.raises(FormatError, match=r"vocab.txt: token '' \(id 10\) is empty"):
        BERTTokenizerFast(vocab_file=path)


def test_file_line_ends(tmp_path):
    path = tmp_path / "vocab.txt"
    vocab = [*VOCAB, "x\u2028y", "\u00a0"]
    path.write_bytes(("\ufeff" + "\r\n".join(vocab) + "\r\n\r\n\n").encode())
    tokenizer = BERTTokenizerFast(vocab_file=path)
    assert tokenizer.convert_ids_to_tokens(range(tokenizer.vocab_size)) == vocab


def test_file_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        BERTTokenizerFast(vocab_file=tmp_path / "nowhere.txt")
