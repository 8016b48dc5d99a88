"""`BERTTokenizerFast` beside transformers: its tokenizer on the same library, and its pure Python one as the judge.

The corpus is read 2,000 lines deep; LUCID_SLOW=1 takes 100,000 lines of the training split.
"""

import itertools
import json
import lzma
import os
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from lucid.text import BERTTokenizerFast

pytest.importorskip("transformers", reason="transformers is the reference; it is not installed")

from transformers import AutoTokenizer, BertTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
CHECKPOINT = SHARED / "models" / "splade-tiny"
IS_SLOW = os.environ.get("LUCID_SLOW", "0") == "1"

pytestmark = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="the shared checkpoint splade-tiny is not there")

HARD_TEXTS = {
    "empty": "",
    "white space": " \t\n\r\x0b\x0c\u00a0\u2003\u3000\u2028 x \u2029y",
    "accents": "Crème brûlée, naïve façade, Ångström, Łódź, İstanbul \u0131I, Straße, ǅungla, ﬁne",
    "combining marks": "e\u0301 a\u0323\u0302 \u0301start o\u0308\u0304 n\u0303o \u0915\u094d\u0937 \u0e01\u0e33",
    "hangul": "한국어 \u1112\u1161\u11ab",
    "cjk": "中文字符abc日本語カタカナ\uff0c。「」 \U00020000\U0002f800 豈",
    "emoji": "I ❤️ 👩‍👩‍👧‍👦 🇫🇷 👍🏽 1️⃣ \u2764\ufe0f",
    "control": "a\x01b\x7fc\x80d\u200be\u200ef\u00adg\ufeffh\ufffdi\x1bj",
    "nul": "\x00start mid\x00dle \x00 end\x00",
    "literal special": "[MASK] the[MASK]cat [CLS][SEP] [mask] [ MASK ] [MASK [UNK] [PAD]]",
    "long word": "x" * 99 + " " + "y" * 100 + " " + "z" * 101 + " " + "antidisestablishmentarianism" * 40,
    "long marks": "e" + "\u0301" * 300 + " " + "\u0301" * 150,
    "punctuation": "don't «quote» — dash… a_b $5.00 50% x^2 `c` ~ <tag/> #hash @me ¡hola! ¿qué? \u2039\u203a",
    "numbers": "3.14159 1,000,000 ① Ⅳ ½ ٣٤ 2²",
    "scripts": "Привет мир Ωμέγα שלום مرحبا हिन्दी ไทย ქართული",
    "private and far": "\ue000 \U000f0000 \U0010fffd \U0001d54f",
}


