"""Tokenizer folders: what is read from which file, what is written, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid.errors import FormatError
from lucid.text import BERTTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB = [*SPECIAL, "hello", "world", "un", "##aff", "##able", "cafe", "Paris", "paris", "中", "a", "##a", "é", "中中"]
PAD, UNK, CLS, SEP, MASK = range(5)
TEXTS = ["Hello unaffable [MASK] world", "Paris é 中中 中", "a\x00a \u200d", "", "aaaa zzz" * 3]


def write(folder: Path, files: dict[str, object]) -> Path:
    """Write files by name: text as it is, anything else as JSON."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def vocab_txt(vocab: list[str] = VOCAB) -> str:
    return "".join(f"{token}\n" for token in vocab)


def tokenizer_json(**changes: object) -> dict[str, Any]:
    """Give the tokenizer.json of VOCAB with changes: dicts are merged in, other values replace."""
    content: dict[str, Any] = json.loads(BERTTokenizerFast(VOCAB)._backend.to_str())
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) and isinstance(content[key], dict) else value
    return content


def load(folder: Path, **files: object) -> BERTTokenizerFast:
    """Write `vocab_txt`, `tokenizer_json`, ... and load the folder."""
    names = {f"{'.'.join(name.rsplit('_', 1))}": content for name, content in files.items()}
    return BERTTokenizerFast.from_pretrained(write(folder, names))


class TestRoundTrip:
    @pytest.mark.parametrize(
        "settings_",
        [
            {},
            {"lowercase": False},
            {"clean_text": False},
            {"max_input_chars_per_word": 3},
            {"wordpieces_prefix": "@@"},
            {"mask_token": "hello", "pad_token": "world"},
        ],
    )
    @pytest.mark.parametrize("keep", ["all", "tokenizer.json", "vocab.txt"])
    def test_saved_and_loaded(self, tmp_path, settings_, keep):
        first = BERTTokenizerFast(VOCAB, **settings_)
        folder = tmp_path / "deep" / "folder"
        first.save_pretrained(folder)
        assert sorted(path.name for path in folder.iterdir()) == [
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        ]
        for other in {"tokenizer.json": ["vocab.txt"], "vocab.txt": ["tokenizer.json"]}.get(keep, []):
            (folder / other).unlink()
        second = BERTTokenizerFast.from_pretrained(folder)
        for text in TEXTS:
            assert second.encode_plus(text, "a") == first.encode_plus(text, "a")
        assert second.all_special_ids == first.all_special_ids
        assert repr(second) == repr(first)

    def test_saving_again_changes_nothing(self, tmp_path):
        BERTTokenizerFast(VOCAB).save_pretrained(tmp_path / "1")
        BERTTokenizerFast.from_pretrained(tmp_path / "1").save_pretrained(tmp_path / "2")
        for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()

    def test_model_max_length_is_kept(self, tmp_path):
        loaded = load(tmp_path, vocab_txt=vocab_txt(), tokenizer_config_json={"model_max_length": 12})
        loaded.save_pretrained(tmp_path / "again")
        assert BERTTokenizerFast.from_pretrained(tmp_path / "again").model_max_length == 12

    @pytest.mark.parametrize(
        ("settings_", "name"),
        [
            ({}, "BertTokenizer"),
            ({"lowercase": False}, "BertTokenizer"),
            ({"clean_text": False}, "PreTrainedTokenizerFast"),
        ],
    )
    def test_class_that_transformers_must_use(self, tmp_path, settings_, name):
        BERTTokenizerFast(VOCAB, **settings_).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == name


