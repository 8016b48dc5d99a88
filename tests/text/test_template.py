"""`lucid.text.template`: what is cut and which token came from where."""

import pytest

from lucid.text import BERTTokenizerFast
from lucid.text.template import longest_first

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "un", "##aff", "##able", ",", "a", "b"]
CLS, SEP = 2, 3
ID = {token: i for i, token in enumerate(VOCAB)}


@pytest.fixture
def tokenizer() -> BERTTokenizerFast:
    return BERTTokenizerFast(VOCAB)


class TestPlaces:
    def test_offsets_and_word_ids(self, tokenizer):
        text = "Héllo, [MASK] unaffable"
        encoded = tokenizer.encode_plus(text, return_offsets=True, return_word_ids=True)
        spans = [text[start:end] for start, end in encoded["offsets"]]
        assert spans == ["", "Héllo", ",", "[MASK]", "un", "aff", "able", ""]
        assert encoded["word_ids"] == [None, 0, 1, 2, 3, 3, 3, None]

    def test_pair_counts_from_its_own_start(self, tokenizer):
        encoded = tokenizer.encode_plus("hello", "a b", return_offsets=True, return_word_ids=True)
        assert encoded["offsets"] == [(0, 0), (0, 5), (0, 0), (0, 1), (2, 3), (0, 0)]
        assert encoded["word_ids"] == [None, 0, None, 0, 1, None]

    def test_cut_with_the_ids(self, tokenizer):
        encoded = tokenizer.encode_plus("hello a", "b world", max_length=5, truncation=True, return_offsets=True, return_word_ids=True)
        assert encoded["offsets"] == [(0, 0), (0, 5), (0, 0), (0, 1), (0, 0)]
        assert encoded["word_ids"] == [None, 0, None, 0, None]

    def test_only_on_request(self, tokenizer):
        three = {"input_ids", "token_type_ids", "attention_mask"}
        assert set(tokenizer.encode_plus("a")) == set(tokenizer.encode_batch(["a"])) == three
        assert set(tokenizer.encode_plus("a", return_special_tokens_mask=True)) == three | {"special_tokens_mask"}
        assert set(tokenizer.encode_plus("a", return_offsets=True)) == three | {"offsets"}
        assert set(tokenizer.encode_batch(["a"], return_word_ids=True)) == three | {"word_ids"}

    def test_batch_gives_the_same_places(self, tokenizer):
        texts = ["hello, a", "unaffable"]
        batch = tokenizer.encode_batch(texts, return_offsets=True, return_word_ids=True)
        for row, text in enumerate(texts):
            single = tokenizer.encode_plus(text, return_offsets=True, return_word_ids=True)
            assert batch["offsets"][row] == single["offsets"]
            assert batch["word_ids"][row] == single["word_ids"]


class TestTruncation:
    def test_single_keeps_cls_and_sep(self, tokenizer):
        assert tokenizer.encode("hello world a b", max_length=4, truncation=True) == [CLS, 5, 6, SEP]
        assert tokenizer.encode("hello world", max_length=4, truncation=True) == [CLS, 5, 6, SEP]
        assert tokenizer.encode("hello world", max_length=2, truncation=True) == [CLS, SEP]
        assert tokenizer.encode("hello world", max_length=1, truncation=True, add_special_tokens=False) == [5]

    def test_pair_cuts_the_longer_first(self, tokenizer):
        a, b = ID["a"], ID["b"]
        long, short = "a a a a a", "b b"
        assert tokenizer.encode(long, short, max_length=8, truncation=True) == [CLS, a, a, a, SEP, b, b, SEP]
        assert tokenizer.encode(short, long, max_length=8, truncation=True) == [CLS, b, b, SEP, a, a, a, SEP]
        assert tokenizer.encode(long, short, max_length=6, truncation=True) == [CLS, a, a, SEP, b, SEP]
        types = tokenizer.encode_plus(long, short, max_length=6, truncation=True)["token_type_ids"]
        assert types == [0, 0, 0, 0, 1, 1]

    @pytest.mark.parametrize("n_a", range(7))
    @pytest.mark.parametrize("n_b", range(7))
    def test_longest_first_is_taking_from_the_longer_one_by_one(self, n_a, n_b):
        for room in range(n_a + n_b):
            kept = [n_a, n_b]
            longer = 0 if n_a > n_b else 1
            while sum(kept) > room:
                # Of two equally long texts the one that was shorter gives way.
                kept[longer if kept[longer] > kept[1 - longer] else 1 - longer] -= 1
            assert longest_first(n_a, n_b, room) == tuple(kept)

    def test_too_long_without_truncation_is_an_error(self, tokenizer):
        with pytest.raises(ValueError, match=r"text_a gives 4 tokens, more than max_length=3; pass truncation=True"):
            tokenizer.encode("hello world", max_length=3)
        with pytest.raises(ValueError, match=r"texts\[1\] gives 4 tokens"):
            tokenizer.encode_batch(["a", "hello world"], max_length=3)
        assert tokenizer.encode("hello world", max_length=4) == [CLS, 5, 6, SEP]

    def test_no_room(self, tokenizer):
        with pytest.raises(ValueError, match="max_length is 1, wanted at least 2"):
            tokenizer.encode("a", max_length=1, truncation=True)
        with pytest.raises(ValueError, match="max_length is 2, wanted at least 3"):
            tokenizer.encode("a", "b", max_length=2, truncation=True)
        with pytest.raises(ValueError, match="max_length is -1, wanted at least 0"):
            tokenizer.encode("a", max_length=-1, truncation=True, add_special_tokens=False)

    def test_model_max_length(self, tmp_path):
        (tmp_path / "vocab.txt").write_text("\n".join(VOCAB), encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 4}', encoding="utf-8")
        tokenizer = BERTTokenizerFast.from_pretrained(tmp_path)
        assert tokenizer.model_max_length == 4
        assert tokenizer.encode("a b a b", truncation=True) == [CLS, ID["a"], ID["b"], SEP]
        assert tokenizer.encode("a b a b", truncation=True, max_length=5) == [CLS, ID["a"], ID["b"], ID["a"], SEP]
        assert len(tokenizer.encode("a b a b")) == 6
        with pytest.raises(ValueError, match="truncation=True needs max_length"):
            BERTTokenizerFast(VOCAB).encode("a", truncation=True)

    def test_wrong_types(self, tokenizer):
        with pytest.raises(TypeError, match=r"max_length is 4\.5"):
            tokenizer.encode("a", max_length=4.5)
        with pytest.raises(TypeError, match="truncation is 'only_first'"):
            tokenizer.encode("a", max_length=4, truncation="only_first")