@pytest.fixture(scope="module", autouse=True)
def _offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the checkpoint's vocabulary as vocab.txt, written without lucid."""
    content = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in sorted(vocab, key=vocab.get)), encoding="utf-8", newline="\n")
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def lowercase(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def ours(vocab_file, lowercase) -> BERTTokenizerFast:
    return BERTTokenizerFast(vocab_file=vocab_file, lowercase=lowercase)


@pytest.fixture(scope="module")
def theirs(lowercase, tmp_path_factory):
    """Give transformers' tokenizer from tokenizer.json."""
    folder = tmp_path_factory.mktemp("theirs")
    content = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    content |= {"truncation": None, "padding": None}
    content["normalizer"]["lowercase"] = lowercase
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def judge(vocab_file, lowercase) -> BertTokenizerLegacy:
    return BertTokenizerLegacy(str(vocab_file), do_lower_case=lowercase)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    path = SHARED / "corpus" / ("train-00.txt.xz" if IS_SLOW else "validation.txt.xz")
    if not path.is_file():
        pytest.skip(f"the shared corpus file {path.name} is not there")
    n_lines = 100_000 if IS_SLOW else 2_000
    with lzma.open(path, "rt", encoding="utf-8") as file:
        lines = list(itertools.islice((line.rstrip("\n") for line in file if line.strip()), n_lines))
    assert len(lines) >= min(n_lines, 2_000)
    return lines


def ids_of(tokenizer: BERTTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer.encode_batch(texts, padding=False)["input_ids"]
    return ids


def first_difference(texts: Sequence[str], mine: list[list[int]], other: list[list[int]]) -> object:
    """Give the first text whose ids differ, with both; None where all agree."""
    assert len(texts) == len(mine) == len(other)
    return next(((t, a, b) for t, a, b in zip(texts, mine, other, strict=True) if a != b), None)


def judged(judge: BertTokenizerLegacy, texts: Sequence[str]) -> list[list[int]]:
    """Give the judge's ids, where it and the `tokenizers` library mean to do the same.

    Python lowercases a capital sigma at the end of a word to a final sigma, Rust every capital sigma alike; see
    `test_final_sigma`. What follows from another Unicode release or from NFC is left to the tests.
    """
    if judge.do_lower_case:
        texts = [text.replace("\u03a3", "\u03c3") for text in texts]
    return [judge.encode(text) for text in texts]


class TestCorpus:
    def test_transformers(self, ours, theirs, corpus):
        assert first_difference(corpus, ids_of(ours, corpus), theirs(corpus)["input_ids"]) is None

    def test_judge(self, ours, judge, corpus):
        # transformers' Python tokenizer alone puts cased text into NFC; the corpus is NFC already.
        assert first_difference(corpus, ids_of(ours, corpus), judged(judge, corpus)) is None

    def test_our_json_their_vocab(self, vocab_file, lowercase, corpus, tmp_path):
        """The reverse way: our reading of tokenizer.json, theirs of vocab.txt."""
        content = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
        content["normalizer"]["lowercase"] = lowercase
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        ours = BERTTokenizerFast.from_pretrained(tmp_path)
        theirs = BertTokenizer(vocab=str(vocab_file), do_lower_case=lowercase)
        texts = [*corpus[:2000], *HARD_TEXTS.values()]
        assert first_difference(texts, ids_of(ours, texts), theirs(texts)["input_ids"]) is None

    def test_decode(self, ours, theirs, corpus):
        rows = ids_of(ours, corpus[:500])
        for skip in (True, False):
            wanted = theirs.batch_decode(rows, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.batch_decode(rows, skip_special_tokens=skip) == wanted
            assert [ours.decode(row, skip_special_tokens=skip) for row in rows] == wanted


class TestHardTexts:
    @pytest.mark.parametrize("name", HARD_TEXTS)
    def test_transformers(self, ours, theirs, name):
        text = HARD_TEXTS[name]
        wanted = theirs(text, return_offsets_mapping=True)
        got = ours.encode_plus(text, return_offsets=True, return_word_ids=True)
        assert got["input_ids"] == wanted["input_ids"]
        assert got["token_type_ids"] == wanted["token_type_ids"]
        assert got["attention_mask"] == wanted["attention_mask"]
        assert got["offsets"] == wanted["offset_mapping"]
        assert got["word_ids"] == wanted.word_ids()
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours.convert_tokens_to_string(ours.tokenize(text)) == theirs.convert_tokens_to_string(theirs.tokenize(text))

    @pytest.mark.parametrize("name", HARD_TEXTS)
    def test_judge(self, ours, judge, lowercase, name):
        text = HARD_TEXTS[name]
        if not lowercase:
            # See TestCorpus.test_judge: BERT itself, and every tokenizer but this one, leaves cased text as it is.
            text = unicodedata.normalize("NFC", text)
        assert [ours.encode(text)] == judged(judge, [text])

    def test_final_sigma(self, vocab_file):
        """The tokenizers disagree here among themselves; lucid goes with the one that people use."""
        text = "\u039f\u0394\u039f\u03a3 d\u03a3"
        ours = BERTTokenizerFast(vocab_file=vocab_file)
        assert ours.encode(text) == BertTokenizer(vocab=str(vocab_file)).encode(text)
        assert ours.encode(text) != BertTokenizerLegacy(str(vocab_file)).encode(text)

    def test_every_old_character(self, ours, theirs, judge, lowercase):
        """Each character alone between letters; the judge for those that Unicode 3.2 knew.

        The `tokenizers` library holds the character classes of about Unicode 8 and Python those of its own release,
        so of younger characters the two may think differently; BERT's vocabularies are as old.
        """
        known = [c for c in map(chr, range(0x110000)) if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs")]
        large = [c for c in known if "\u3400" <= c <= "\ud7a3" or c >= "\ue000"]
        chosen = sorted(set(known) - set(large) | set(large[::61]))
        texts = [f"a{c}b" for c in chosen]
        mine = ids_of(ours, texts)
        assert len(texts) > 9_000
        assert mine == theirs(texts)["input_ids"]
        differing = {
            c
            for c, a, b in zip(chosen, mine, judged(judge, texts), strict=True)
            if a != b and (lowercase or unicodedata.is_normalized("NFC", c))
        }
        # Those that Unicode itself has moved to another class since: two Mongolian marks, two signs.
        assert differing <= set("\u1885\u1886\u166d\u1734")


class TestPairs:
    PAIRS = tuple(itertools.product(["", "the cat", "the cat sat on the mat " * 4, "[MASK] naïve 中文"], repeat=2))

    @pytest.mark.parametrize("cut", [3, 4, 5, 8, 9, 16, 17, 40, 200])
    def test_truncated(self, ours, theirs, cut):
        for a, b in self.PAIRS:
            if not b:  # transformers takes an empty second text for none
                continue
            wanted = theirs(a, b, truncation="longest_first", max_length=cut, return_offsets_mapping=True)
            got = ours.encode_plus(a, b, truncation=True, max_length=cut, return_offsets=True, return_word_ids=True)
            for key in ("input_ids", "token_type_ids", "attention_mask"):
                assert got[key] == wanted[key], (a, b, key)
            assert got["offsets"] == wanted["offset_mapping"]
            assert got["word_ids"] == wanted.word_ids()

    @pytest.mark.parametrize("cut", [None, 7, 12])
    def test_padded_batch(self, ours, theirs, cut):
        texts, pairs = zip(*((a, b) for a, b in self.PAIRS if b), strict=True)
        for seconds in (None, list(pairs)):
            wanted = theirs(list(texts), seconds, padding=True, truncation=cut is not None, max_length=cut)
            got = ours.encode_batch(texts, seconds, truncation=cut is not None, max_length=cut)
            for key in ("input_ids", "token_type_ids", "attention_mask"):
                assert got[key].tolist() == wanted[key]

    def test_random_texts(self, ours, theirs):
        """Texts of characters from everywhere, and of pieces of words, in pairs."""
        rng = random.Random(0)
        pieces = [*"aAeéñüßZz09 .,-'中国かカ한🙂\u0301\u200d\x00\t", "[MASK]", "[SEP]", "ing ", "Un", " "]
        draw = [
            lambda: rng.choice(pieces),
            lambda: chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])),
        ]
        texts = ["".join(draw[n % 2 * (rng.random() < 0.5)]() for _ in range(rng.randrange(1, 60))) for n in range(600)]
        pairs = texts[::-1]
        assert first_difference(texts, ids_of(ours, texts), theirs(texts)["input_ids"]) is None
        got = ours.encode_batch(texts, pairs, padding=False)
        wanted = theirs(texts, pairs)
        assert got["input_ids"] == wanted["input_ids"]
        assert got["token_type_ids"] == wanted["token_type_ids"]


class TestFolders:
    TEXTS = (*HARD_TEXTS.values(), "The quick brown fox jumps over the lazy dog.", "Ünaffable, embeddings")

    @pytest.mark.parametrize("without", [None, "vocab.txt", "tokenizer.json"])
    def test_ours_read_by_transformers(self, ours, tmp_path, without):
        ours.save_pretrained(tmp_path)
        if without is not None:
            (tmp_path / without).unlink()
        loaded = (BertTokenizer if without == "tokenizer.json" else AutoTokenizer).from_pretrained(tmp_path)
        assert first_difference(self.TEXTS, ids_of(ours, self.TEXTS), loaded(list(self.TEXTS))["input_ids"]) is None
        assert loaded.all_special_ids == ours.all_special_ids
        assert loaded.all_special_tokens == ours.all_special_tokens
        assert loaded.mask_token_id == ours.mask_token_id

    @pytest.mark.parametrize("settings", [{"clean_text": False}, {"max_input_chars_per_word": 5}, {"wordpieces_prefix": "@@"}])
    def test_unusual_settings_survive_transformers(self, vocab_file, tmp_path, settings):
        ours = BERTTokenizerFast(vocab_file=vocab_file, **settings)
        ours.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert ids_of(ours, self.TEXTS) == [loaded(text)["input_ids"] for text in self.TEXTS]
        usual = BERTTokenizerFast(vocab_file=vocab_file)
        assert ids_of(ours, self.TEXTS) != ids_of(usual, self.TEXTS)

    def test_theirs_read_by_us(self, theirs, tmp_path):
        theirs.save_pretrained(tmp_path)
        loaded = BERTTokenizerFast.from_pretrained(tmp_path)
        wanted = theirs(list(self.TEXTS))["input_ids"]
        assert first_difference(self.TEXTS, ids_of(loaded, self.TEXTS), wanted) is None
        assert loaded.all_special_ids == theirs.all_special_ids

    def test_python_tokenizers_folder_read_by_us(self, judge, lowercase, tmp_path):
        """vocab.txt, added_tokens_decoder and no tokenizer.json: what older releases wrote."""
        judge.add_tokens(["newword"])
        judge.save_pretrained(tmp_path)
        assert not (tmp_path / "tokenizer.json").exists()
        loaded = BERTTokenizerFast.from_pretrained(tmp_path)
        texts = ["A newword here", *self.TEXTS[-2:]]
        assert ids_of(loaded, texts) == judged(judge, texts)
        assert loaded.vocab_size == len(judge) == 30523

    def test_whole_loop(self, ours, tmp_path):
        ours.save_pretrained(tmp_path / "1")
        AutoTokenizer.from_pretrained(tmp_path / "1").save_pretrained(tmp_path / "2")
        again = BERTTokenizerFast.from_pretrained(tmp_path / "2")
        assert ids_of(again, self.TEXTS) == ids_of(ours, self.TEXTS)
        assert again.model_max_length == ours.model_max_length
