"""`lucid.text.BERTTokenizerFast`: ids, masks, cuts and errors, on a vocabulary made here."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid.text import BERTTokenizerFast

CHECKPOINT = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "splade-tiny"

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "hello",
    "world",
    "un",
    "##aff",
    "##able",
    "cafe",
    "Paris",
    "paris",
    ",",
    ".",
    "中",
    "a",
    "b",
    "##a",
    "##b",
    "é",
]
VOCAB = [*SPECIAL, *WORDS]
PAD, UNK, CLS, SEP, MASK = range(5)
ID = {token: i for i, token in enumerate(VOCAB)}


@pytest.fixture
def tokenizer() -> BERTTokenizerFast:
    return BERTTokenizerFast(VOCAB)


class TestIds:
    def test_single(self, tokenizer):
        assert tokenizer.encode("Hello unaffable world") == [CLS, 5, 7, 8, 9, 6, SEP]
        assert tokenizer.encode("Hello", add_special_tokens=False) == [5]
        assert tokenizer.tokenize("unaffable, nobody") == ["un", "##aff", "##able", ",", "[UNK]"]

    def test_pair(self, tokenizer):
        assert tokenizer.encode_plus("hello", "a b", return_special_tokens_mask=True) == {
            "input_ids": [CLS, 5, SEP, ID["a"], ID["b"], SEP],
            "token_type_ids": [0, 0, 0, 1, 1, 1],
            "attention_mask": [1, 1, 1, 1, 1, 1],
            "special_tokens_mask": [1, 0, 1, 0, 0, 1],
        }
        assert tokenizer.encode("hello", "a", add_special_tokens=False) == [5, ID["a"]]

    def test_pair_without_special_tokens_has_types(self, tokenizer):
        assert tokenizer.encode_plus("a a", "b", add_special_tokens=False)["token_type_ids"] == [0, 0, 1]

    def test_empty_texts(self, tokenizer):
        assert tokenizer.encode("") == [CLS, SEP]
        assert tokenizer.encode("", add_special_tokens=False) == []
        assert tokenizer.encode("", "") == [CLS, SEP, SEP]
        assert tokenizer.encode_plus("", "")["token_type_ids"] == [0, 0, 1]

    def test_build_inputs_is_the_template_of_encode(self, tokenizer):
        a, b = [5, 6], [7]
        assert tokenizer.build_inputs_with_special_tokens(a) == tokenizer.encode("hello world")
        assert tokenizer.build_inputs_with_special_tokens(a, b) == tokenizer.encode("hello world", "un")
        assert a == [5, 6]

    def test_literal_special_tokens_survive(self, tokenizer):
        encoded = tokenizer.encode_plus("hello[MASK]world [SEP] [mask]", return_special_tokens_mask=True)
        unknown = [UNK, UNK, UNK]  # "[", "mask", "]"
        assert encoded["input_ids"] == [CLS, 5, MASK, 6, SEP, *unknown, SEP]
        assert encoded["special_tokens_mask"] == [1, 0, 1, 0, 1, 1, 1, 1, 1]

    def test_normalisation(self, tokenizer):
        assert tokenizer.tokenize("CAFÉ cafe\u0301") == ["cafe", "cafe"]
        assert tokenizer.tokenize("a中b") == ["a", "中", "b"]
        assert tokenizer.tokenize("he\x00l\u200dl\ufffdo\tworld\u3000a\u00a0b") == ["hello", "world", "a", "b"]

    def test_cased_keeps_case_and_accents(self):
        cased = BERTTokenizerFast(VOCAB, lowercase=False)
        assert cased.tokenize("Paris paris é") == ["Paris", "paris", "é"]
        assert BERTTokenizerFast(VOCAB).tokenize("Paris") == ["paris"]

    def test_clean_text_can_be_off(self):
        assert BERTTokenizerFast(VOCAB, clean_text=False).tokenize("he\x00llo") == ["[UNK]"]

    def test_wordpieces_prefix(self):
        tokenizer = BERTTokenizerFast([*SPECIAL, "un", "@@do"], wordpieces_prefix="@@")
        assert tokenizer.tokenize("undo") == ["un", "@@do"]
        assert tokenizer.decode(tokenizer.encode("undo")) == "undo"

    @pytest.mark.parametrize("cap", [1, 100, 1000])
    def test_max_input_chars_per_word(self, cap):
        tokenizer = BERTTokenizerFast(VOCAB, max_input_chars_per_word=cap)
        assert len(tokenizer.tokenize("a" * cap)) == cap
        assert tokenizer.tokenize("a" * cap + "a") == ["[UNK]"]

    def test_other_names_for_special_tokens(self):
        names = {"unk_token": "<u>", "pad_token": "<p>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<m>"}
        tokenizer = BERTTokenizerFast([*names.values(), "a"], **names)  # type: ignore[arg-type]
        assert tokenizer.encode("a zzz <m>") == [2, 5, 0, 4, 3]
        assert tokenizer.all_special_ids == [0, 3, 1, 2, 4]
        assert (tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.cls_token_id) == (0, 1, 2)
        assert (tokenizer.sep_token_id, tokenizer.mask_token_id) == (3, 4)
        assert tokenizer.all_special_tokens == ["<u>", "</s>", "<p>", "<s>", "<m>"]

    def test_vocabulary_as_dict_list_and_file_agree(self, tmp_path, tokenizer):
        path = tmp_path / "vocab.txt"
        path.write_text("\n".join(VOCAB), encoding="utf-8")
        text = "Hello unaffable 中 world"
        shuffled = dict(reversed([(token, np.int64(i)) for token, i in ID.items()]))
        assert BERTTokenizerFast(vocab=shuffled).encode(text) == tokenizer.encode(text)
        assert BERTTokenizerFast(vocab_file=path).encode(text) == tokenizer.encode(text)
        assert BERTTokenizerFast(vocab_file=str(path)).vocab_size == tokenizer.vocab_size == len(VOCAB)

    @given(text=st.text(max_size=60), pair=st.none() | st.text(max_size=30))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_any_text_gives_valid_ids(self, text, pair):
        tokenizer = BERTTokenizerFast(VOCAB)
        encoded = tokenizer.encode_plus(text, pair, return_special_tokens_mask=True, return_offsets=True, return_word_ids=True)
        ids = encoded["input_ids"]
        assert {len(column) for column in encoded.values()} == {len(ids)}
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert encoded["special_tokens_mask"] == [int(i < 5) for i in ids]
        assert all(0 <= start <= end <= max(len(text), len(pair or "")) for start, end in encoded["offsets"])

    @given(words=st.lists(st.sampled_from(["hello", "world", "unaffable", "a", "b", "[MASK]", "paris"]), max_size=20))
    @settings(max_examples=50, deadline=None, derandomize=True)
    def test_round_trip(self, words):
        tokenizer = BERTTokenizerFast(VOCAB)
        text = " ".join(words)
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False) == text


class TestBatch:
    TEXTS = ("hello world", "a", "", "unaffable [MASK], world.", "中 é zzz")
    PAIRS = ("b", "hello, world.", "a a a", "", "paris")

    @pytest.mark.parametrize("pairs", [None, PAIRS])
    def test_rows_are_the_single_texts(self, tokenizer, pairs):
        batch = tokenizer.encode_batch(self.TEXTS, pairs, return_special_tokens_mask=True)
        fill = {"input_ids": PAD, "token_type_ids": 0, "attention_mask": 0, "special_tokens_mask": 1}
        several = zip(self.TEXTS, *([pairs] if pairs else []), strict=True)
        singles = [tokenizer.encode_plus(*texts, return_special_tokens_mask=True) for texts in several]
        width = max(len(single["input_ids"]) for single in singles)
        assert set(batch) == set(fill)
        for key, value in fill.items():
            assert batch[key].dtype == np.int64
            assert batch[key].shape == (len(self.TEXTS), width)
            for row, single in zip(batch[key], singles, strict=True):
                assert row.tolist() == single[key] + [value] * (width - len(single[key]))

    def test_unpadded_gives_lists(self, tokenizer):
        batch = tokenizer.encode_batch(self.TEXTS, self.PAIRS, padding=False)
        assert batch["input_ids"] == [tokenizer.encode(a, b) for a, b in zip(self.TEXTS, self.PAIRS, strict=True)]

    def test_padding_to_max_length(self, tokenizer):
        batch = tokenizer.encode_batch(["a", "a b a b"], padding="max_length", max_length=5, truncation=True)
        a, b = ID["a"], ID["b"]
        assert batch["input_ids"].tolist() == [[CLS, a, SEP, PAD, PAD], [CLS, a, b, a, SEP]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
        assert tokenizer.encode_batch(["a"], padding="max_length", max_length=7)["input_ids"].shape == (1, 7)
        with pytest.raises(ValueError, match=r'padding="max_length" needs max_length'):
            tokenizer.encode_batch(["a"], padding="max_length")

    def test_pad_id_need_not_be_zero(self):
        tokenizer = BERTTokenizerFast(["a", *SPECIAL])
        assert tokenizer.encode_batch(["a a", "a"])["input_ids"][1].tolist() == [3, 0, 4, 1]

    def test_empty_batch(self, tokenizer):
        assert tokenizer.encode_batch([])["input_ids"].shape == (0, 0)
        assert tokenizer.encode_batch([], [], padding=False)["input_ids"] == []
        assert tokenizer.batch_decode([]) == []

    def test_any_iterable(self, tokenizer):
        wanted = tokenizer.encode_batch(["a", "b"], padding=False)
        assert tokenizer.encode_batch(iter(["a", "b"]), padding=False) == wanted
        assert tokenizer.encode_batch(np.array(["a", "b"]), padding=False) == wanted

    def test_many_texts_keep_their_order(self, tokenizer):
        texts = ["a " * (i % 17) + "hello" for i in range(3000)]
        assert tokenizer.encode_batch(texts, padding=False)["input_ids"] == [tokenizer.encode(text) for text in texts]

    def test_bad_arguments(self, tokenizer):
        with pytest.raises(ValueError, match="texts holds 2 texts but pairs 1"):
            tokenizer.encode_batch(["a", "b"], ["a"])
        with pytest.raises(ValueError, match="padding is 'longest'"):
            tokenizer.encode_batch(["a"], padding="longest")
        with pytest.raises(TypeError, match="texts is a str, wanted a list of str"):
            tokenizer.encode_batch("a b")
        with pytest.raises(TypeError, match="pairs is a int"):
            tokenizer.encode_batch(["a"], 3)
        with pytest.raises(TypeError, match=r"texts\[1\] is a int \(3\), wanted a str"):
            tokenizer.encode_batch(["a", 3])
        with pytest.raises(TypeError, match=r"pairs\[0\] is a NoneType"):
            tokenizer.encode_batch(["a"], [None])


class TestThreads:
    def test_settings_of_a_call_stay_in_the_call(self, tokenizer):
        text = "a b " * 50
        tokenizer.encode_batch([text, "a"], padding=True, max_length=7, truncation=True)
        assert tokenizer._backend.truncation is None
        assert tokenizer._backend.padding is None
        assert len(tokenizer.encode(text)) == 102

    def test_threads_share_one_tokenizer(self, tokenizer):
        texts = ["a b " * n for n in range(40)]
        cuts = [2 + n % 11 for n in range(400)]

        def work(cut: int) -> list[list[int]]:
            batch = tokenizer.encode_batch(texts, padding=False, max_length=cut, truncation=True)
            return list(batch["input_ids"])

        with ThreadPoolExecutor(8) as pool:
            for cut, rows in zip(cuts, pool.map(work, cuts), strict=True):
                assert [len(row) for row in rows] == [min(cut, 2 + 2 * n) for n in range(40)]

    def test_pickle(self, tokenizer):
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.encode_plus("hello [MASK] zzz") == tokenizer.encode_plus("hello [MASK] zzz")


class TestConversions:
    def test_tokens_and_ids(self, tokenizer):
        assert tokenizer.convert_tokens_to_ids("hello") == 5
        assert tokenizer.convert_tokens_to_ids(["hello", "nowhere", "[MASK]"]) == [5, UNK, MASK]
        assert tokenizer.convert_ids_to_tokens(5) == "hello"
        assert tokenizer.convert_ids_to_tokens(np.int64(5)) == "hello"
        assert tokenizer.convert_ids_to_tokens([CLS, 5]) == ["[CLS]", "hello"]
        assert tokenizer.convert_ids_to_tokens(np.array([CLS, 5]), skip_special_tokens=True) == ["hello"]
        assert tokenizer.convert_ids_to_tokens(range(len(VOCAB))) == VOCAB

    def test_strings(self, tokenizer):
        assert tokenizer.convert_tokens_to_string(["un", "##aff", "##able", ",", "hello", "."]) == "unaffable, hello."
        ids = tokenizer.encode("Hello unaffable [MASK].")
        assert tokenizer.decode(ids) == "hello unaffable."
        assert tokenizer.decode(ids, skip_special_tokens=False) == "[CLS] hello unaffable [MASK]. [SEP]"
        assert tokenizer.batch_decode(np.array([[CLS, 5], [6, SEP]])) == ["hello", "world"]
        assert tokenizer.batch_decode([[], [MASK]], skip_special_tokens=False) == ["", "[MASK]"]

    @pytest.mark.parametrize("bad", [-1, len(VOCAB), 2**31, 2**70])
    def test_ids_out_of_range(self, tokenizer, bad):
        for call in (tokenizer.decode, tokenizer.convert_ids_to_tokens):
            with pytest.raises(IndexError, match=rf"ids\[1\] is {bad}, wanted 0 to {len(VOCAB) - 1}"):
                call([5, bad])
        with pytest.raises(IndexError, match=rf"ids\[1\]\[0\] is {bad}"):
            tokenizer.batch_decode([[5], [bad]])
        with pytest.raises(IndexError, match=f"is {bad}"):
            tokenizer.convert_ids_to_tokens(bad)

    @pytest.mark.parametrize("bad", [1.0, "a", None, [5]])
    def test_ids_of_a_wrong_type(self, tokenizer, bad):
        with pytest.raises(TypeError, match=r"ids\[1\] is .*, wanted an int"):
            tokenizer.decode([5, bad])

    def test_wrong_containers(self, tokenizer):
        with pytest.raises(TypeError, match=r"ids is 'hello' \(str\), wanted a sequence of ints"):
            tokenizer.decode("hello")
        with pytest.raises(TypeError, match="ids is 5"):
            tokenizer.decode(np.array(5))
        with pytest.raises(TypeError, match="token 5 is a int, wanted a str"):
            tokenizer.convert_tokens_to_ids(["a", 5])


class TestPretrainingInputs:
    def test_lists(self, tokenizer):
        assert tokenizer.encode_pretraining_inputs("hello [MASK]", "a") == tokenizer.encode_plus(
            "hello [MASK]", "a", return_special_tokens_mask=True
        )

    def test_list_of_texts(self, tokenizer):
        got = tokenizer.encode_pretraining_inputs(["hello", "a b"], ["a", "b"])
        wanted = tokenizer.encode_batch(["hello", "a b"], ["a", "b"], return_special_tokens_mask=True)
        assert got == {key: array.tolist() for key, array in wanted.items()}
        with pytest.raises(TypeError, match="must both be a str or both be lists"):
            tokenizer.encode_pretraining_inputs(["hello"], "a")

    @pytest.mark.parametrize("texts", [("hello [MASK]", None), ("hello", "a b"), (["hello", "a b"], None)])
    def test_tensors(self, tokenizer, texts):
        tensor = pytest.importorskip("lucid.tensor", reason="lucid.tensor is not there yet")
        got = tokenizer.encode_pretraining_inputs(*texts, return_tensor=True)
        lists = tokenizer.encode_pretraining_inputs(*texts)
        for key, rows in lists.items():
            wanted = np.atleast_2d(np.array(rows))
            assert isinstance(got[key], tensor.Tensor)
            assert tuple(got[key].shape) == wanted.shape
            assert got[key].numpy().dtype == np.int64
            assert np.array_equal(got[key].numpy(), wanted)


class TestBadTexts:
    @pytest.mark.parametrize("bad", [None, 3, b"hello", ["hello"], 1.5])
    def test_not_a_text(self, tokenizer, bad):
        with pytest.raises(TypeError, match=f"text_a is a {type(bad).__name__} .*, wanted a str"):
            tokenizer.encode(bad)
        with pytest.raises(TypeError, match=f"text is a {type(bad).__name__} .*, wanted a str"):
            tokenizer.tokenize(bad)
        if bad is not None:
            with pytest.raises(TypeError, match=f"text_b is a {type(bad).__name__} .*, wanted a str"):
                tokenizer.encode_plus("a", bad)

    def test_lone_surrogate(self, tokenizer):
        with pytest.raises(ValueError, match=r"text_a has a lone surrogate \(U\+D800 at character 2\)"):
            tokenizer.encode("ab\ud800")
        with pytest.raises(ValueError, match=r"texts\[1\] has a lone surrogate \(U\+DFFF at character 0\)"):
            tokenizer.encode_batch(["a", "\udfff"])


def test_package_imports_neither_torch_nor_transformers():
    code = (
        "import sys, lucid.text as text; t = text.BERTTokenizerFast(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']); "
        "t.encode_batch(['a', 'b']); print(sorted({'torch', 'transformers', 'cupy', 'typer'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="the shared checkpoint splade-tiny is not there")
def test_real_checkpoint():
    tokenizer = BERTTokenizerFast.from_pretrained(CHECKPOINT)
    assert (tokenizer.vocab_size, tokenizer.model_max_length) == (30522, 512)
    assert tokenizer.all_special_ids == [100, 102, 0, 101, 103]
    text = "Paris is the [MASK] of France."
    assert tokenizer.encode(text) == [101, 3000, 2003, 1996, 103, 1997, 2605, 1012, 102]
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == ("[CLS] paris is the [MASK] of france. [SEP]")
    # The file stores truncation to 512 and padding; neither may leak into a call.
    assert len(tokenizer.encode("the " * 1000)) == 1002
    assert len(tokenizer.encode("the " * 1000, truncation=True)) == 512