class TestReading:
    def test_vocab_txt_alone(self, tmp_path):
        loaded = load(tmp_path, vocab_txt=vocab_txt())
        assert [loaded.encode(text) for text in TEXTS] == [BERTTokenizerFast(VOCAB).encode(text) for text in TEXTS]
        assert loaded.model_max_length is None

    def test_flags_of_the_config(self, tmp_path):
        config = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}
        loaded = load(tmp_path, vocab_txt=vocab_txt(), tokenizer_config_json=config)
        assert loaded.tokenize("Paris café 中中 HELLO") == ["Paris", "cafe", "中中", "[UNK]"]
        config = {"do_lower_case": True, "strip_accents": False}
        loaded = load(tmp_path, vocab_txt=vocab_txt(), tokenizer_config_json=config)
        assert loaded.tokenize("Paris É 中") == ["paris", "é", "中"]

    def test_tokenizer_json_wins_over_vocab_txt(self, tmp_path):
        loaded = load(tmp_path, vocab_txt=vocab_txt(SPECIAL), tokenizer_json=tokenizer_json())
        assert loaded.vocab_size == len(VOCAB)

    @pytest.mark.parametrize(
        ("config", "tokens"),
        [
            ({}, ["Paris"]),
            ({"do_lower_case": True}, ["paris"]),
            ({"do_lower_case": True, "tokenizer_class": "BertTokenizer"}, ["paris"]),
            ({"do_lower_case": True, "tokenizer_class": "PreTrainedTokenizerFast"}, ["Paris"]),
        ],
    )
    def test_config_overrules_the_normalizer_of_tokenizer_json(self, tmp_path, config, tokens):
        content = tokenizer_json(normalizer={"lowercase": False})
        loaded = load(tmp_path, tokenizer_json=content, tokenizer_config_json=config)
        assert loaded.tokenize("Paris") == tokens

    def test_other_normalizers_are_kept(self, tmp_path):
        content = tokenizer_json() | {"normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": "a"}}
        loaded = load(tmp_path, tokenizer_json=content, tokenizer_config_json={"do_lower_case": True})
        assert loaded.tokenize("xx Paris") == ["a", "##a", "Paris"]
        loaded.save_pretrained(tmp_path / "again")
        assert BERTTokenizerFast.from_pretrained(tmp_path / "again").tokenize("xx") == ["a", "##a"]

    def test_stored_truncation_padding_and_template_do_not_count(self, tmp_path):
        content = tokenizer_json(
            truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            padding={
                "strategy": {"Fixed": 9},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            },
            post_processor=None,
        )
        loaded = load(tmp_path, tokenizer_json=content)
        assert loaded.encode("hello hello hello") == [CLS, 5, 5, 5, SEP]
        assert loaded.encode("hello", add_special_tokens=False) == [5]

    def test_names_of_special_tokens(self, tmp_path):
        vocab = ["<p>", "<u>", "<s>", "</s>", "<m>", "a"]
        config = {
            "pad_token": "<p>",
            "unk_token": {"content": "<u>", "lstrip": False},
            "cls_token": "<s>",
            "sep_token": {"content": "</s>"},
        }
        loaded = load(
            tmp_path,
            vocab_txt=vocab_txt(vocab),
            tokenizer_config_json=config,
            special_tokens_map_json={"mask_token": {"content": "<m>"}, "unk_token": None},
        )
        assert loaded.encode("a <m> zzz") == [2, 5, 4, 1, 3]

    def test_special_tokens_map_is_ignored_beside_added_tokens_decoder(self, tmp_path):
        loaded = load(
            tmp_path,
            vocab_txt=vocab_txt(),
            tokenizer_config_json={"added_tokens_decoder": {}},
            special_tokens_map_json={"mask_token": "hello"},
        )
        assert loaded.mask_token == "[MASK]"

    @pytest.mark.parametrize("file", ["config", "added_tokens"])
    def test_added_tokens_of_a_vocab_txt(self, tmp_path, file):
        special = {"content": "<e>", "special": True, "normalized": False}
        files = (
            {"tokenizer_config_json": {"added_tokens_decoder": {"18": special, "19": {"content": "new"}}}}
            if file == "config"
            else {"added_tokens_json": {"new": 19, "<e>": 18}}
        )
        loaded = load(tmp_path, vocab_txt=vocab_txt(), **files)
        assert loaded.vocab_size == 20
        assert loaded.encode("hello<e> new") == [CLS, 5, 18, 19, SEP]
        assert loaded.all_special_ids[5:] == ([18] if file == "config" else [])
        loaded.save_pretrained(tmp_path / "again")
        assert BERTTokenizerFast.from_pretrained(tmp_path / "again").encode("<e>new") == [CLS, 18, 19, SEP]

    def test_added_special_tokens_count_as_special(self, tmp_path):
        token = {"id": 18, "content": "<e>", "special": True, "normalized": False}
        token |= {"single_word": False, "lstrip": False, "rstrip": False}
        content = tokenizer_json()
        content["added_tokens"].append(token)
        loaded = load(tmp_path, tokenizer_json=content)
        assert loaded.all_special_tokens == ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", "<e>"]
        assert loaded.encode_plus("<e> hello", return_special_tokens_mask=True)["special_tokens_mask"] == [1, 1, 0, 1]

    def test_a_special_token_keeps_its_rules(self, tmp_path):
        content = tokenizer_json()
        content["added_tokens"][MASK] |= {"lstrip": True}
        loaded = load(tmp_path, tokenizer_json=content)
        assert loaded.encode_plus("a  [MASK]", return_offsets=True)["offsets"][2] == (1, 9)

    @pytest.mark.parametrize("limit", [int(1e30), 1e30, None])
    def test_no_limit(self, tmp_path, limit):
        loaded = load(tmp_path, vocab_txt=vocab_txt(), tokenizer_config_json={"model_max_length": limit})
        assert loaded.model_max_length is None


