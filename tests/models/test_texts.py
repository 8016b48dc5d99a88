"""Loss and predictions from texts: one meaning, however the texts are batched."""

from functools import partial

import numpy as np
import pytest

import lucid
import lucid.models as models
from lucid.models.bert import texts as texts_module
from lucid.models.bert.packing import by_tokens, pack, pack_lists

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sun", "rises", "in", "east", ".", "a", "b", "##s"]
POSITIONS = 24


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These arrays are so small that a second thread only costs time."""
    lucid.set_num_threads(1)
    yield
    lucid.set_num_threads(None)


@pytest.fixture
def model() -> models.BERTForMaskedLM:
    lucid.manual_seed(1)
    config = models.BERTConfig.base(
        vocab_size=len(VOCAB),
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=32,
        max_position_embeddings=POSITIONS,
        initializer_range=0.4,
    )
    model = models.BERTForMaskedLM(config).eval()
    for parameter in model.parameters():
        assert parameter.array is not None  # drawn now, under this seed
    model.tokenizer = models.BERTTokenizerFast(vocab=VOCAB)
    model.special_token_ids = sorted(model.tokenizer.all_special_ids)
    return model


@pytest.fixture
def small_batches(monkeypatch):
    """Run texts in batches of 30 tokens; collects the batches."""
    batches = []

    def counted(lengths, most_tokens=30):
        for group in by_tokens(lengths, most_tokens):
            batches.append([lengths[i] for i in group])
            yield group

    monkeypatch.setattr(texts_module, "by_tokens", counted)
    return batches


def some_texts(n: int = 12, longest: int = POSITIONS - 2, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    words = VOCAB[5:13]
    return [" ".join(words[i] for i in rng.integers(0, len(words), rng.integers(0, longest + 1))) for _ in range(n)]


def loss_of_ids(model, first, second=None, *, seed, reduction="mean", **settings):
    """The same by the road that users of ids take: one padded batch."""
    encoded = model.tokenizer.encode_batch(first, second, return_special_tokens_mask=True)
    masked, labels = model.create_masked_lm_inputs(
        encoded["input_ids"],
        encoded["attention_mask"],
        encoded["special_tokens_mask"],
        mask_token_id=model.tokenizer.mask_token_id,
        seed=seed,
        **settings,
    )
    return model.get_loss(labels, masked, encoded["attention_mask"], encoded["token_type_ids"], reduction=reduction, seed=seed)


class TestLoss:
    @pytest.mark.parametrize("reduction", ["mean", "sum", None])
    @pytest.mark.parametrize("seed", [0, 7])
    def test_is_that_of_one_padded_batch(self, model, small_batches, reduction, seed):
        first = some_texts()
        wanted = loss_of_ids(model, first, seed=seed, reduction=reduction).numpy()
        assert np.abs(wanted).sum() > 0
        found = model.get_loss_from_text(model.tokenizer, first, seed=seed, reduction=reduction).numpy()
        assert found.shape == wanted.shape
        np.testing.assert_array_equal(found, wanted)
        assert len(small_batches) > 3

    def test_is_that_of_one_padded_batch_for_pairs(self, model, small_batches):
        first, second = some_texts(9, 9), some_texts(9, 9, seed=1)
        wanted = loss_of_ids(model, first, second, seed=3, reduction=None).numpy()
        found = model.get_loss_from_text(model.tokenizer, first, second, seed=3, reduction=None).numpy()
        np.testing.assert_array_equal(found, wanted)
        assert len(small_batches) > 3
        types = model.tokenizer.encode_batch(first, second)["token_type_ids"]
        assert types.any()

    @pytest.mark.parametrize("reduction", ["mean", None])
    def test_in_train_mode_has_the_same_dropout_and_gradients(self, model, small_batches, reduction):
        model.train()
        first = some_texts()
        with lucid.no_grad():
            wanted = loss_of_ids(model, first, seed=3, reduction=reduction).numpy()
            found = model.get_loss_from_text(model.tokenizer, first, seed=3, reduction=reduction).numpy()
        np.testing.assert_array_equal(found, wanted)
        assert len(small_batches) > 3
        gradients = []
        for loss in (
            loss_of_ids(model, first, seed=3, reduction="mean"),
            model.get_loss_from_text(model.tokenizer, first, seed=3),
        ):
            model.zero_grad()
            loss.backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None})
        assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
        for name, gradient in gradients[0].items():
            np.testing.assert_array_equal(gradients[1][name], gradient)

    def test_dropout_is_there_in_train_mode(self, model):
        first = some_texts()
        plain = model.get_loss_from_text(model.tokenizer, first, seed=3).item()
        model.train()
        assert model.get_loss_from_text(model.tokenizer, first, seed=3).item() != plain

    def test_settings_reach_the_masks(self, model):
        first = some_texts()
        settings = {"mlm_probability": 0.6, "mask_replace_prob": 0.1, "random_replace_prob": 0.7}
        wanted = loss_of_ids(model, first, seed=1, **settings).item()
        assert model.get_loss_from_text(model.tokenizer, first, seed=1, **settings).item() == wanted
        assert model.get_loss_from_text(model.tokenizer, first, seed=1).item() != wanted
        every = model.get_loss_from_text(model.tokenizer, first, seed=1, mlm_probability=1.0, reduction=None).numpy()
        n_words = sum(len(text.split()) for text in first)
        assert (every != 0).sum() == n_words
        assert model.get_loss_from_text(model.tokenizer, first, mlm_probability=1.0, reduction="sum", seed=1).item() == pytest.approx(
            n_words * model.get_loss_from_text(model.tokenizer, first, mlm_probability=1.0, seed=1).item(), rel=1e-5
        )

    def test_masks_follow_the_place_in_the_list(self, model):
        """A text alone is example 0: it has the masks that the first text of a list has."""
        first = some_texts(4)
        alone = model.get_loss_from_text(model.tokenizer, first[0], seed=5, reduction="sum").item()
        every = model.get_loss_from_text(model.tokenizer, first, seed=5, reduction=None).numpy().reshape(4, -1)
        assert every[0].sum() == pytest.approx(alone, rel=1e-5)

    def test_without_a_label_is_zero(self, model):
        assert model.get_loss_from_text(model.tokenizer, ["", ""], seed=0).item() == 0.0
        assert model.get_loss_from_text(model.tokenizer, []).item() == 0.0
        assert model.get_loss_from_text(model.tokenizer, [], reduction=None).shape == (0,)
        assert model.get_loss_from_text(model.tokenizer, "the sun", mlm_probability=0.0, reduction=None).tolist() == [0.0] * 4
        model.train()
        model.get_loss_from_text(model.tokenizer, ["", ""], seed=0).backward()
        for parameter in model.parameters():
            assert parameter.grad is None or not parameter.grad.any()

    def test_draws_a_seed_of_its_own(self, model):
        first = some_texts()
        lucid.manual_seed(5)
        one, two = (model.get_loss_from_text(model.tokenizer, first).item() for _ in range(2))
        assert one != two
        lucid.manual_seed(5)
        assert model.get_loss_from_text(model.tokenizer, first).item() == one


class TestPredictions:
    def test_are_those_of_one_padded_batch(self, model, small_batches):
        first = some_texts()
        encoded = model.tokenizer.encode_batch(first)
        wanted = model.predict_token_ids(encoded["input_ids"], encoded["attention_mask"], encoded["token_type_ids"])
        found = model.predict_token_ids_from_text(model.tokenizer, first)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found.numpy(), wanted.numpy())
        assert len(small_batches) > 3

    def test_one_text_and_a_pair(self, model):
        ids = model.tokenizer.encode_plus("the sun", "a b")
        wanted = model.predict_token_ids([ids["input_ids"]], token_type_ids=[ids["token_type_ids"]]).tolist()
        assert model.predict_token_ids_from_text(model.tokenizer, "the sun", "a b").tolist() == wanted
        assert model.predict_token_ids_from_text(model.tokenizer, "the sun").shape == (1, 4)
        assert model.predict_token_ids_from_text(model.tokenizer, []).shape == (0, 0)

    def test_in_train_mode_are_those_of_eval_mode(self, model):
        first = some_texts()
        wanted = model.predict_token_ids_from_text(model.tokenizer, first).numpy()
        model.train()
        np.testing.assert_array_equal(model.predict_token_ids_from_text(model.tokenizer, first).numpy(), wanted)
        assert model.training


class TestErrors:
    @pytest.mark.parametrize("method", ["get_loss_from_text", "predict_token_ids_from_text"])
    def test_a_text_that_is_too_long(self, model, method):
        call = partial(getattr(model, method), model.tokenizer)
        call("a " * (POSITIONS - 2))
        with pytest.raises(ValueError, match=r"^text_a has 25 tokens .* table 24 rows: split the text into parts of at most 22 tokens"):
            call("a " * (POSITIONS - 1))
        with pytest.raises(ValueError, match=r"^text_a\[1\] has 25 tokens .* max_length=24, truncation=True"):
            call(["a", "a " * (POSITIONS - 1)])
        with pytest.raises(ValueError, match=r"^text_a\[0\] and its text_b has 25 tokens .* at most 21 tokens"):
            call(["a " * 11], ["b " * 11])

    @pytest.mark.parametrize("method", ["get_loss_from_text", "predict_token_ids_from_text"])
    def test_wrong_arguments(self, model, method):
        call = getattr(model, method)
        with pytest.raises(TypeError, match="tokenizer must be a BERTTokenizerFast, not str"):
            call("bert", "a")
        with pytest.raises(TypeError, match=r"text_a\[1\] is a int"):
            call(model.tokenizer, ["a", 3])
        with pytest.raises(ValueError, match="text_b has 1 texts, text_a has 2"):
            call(model.tokenizer, ["a", "b"], ["a"])
        with pytest.raises(ValueError, match="device 'tpu' is unknown"):
            call(model.tokenizer, "a", device="tpu")
        larger = models.BERTTokenizerFast(vocab=[*VOCAB, "moon"])
        with pytest.raises(IndexError, match="'moon', id 14, but the model has 14 words"):
            call(larger, ["a", "moon"])
        call(larger, ["a", "sun"])

    def test_reduction(self, model):
        with pytest.raises(ValueError, match="reduction must be"):
            model.get_loss_from_text(model.tokenizer, "a", reduction="none")


class TestPacking:
    def test_lists_are_packed_as_a_padded_batch_is(self, model):
        encoded = model.tokenizer.encode_batch(some_texts(6, 8), some_texts(6, 8, seed=1), padding=False)
        padded = model.tokenizer.encode_batch(some_texts(6, 8), some_texts(6, 8, seed=1))
        wanted = pack(model.config, padded["input_ids"], padded["attention_mask"], padded["token_type_ids"], seed=4)
        found = pack_lists(model.config, encoded["input_ids"], encoded["token_type_ids"], seed=4)
        assert (found.shape, found.seed) == (wanted.shape, 4)
        for name in ("cells", "ids", "position_ids", "type_ids", "starts", "columns", "examples", "token_examples"):
            array = getattr(found, name)
            assert array.dtype == np.int32
            np.testing.assert_array_equal(array, getattr(wanted, name))

    def test_numbers_name_the_examples(self, model):
        batch = pack_lists(model.config, [[2, 5, 3], [2, 3]], numbers=[7, 4])
        assert batch.token_examples.tolist() == [7, 7, 7, 4, 4]
        assert batch.take(batch.rows_at(np.array([[0, 1, 0], [1, 0, 0]], bool))).token_examples.tolist() == [7, 4]

    def test_bad_lists(self, model):
        with pytest.raises(IndexError, match=r"input_ids\[1, 2\] is 14, outside \[0, 14\)"):
            pack_lists(model.config, [[2, 3], [2, 5, 14]])
        with pytest.raises(IndexError, match=r"input_ids\[0, 0\] is -1"):
            pack_lists(model.config, [[-1, 3], [2, 5, 14]])
        with pytest.raises(IndexError, match=r"token_type_ids\[1, 0\] is 2"):
            pack_lists(model.config, [[2], [3]], [[0], [2]])
        with pytest.raises(ValueError, match="a sequence has 25 tokens, the position table only 24 rows"):
            pack_lists(model.config, [[5] * 25])

    def test_groups_hold_every_sequence_once(self):
        rng = np.random.default_rng(0)
        for _ in range(100):
            lengths = rng.integers(0, 50, rng.integers(0, 40)).tolist()
            most_sequences = None if rng.random() < 0.5 else int(rng.integers(1, 5))
            groups = list(by_tokens(lengths, 64, most_sequences))
            assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
            assert [lengths[i] for group in groups for i in group] == sorted(lengths, reverse=True)
            for group in groups:
                assert sum(lengths[i] for i in group) <= 64 and group
                assert most_sequences is None or len(group) <= most_sequences

    def test_a_sequence_larger_than_a_batch_stands_alone(self):
        assert list(by_tokens([3, 100, 3], 10)) == [[1], [0, 2]]