class TestRefused:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no tokenizer: looked for tokenizer.json and vocab.txt"):
            BERTTokenizerFast.from_pretrained(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"nowhere is no folder: give one that holds tokenizer.json or vocab.txt"):
            BERTTokenizerFast.from_pretrained(tmp_path / "nowhere")
        write(tmp_path, {"vocab.txt": vocab_txt()})
        with pytest.raises(FileNotFoundError, match=r"vocab.txt is a file, no folder: give one"):
            BERTTokenizerFast.from_pretrained(tmp_path / "vocab.txt")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", r"tokenizer.json is no file of the tokenizers library"),
            ("[" * 100_000, r"tokenizer.json is no file of the tokenizers library"),
            ({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}, "BPE model, wanted WordPiece"),
            (tokenizer_json(model={"max_input_chars_per_word": 1001}), "is 1001, wanted 1 to 1000"),
            (tokenizer_json(model={"vocab": {t: i for i, t in enumerate(VOCAB[:4])}}, added_tokens=[]), "no '.MASK.'"),
            (tokenizer_json(model={"vocab": {t: 2 * i for i, t in enumerate(VOCAB)}}), "no token has id 1"),
            (
                tokenizer_json(model={"vocab": {t: i for i, t in enumerate(["x", *VOCAB[2:]])}}),
                "'.UNK.' is only an added",
            ),
            (tokenizer_json(model={"vocab": dict.fromkeys(VOCAB, 7)}), "ids must run from 0"),
        ],
    )
    def test_tokenizer_json(self, tmp_path, content, message):
        with pytest.raises(FormatError, match=message):
            load(tmp_path, tokenizer_json=content)

    def test_tokenizer_json_without_utf8(self, tmp_path):
        (tmp_path / "tokenizer.json").write_bytes(b'{"version": "\xff"}')
        with pytest.raises(FormatError, match=r"tokenizer.json is no file of the tokenizers library"):
            BERTTokenizerFast.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ("{", "tokenizer_config.json is not JSON"),
            ("[" * 100_000, "tokenizer_config.json is not JSON"),
            ([], "holds a JSON list, wanted an object"),
            ({"do_lower_case": "yes"}, "do_lower_case is 'yes', wanted true or false"),
            ({"do_lower_case": None}, "do_lower_case is None, wanted true or false"),
            ({"strip_accents": 1}, "strip_accents is 1, wanted true, false or null"),
            ({"model_max_length": -3}, "model_max_length is -3, wanted a positive integer"),
            ({"model_max_length": "512"}, "model_max_length is '512'"),
            ({"mask_token": 4}, r"mask_token is 4, wanted a string or an object"),
            ({"mask_token": {"text": "x"}}, r"mask_token is .*, wanted a string or an object"),
            ({"mask_token": "<mask>"}, "has no '<mask>', which is its mask_token"),
            ({"max_input_chars_per_word": 10**9}, "max_input_chars_per_word is 1000000000, wanted 1 to 1000"),
            ({"max_input_chars_per_word": "9"}, "max_input_chars_per_word is '9'"),
            ({"wordpieces_prefix": None}, "wordpieces_prefix is None, wanted a string"),
            ({"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer, which splits words by a Japanese"),
            ({"added_tokens_decoder": {"x": {"content": "new"}}}, "added tokens cannot be read"),
            ({"added_tokens_decoder": ["new"]}, "added tokens cannot be read"),
            ({"added_tokens_decoder": {"40": {"content": "new"}}}, "'new' should have id 40, but .* it gets 18"),
        ],
    )
    def test_config(self, tmp_path, config, message):
        with pytest.raises(FormatError, match=message):
            load(tmp_path, vocab_txt=vocab_txt(), tokenizer_config_json=config)

    def test_directories_in_place_of_files(self, tmp_path):
        for name in ("tokenizer.json", "vocab.txt"):
            (tmp_path / name).mkdir()
        with pytest.raises(FileNotFoundError, match="looked for"):
            BERTTokenizerFast.from_pretrained(tmp_path)


class TestDamaged:
    """Whatever is done to its bytes, a folder gives ids within its vocabulary or one typed error."""

    FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")

    @given(data=st.data(), route=st.sampled_from(["tokenizer.json", "vocab.txt"]), name=st.sampled_from(FILES))
    @settings(max_examples=300, deadline=None, derandomize=True)
    def test_bytes(self, tmp_path_factory, data, route, name):
        folder = tmp_path_factory.mktemp("damaged")
        BERTTokenizerFast(VOCAB).save_pretrained(folder)
        for other in {"tokenizer.json", "vocab.txt"} - {route}:
            (folder / other).unlink()
        path = folder / (route if name != "tokenizer_config.json" else name)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(content) - 1))
            length = data.draw(st.integers(0, 8))
            content[start : start + length] = data.draw(
                st.binary(max_size=4) | st.sampled_from([b'"', b"}", b"9", b"-1", b"\n", b"null", b"1000000000000"])
            )
            if not content:
                break
        path.write_bytes(content)
        try:
            tokenizer = BERTTokenizerFast.from_pretrained(folder)
        except FormatError as error:
            assert str(folder) in str(error)
            return
        for text in TEXTS:
            encoded = tokenizer.encode(text, "a [MASK]")
            assert all(0 <= token_id < tokenizer.vocab_size for token_id in encoded)
            tokenizer.decode(encoded, skip_special_tokens=False)
