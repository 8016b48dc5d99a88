"""What the models mean: every input, loss and mode on small random models, beside a float64 reference."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lucid
from lucid.models import BERT, BERTConfig, BERTForMaskedLM, BERTTokenizerFast, MaskFill
from lucid.nn import Embedding, Linear
from lucid.nn.init import normal
from lucid.ops.cross_entropy import cross_entropy

FIXTURES = Path(__file__).parent / "fixtures"
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def small_config(**overrides: Any) -> BERTConfig:
    sizes = {"vocab_size": 61, "hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 50}
    return replace(BERTConfig.base(), **{**sizes, "max_position_embeddings": 24, "type_vocab_size": 3, **overrides})


def randomise(model: Any, seed: int = 0) -> Any:
    """Give every parameter random values, biases and gains too, so that none can be left out unseen."""
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        scale = 0.6 if "word_embeddings" in name or "decoder.weight" in name else 0.1 if name.endswith("bias") else 0.2
        values = scale * rng.standard_normal(parameter.shape)
        is_gain = name.endswith(("layer_norm.weight", "layernorm.weight"))
        parameter.assign(values + 1 if is_gain else values)
    return model


def make(seed: int = 0, **overrides: Any) -> BERTForMaskedLM:
    return randomise(BERTForMaskedLM(small_config(**overrides)), seed).eval()


def reference(model: BERTForMaskedLM, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, inputs_embeds=None):
    """Return (hidden, pooled, logits) in float64, straight from the paper; rows without a token get NaN."""
    config = model.config
    p = {name: array.astype(np.float64) for name, array in model.state_dict().items()}
    p.setdefault("cls.predictions.decoder.weight", p["bert.embeddings.word_embeddings.weight"])
    activation = ACTIVATIONS[config.hidden_act]

    def linear(path, x):
        return x @ p[f"{path}.weight"].T + p[f"{path}.bias"]

    def layer_norm(path, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + config.layer_norm_eps)
        return centred / scale * p[f"{path}.weight"] + p[f"{path}.bias"]

    x = p["bert.embeddings.word_embeddings.weight"][input_ids] if inputs_embeds is None else np.asarray(inputs_embeds, np.float64)
    shape, n_heads = x.shape[:2], config.num_attention_heads
    types = np.zeros(shape, int) if token_type_ids is None else token_type_ids
    positions = np.arange(shape[1]) + np.zeros(shape, int) if position_ids is None else position_ids
    is_real = np.ones(shape, bool) if attention_mask is None else np.asarray(attention_mask) == 1
    x = x + p["bert.embeddings.position_embeddings.weight"][positions] + p["bert.embeddings.token_type_embeddings.weight"][types]
    x = layer_norm("bert.embeddings.layer_norm", x)
    for i in range(config.num_hidden_layers):
        layer = f"bert.encoder.layer.{i}"
        qkv = linear(f"{layer}.attention.qkv", x).reshape(*shape, 3, n_heads, -1)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        scores = np.where(is_real[:, None, None, :], q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]), -np.inf)
        with np.errstate(invalid="ignore"):
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
        context = (weights @ v).swapaxes(1, 2).reshape(*shape, -1)
        x = layer_norm(f"{layer}.attention.layer_norm", x + linear(f"{layer}.attention.dense", context))
        inner = activation(linear(f"{layer}.feed_forward.dense_in", x))
        x = layer_norm(f"{layer}.feed_forward.layer_norm", x + linear(f"{layer}.feed_forward.dense_out", inner))
    first = x[np.arange(shape[0]), is_real.argmax(axis=1)]
    pooled = np.tanh(linear("bert.pooler.dense", first)) if model.bert.pooler is not None else None
    head = layer_norm("cls.predictions.transform.layernorm", activation(linear("cls.predictions.transform.dense", x)))
    return x, pooled, linear("cls.predictions.decoder", head)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def ids_for(model: Any, *shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, shape)


def right_padded(*lengths: int) -> np.ndarray:
    return (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(int)


def check_against_reference(model: BERTForMaskedLM, **inputs: Any) -> None:
    wanted_hidden, wanted_pooled, wanted_logits = reference(model, **inputs)
    is_real = np.ones(wanted_logits.shape[:2], bool) if inputs.get("attention_mask") is None else inputs["attention_mask"] == 1
    hidden, pooled = model.bert(**inputs)
    logits = model(**inputs)
    for got, wanted in ((hidden.numpy(), wanted_hidden), (logits.numpy(), wanted_logits)):
        assert got.dtype == np.float32
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got[is_real], wanted[is_real], rtol=0, atol=3e-6 * max(5, np.abs(wanted[is_real]).max()))
        assert not got[~is_real].any()
    if wanted_pooled is None:
        assert pooled is None
    else:
        np.testing.assert_allclose(pooled.numpy(), np.where(is_real.any(axis=1)[:, None], wanted_pooled, 0), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def model() -> BERTForMaskedLM:
    """Give a small random model in eval mode; tests that change a model make their own."""
    return make()


@pytest.fixture(scope="module")
def trained() -> BERTForMaskedLM:
    """Give the recorded checkpoint with its tokenizer."""
    return BERTForMaskedLM.from_pretrained(FIXTURES)


class TestForward:
    @pytest.mark.parametrize("hidden_act", ACTIVATIONS)
    @pytest.mark.parametrize("tie_word_embedding", [True, False])
    def test_reference(self, hidden_act, tie_word_embedding):
        model = make(hidden_act=hidden_act, tie_word_embedding=tie_word_embedding)
        check_against_reference(model, input_ids=ids_for(model, 3, 11))

    @pytest.mark.parametrize("layer_norm_eps", [1e-12, 1e-2, 0.5])
    def test_layer_norm_eps(self, layer_norm_eps):
        model = make(layer_norm_eps=layer_norm_eps)
        check_against_reference(model, input_ids=ids_for(model, 2, 7))

    @pytest.mark.parametrize(
        "mask",
        [
            right_padded(13, 4, 1, 9),
            right_padded(13, 4, 1, 9)[:, ::-1],
            (np.random.default_rng(3).random((5, 13)) < 0.6).astype(int),
            np.eye(6, dtype=int),
            np.array([[1, 0, 0, 0, 1], [0, 0, 0, 0, 1]]),
        ],
        ids=["right", "left", "holes", "one each", "far apart"],
    )
    def test_masks(self, model, mask):
        assert mask.any(axis=1).all()
        check_against_reference(model, input_ids=ids_for(model, *mask.shape), attention_mask=mask)

    def test_types_and_positions(self, model):
        rng = np.random.default_rng(4)
        shape = (3, 10)
        types, positions, mask = rng.integers(0, 3, shape), rng.integers(0, 24, shape), right_padded(10, 3, 7)
        ids = ids_for(model, *shape)
        check_against_reference(model, input_ids=ids, token_type_ids=types)
        check_against_reference(model, input_ids=ids, position_ids=positions)
        check_against_reference(model, input_ids=ids, token_type_ids=types, position_ids=positions, attention_mask=mask)

    def test_inputs_embeds(self, model):
        embeds = np.random.default_rng(5).standard_normal((3, 8, 36)).astype(np.float32)
        check_against_reference(model, inputs_embeds=embeds)
        check_against_reference(model, inputs_embeds=embeds, attention_mask=right_padded(2, 8, 5), token_type_ids=np.full((3, 8), 2))

    def test_inputs_embeds_of_ids_give_the_same_bits(self, model):
        ids, mask = ids_for(model, 3, 8), right_padded(2, 8, 5)
        embeds = model.get_input_embeddings().weight.numpy()[ids]
        labels = np.where(mask == 1, ids, -100)
        wanted = model(ids, mask).numpy()
        for given in (embeds, embeds.astype(np.float64), lucid.Tensor(embeds), np.asfortranarray(embeds)):
            np.testing.assert_array_equal(model(attention_mask=mask, inputs_embeds=given).numpy(), wanted)
        assert model.get_loss(labels, None, mask, inputs_embeds=embeds).item() == model.get_loss(labels, ids, mask).item()
        np.testing.assert_array_equal(
            model.predict_token_ids(None, mask, inputs_embeds=embeds).numpy(), model.predict_token_ids(ids, mask).numpy()
        )

    def test_ids_or_embeds(self, model):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model()
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model([[1]], inputs_embeds=np.zeros((1, 1, 36), np.float32))

    def test_defaults(self, model):
        """No mask is a mask of ones, no types are zeros, no positions are the columns."""
        ids = ids_for(model, 2, 9)
        wanted = model(ids).numpy()
        ones, zeros, columns = np.ones((2, 9), int), np.zeros((2, 9), int), np.tile(np.arange(9), (2, 1))
        np.testing.assert_array_equal(model(ids, ones, zeros, columns).numpy(), wanted)
        assert not np.array_equal(model(ids, ones, zeros + 1, columns).numpy(), wanted)
        assert not np.array_equal(model(ids, ones, zeros, columns[:, ::-1]).numpy(), wanted)

    def test_what_stands_under_the_mask_does_not_matter(self, model):
        mask = right_padded(9, 4, 6)
        mask[0, 3] = 0
        ids = ids_for(model, 3, 9)
        is_real = mask == 1
        wild = np.where(is_real, ids, [[-7], [10**12], [61]])
        wanted = model(ids, mask).numpy()
        np.testing.assert_array_equal(model(wild, mask, np.where(is_real, 0, 9), np.where(is_real, np.arange(9), -1)).numpy(), wanted)
        embeds = model.get_input_embeddings().weight.numpy()[ids]
        embeds[~is_real] = np.nan
        np.testing.assert_array_equal(model(None, mask, inputs_embeds=embeds).numpy(), wanted)

    def test_padding_changes_no_bit(self, model):
        ids = ids_for(model, 2, 7)
        padded = np.concatenate([ids, ids_for(model, 2, 6, seed=2)], axis=1)
        mask = right_padded(7, 7, 13)[:2]
        hidden, pooled = model.bert(ids)
        padded_hidden, padded_pooled = model.bert(padded, mask)
        np.testing.assert_array_equal(padded_hidden.numpy()[:, :7], hidden.numpy())
        np.testing.assert_array_equal(padded_pooled.numpy(), pooled.numpy())
        np.testing.assert_array_equal(model(padded, mask).numpy()[:, :7], model(ids).numpy())

    def test_holes_keep_the_column_of_the_others(self, model):
        ids, mask = ids_for(model, 1, 12), np.array([[0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0]])
        columns = np.flatnonzero(mask[0])
        dense = model(ids[:, columns], position_ids=columns[None])
        np.testing.assert_array_equal(model(ids, mask).numpy()[:, columns], dense.numpy())
        assert not np.array_equal(model(ids[:, columns]).numpy(), dense.numpy())

    def test_one_token(self, model):
        for word in (0, 60):
            check_against_reference(model, input_ids=np.array([[word]]))

    def test_512_tokens(self):
        model = make(max_position_embeddings=512, num_hidden_layers=2)
        ids, mask = ids_for(model, 2, 512), right_padded(512, 300)
        check_against_reference(model, input_ids=ids, attention_mask=mask)
        with pytest.raises(ValueError, match="513 tokens, the position table only 512"):
            model(ids_for(model, 1, 513))

    @pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0)])
    def test_empty_batch(self, model, shape):
        ids = np.zeros(shape, np.int64)
        sequence, pooled = model.bert(ids)
        assert sequence.shape == (*shape, 36)
        assert pooled.shape == (shape[0], 36)
        assert not pooled.numpy().any()
        assert model(ids, ids, ids, ids).shape == (*shape, 61)
        assert model(inputs_embeds=np.zeros((*shape, 36), np.float32)).shape == (*shape, 61)
        assert model.get_loss(ids, ids).item() == 0.0
        assert model.get_loss(ids, ids, reduction=None).shape == (0,)
        assert model.get_accuracy(ids, ids).item() == 0.0
        predicted = model.predict_token_ids(ids)
        assert (predicted.shape, predicted.dtype) == (shape, np.int64)
        assert [tensor.shape for tensor in model.create_masked_lm_inputs(ids, mask_token_id=4)] == [shape, shape]

    def test_empty_lists(self, model):
        assert model([[]]).shape == (1, 0, 61)
        assert model([[], []], [[], []]).shape == (2, 0, 61)

    def test_rows_without_a_token(self, model):
        """Zeros and no NaN, and the neighbours do not notice."""
        ids, mask = ids_for(model, 4, 6), right_padded(6, 6, 3, 6)
        mask[[0, 3]] = 0
        (hidden, pooled), logits = model.bert(ids, mask), model(ids, mask).numpy()
        for array in (hidden.numpy(), pooled.numpy(), logits, model.predict_token_ids(ids, mask).numpy()):
            assert not array[[0, 3]].any()
        np.testing.assert_array_equal(logits[1:3], model(ids[1:3], mask[1:3]).numpy())
        np.testing.assert_array_equal(pooled.numpy()[1:3], model.bert(ids[1:3], mask[1:3])[1].numpy())
        labels = np.where(mask == 1, ids, -100)
        assert model.get_loss(labels, ids, mask).item() == model.get_loss(labels[1:3], ids[1:3], mask[1:3]).item()
        assert model.get_accuracy(labels, ids, mask).item() == model.get_accuracy(labels[1:3], ids[1:3], mask[1:3]).item()

    def test_no_token_at_all(self, model):
        ids, mask = ids_for(model, 2, 5), np.zeros((2, 5), int)
        hidden, pooled = model.bert(ids, mask)
        for array in (hidden.numpy(), pooled.numpy(), model(ids, mask).numpy(), model.predict_token_ids(ids, mask).numpy()):
            assert not array.any()
        none = np.full((2, 5), -100)
        assert model.get_loss(none, ids, mask).item() == 0.0
        assert model.get_accuracy(none, ids, mask).item() == 0.0

    def test_backbone_alone(self):
        backbone = randomise(BERT(small_config(add_pooling_layer=False))).eval()
        ids = ids_for(backbone, 2, 5)
        hidden, pooled = backbone(ids)
        assert pooled is None
        whole = make(add_pooling_layer=False)
        whole.load_state_dict({f"bert.{name}": array for name, array in backbone.state_dict().items()}, strict=False)
        np.testing.assert_array_equal(whole.bert(ids)[0].numpy(), hidden.numpy())


class TestLoss:
    IDS = np.random.default_rng(7).integers(0, 61, (4, 12))
    MASK = right_padded(12, 5, 9, 2)

    def labels(self, p: float = 0.4, seed: int = 8) -> np.ndarray:
        rng = np.random.default_rng(seed)
        is_asked = (rng.random(self.IDS.shape) < p) & (self.MASK == 1)
        return np.where(is_asked, rng.integers(0, 61, self.IDS.shape), -100)

    def test_reference(self, model):
        labels = self.labels()
        scores = log_softmax(reference(model, self.IDS, self.MASK)[2])
        wanted = np.where(labels == -100, 0, -np.take_along_axis(scores, np.maximum(labels, 0)[:, :, None], axis=2)[:, :, 0])
        n_labels = (labels != -100).sum()
        assert n_labels > 5
        got = model.get_loss(labels, self.IDS, self.MASK, reduction=None)
        assert (got.shape, got.dtype) == ((48,), np.float32)
        np.testing.assert_allclose(got.numpy(), wanted.ravel(), rtol=1e-6, atol=1e-5)
        assert model.get_loss(labels, self.IDS, self.MASK, reduction="sum").item() == pytest.approx(wanted.sum(), rel=1e-6)
        assert model.get_loss(labels, self.IDS, self.MASK).item() == pytest.approx(wanted.sum() / n_labels, rel=1e-6)

    def test_reductions_agree(self, model):
        labels = self.labels()
        each, total, mean = (model.get_loss(labels, self.IDS, self.MASK, reduction=r) for r in (None, "sum", "mean"))
        exact = each.numpy().sum(dtype=np.float64)
        assert (each.numpy() != 0).sum() == (labels != -100).sum()
        assert (total.shape, total.dtype, mean.shape, mean.dtype) == ((), np.float32, (), np.float32)
        assert total.item() == np.float32(exact)
        assert mean.item() == np.float32(exact / (labels != -100).sum())
        for wrong in ("none", "MEAN", "", 0, False):
            with pytest.raises(ValueError, match="reduction must be"):
                model.get_loss(labels, self.IDS, self.MASK, reduction=wrong)

    @pytest.mark.parametrize("p", [0.0, 0.02, 0.3, 0.9, 1.0])
    @pytest.mark.parametrize("is_training", [False, True])
    def test_asked_rows_alone_give_the_bits_of_all(self, p, is_training):
        """The last layer and the head run for the labels' rows only, in train mode with the same dropout."""
        model = make(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).train(is_training)
        for seed in range(4):
            labels = self.labels(p, seed)
            got = model.get_loss(labels, self.IDS, self.MASK, reduction=None, seed=5).numpy()
            logits = model(self.IDS, self.MASK, seed=5).numpy().reshape(48, 61)
            np.testing.assert_array_equal(got, cross_entropy(logits, labels=labels.ravel().astype(np.int32)))

    def test_one_label(self, model):
        for b, s in ((0, 0), (0, 11), (3, 1), (2, 8)):
            labels = np.full(self.IDS.shape, -100)
            labels[b, s] = 17
            wanted = model.get_loss(np.where(self.MASK, 17, -100), self.IDS, self.MASK, reduction=None).numpy().reshape(4, 12)[b, s]
            assert model.get_loss(labels, self.IDS, self.MASK).item() == wanted

    def test_mean_is_over_all_labels(self, model):
        labels = np.full(self.IDS.shape, -100)
        labels[0, :9], labels[1, 0] = 3, 4
        first, second = (model.get_loss(labels[b : b + 1], self.IDS[b : b + 1], self.MASK[b : b + 1]).item() for b in (0, 1))
        together = model.get_loss(labels, self.IDS, self.MASK).item()
        assert together == pytest.approx((9 * first + second) / 10, rel=1e-6)
        assert abs(together - (first + second) / 2) > 1e-2

    @pytest.mark.parametrize("reduction", ["mean", "sum", None])
    def test_no_label(self, model, reduction):
        loss = model.get_loss(np.full(self.IDS.shape, -100), self.IDS, self.MASK, reduction=reduction)
        assert loss.dtype == np.float32
        np.testing.assert_array_equal(loss.numpy(), np.zeros(48 if reduction is None else (), np.float32))

    def test_label_under_the_mask(self, model):
        labels = self.labels()
        labels[1, 5] = 3
        for ask in (model.get_loss, model.get_accuracy):
            with pytest.raises(ValueError, match=r"labels\[1, 5\] is 3, but attention_mask is 0 there"):
                ask(labels, self.IDS, self.MASK)
        assert model.get_loss(labels, self.IDS).item() > 0

    @pytest.mark.parametrize(("word", "ignore_index"), [(61, -100), (-1, -100), (-100, -1), (10**12, 0)])
    def test_label_outside_the_vocabulary(self, model, word, ignore_index):
        labels = np.full(self.IDS.shape, ignore_index)
        labels[2, 3] = word
        for ask in (model.get_loss, model.get_accuracy):
            with pytest.raises(IndexError, match=rf"labels\[2, 3\] is {word}, outside \[0, 61\)"):
                ask(labels, self.IDS, ignore_index=ignore_index)

    @pytest.mark.parametrize("ignore_index", [-1, 0, 5, 1000, 2**40])
    def test_ignore_index(self, model, ignore_index):
        """Any integer may be it, a word's id too: that word is then never asked for."""
        labels = self.labels()
        labels[labels == ignore_index] = -100
        assert (labels != -100).any()
        other = np.where(labels == -100, ignore_index, labels)
        for reduction in ("mean", None):
            wanted = model.get_loss(labels, self.IDS, self.MASK, reduction=reduction)
            got = model.get_loss(other, self.IDS, self.MASK, reduction=reduction, ignore_index=ignore_index)
            np.testing.assert_array_equal(got.numpy(), wanted.numpy())
        accuracy = model.get_accuracy(other, self.IDS, self.MASK, ignore_index=ignore_index)
        assert accuracy.item() == model.get_accuracy(labels, self.IDS, self.MASK).item()

    def test_shapes_must_agree(self, model):
        with pytest.raises(ValueError, match=r"labels has shape \(4, 11\), the batch has shape \(4, 12\)"):
            model.get_loss(self.labels()[:, 1:], self.IDS)
        with pytest.raises(TypeError, match="labels must hold integers"):
            model.get_loss(self.labels().astype(float), self.IDS)


class TestPredict:
    def test_is_the_arg_max_of_forward(self, model):
        ids, mask = ids_for(model, 5, 14), right_padded(14, 3, 9, 1, 14)
        mask[4, 2:5] = 0
        predicted = model.predict_token_ids(ids, mask)
        assert (predicted.shape, predicted.dtype) == ((5, 14), np.int64)
        wanted = np.where(mask == 1, model(ids, mask).numpy().argmax(axis=2), 0)
        assert len(np.unique(wanted)) > 5
        np.testing.assert_array_equal(predicted.numpy(), wanted)

    def test_equal_logits_give_the_first_word(self):
        model = make(tie_word_embedding=False)
        decoder = model.get_output_embeddings()
        values = decoder.weight.numpy().copy()
        values[30:] = values[:31]
        decoder.weight.assign(values)
        decoder.bias.assign(np.zeros(61))
        predicted = model.predict_token_ids(ids_for(model, 4, 20)).numpy()
        assert predicted.max() < 30
        assert len(np.unique(predicted)) > 3

    def test_accuracy(self, model):
        ids, mask = ids_for(model, 3, 10), right_padded(10, 6, 8)
        predicted = model.predict_token_ids(ids, mask).numpy()
        labels = np.where(mask == 1, predicted, -100)
        assert model.get_accuracy(labels, ids, mask).item() == 1.0
        wrong = np.where(labels == -100, -100, (labels + 1) % 61)
        assert model.get_accuracy(wrong, ids, mask).item() == 0.0
        some = np.where(np.arange(10) < 4, labels, wrong)
        some[0, 0] = -100
        accuracy = model.get_accuracy(some, ids, mask)
        assert (accuracy.shape, accuracy.dtype) == ((), np.float32)
        assert accuracy.item() == np.float32(11 / 23)
        assert model.get_accuracy(np.full((3, 10), -100), ids, mask).item() == 0.0


class TestModes:
    def test_how_models_begin(self):
        assert BERT(small_config()).training
        model = BERTForMaskedLM(small_config())
        assert all(module.training for module in model.modules())
        assert model.eval() is model
        assert not any(module.training for module in model.modules())
        assert model.train() is model
        assert all(module.training for module in model.modules())
        for kind in (BERT, BERTForMaskedLM):
            assert not any(module.training for module in kind.from_pretrained(FIXTURES).modules())

    def test_train_mode_has_dropout(self):
        model = make().train()
        ids = ids_for(model, 3, 9)
        loss = {seed: model.get_loss(ids, ids, seed=seed).item() for seed in range(4)}
        assert len(set(loss.values())) == 4
        assert model.get_loss(ids, ids, seed=2).item() == loss[2]
        logits = model(ids, seed=1).numpy()
        np.testing.assert_array_equal(model(ids, seed=1).numpy(), logits)
        assert not np.array_equal(model(ids, seed=2).numpy(), logits)
        still = model.eval()(ids).numpy()
        assert not np.array_equal(still, logits)
        hidden = [model.train().bert(ids, seed=seed)[0].numpy() for seed in (1, 1, 2)]
        np.testing.assert_array_equal(hidden[0], hidden[1])
        assert not np.array_equal(hidden[0], hidden[2])

    def test_eval_mode_has_none(self):
        model = make()
        ids = ids_for(model, 3, 9)
        before = lucid.random.get_state()
        losses = {model.get_loss(ids, ids, seed=seed).item() for seed in (None, None, 0, 1)}
        assert len(losses) == 1
        np.testing.assert_array_equal(model(ids, seed=1).numpy(), model(ids).numpy())
        assert lucid.random.get_state() == before  # nothing was drawn

    @pytest.mark.parametrize("kind", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
    def test_each_dropout_counts(self, kind):
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        still, shaken = make(**off), make(**{**off, kind: 0.2}).train()
        ids = ids_for(still, 2, 8)
        wanted = still(ids).numpy()
        np.testing.assert_array_equal(still.train()(ids, seed=1).numpy(), wanted)
        assert np.abs(shaken(ids, seed=1).numpy() - wanted).max() > 1e-2
        np.testing.assert_array_equal(shaken.eval()(ids, seed=1).numpy(), wanted)

    def test_dropout_leaves_the_mean(self):
        """Over many seeds the embeddings' dropout, alone in a model whose layers do nothing, averages out."""
        model = make(num_hidden_layers=1, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0)
        ids = ids_for(model, 1, 6)
        batch = model.bert.pack(ids)
        wanted = model.bert.embeddings(batch).numpy()
        model.train()
        mean = np.mean([model.bert.embeddings(model.bert.pack(ids, seed=seed)).numpy() for seed in range(3000)], axis=0)
        # Each number is 0 or twice itself: its mean over 3,000 has a deviation of |number| / sqrt(3000).
        assert (np.abs(mean - wanted) <= 5 * np.abs(wanted) / np.sqrt(3000) + 1e-6).all()

    def test_manual_seed(self):
        model = make().train()
        ids = ids_for(model, 2, 8)

        def run() -> list[float]:
            return [model.get_loss(ids, ids).item() for _ in range(3)]

        before = lucid.random.get_state()
        try:
            lucid.manual_seed(11)
            first = run()
            lucid.manual_seed(11)
            again = run()
            lucid.manual_seed(12)
            other = run()
        finally:
            lucid.random.set_state(*before)
        assert first == again
        assert len(set(first + other)) == 6

    def test_same_seed_makes_the_same_model(self):
        before = lucid.random.get_state()
        models = []
        try:
            for seed in (1, 1, 2):
                lucid.manual_seed(seed)
                models.append(BERTForMaskedLM(small_config()).eval())
        finally:
            lucid.random.set_state(*before)
        ids = ids_for(models[0], 2, 6)
        for model in models[::-1]:  # initial values are drawn when they are needed: the order must not matter
            model(ids)
        a, b, c = (model.state_dict() for model in models)
        for name, array in a.items():
            np.testing.assert_array_equal(array, b[name])
            assert name.endswith("bias") or "norm" in name or not np.array_equal(array, c[name]), name
        weights = [array.ravel()[:6].tolist() for name, array in a.items() if not name.endswith("bias") and "norm" not in name]
        assert len({tuple(w) for w in weights}) == len(weights)  # no two weights are equal

    def test_initial_values(self):
        model = BERTForMaskedLM(small_config(hidden_size=60, vocab_size=400, initializer_range=0.05))
        for name, array in model.state_dict().items():
            if name.endswith("bias"):
                assert not array.any(), name
            elif "norm" in name:
                assert (array == 1).all(), name
            else:
                deviation = 0.05 / np.sqrt(array.size)
                assert abs(array.mean()) < 5 * deviation, name
                assert abs(array.std() - 0.05) < 5 * deviation, name

    def test_predictions_are_eval_in_train_mode(self):
        model = make()
        ids = ids_for(model, 3, 9)
        labels = model.predict_token_ids(ids).numpy()
        model.train()
        for _ in range(3):
            np.testing.assert_array_equal(model.predict_token_ids(ids).numpy(), labels)
            assert model.get_accuracy(labels, ids).item() == 1.0
        assert all(module.training for module in model.modules())
        trained = BERTForMaskedLM.from_pretrained(FIXTURES)
        wanted = trained.fill_mask("a [MASK] ran")
        assert trained.train().fill_mask("a [MASK] ran") == wanted
        assert trained.training

    def test_dropout_belongs_to_the_token(self):
        """Padding, and sequences behind it, change nothing for a token in train mode."""
        model = make().train()
        ids = ids_for(model, 3, 9)
        wanted = model(ids[:1, :6], seed=3).numpy()
        mask = right_padded(6, 9, 2)
        np.testing.assert_array_equal(model(ids, mask, seed=3).numpy()[:1, :6], wanted)


class TestMasking:
    IDS = np.random.default_rng(9).integers(0, 61, (6, 20))

    def test_chosen_tokens(self, model):
        mask = right_padded(20, 8, 13, 20, 1, 5)
        masked, labels = (tensor.numpy() for tensor in model.create_masked_lm_inputs(self.IDS, mask, mask_token_id=7, seed=1))
        is_chosen = labels != -100
        assert 3 < is_chosen.sum() < 30
        assert not is_chosen[mask == 0].any()
        np.testing.assert_array_equal(labels[is_chosen], self.IDS[is_chosen])
        np.testing.assert_array_equal(masked[~is_chosen], self.IDS[~is_chosen])

    def test_all_and_nothing(self, model):
        always = {"mlm_probability": 1.0, "mask_token_id": 7, "seed": 0}
        is_pad = self.IDS == 0  # the one special id below this vocabulary's size
        assert model.special_token_ids == [0]
        assert is_pad.any()
        masked, labels = model.create_masked_lm_inputs(self.IDS, mask_replace_prob=1, random_replace_prob=0, **always)
        np.testing.assert_array_equal(masked.numpy(), np.where(is_pad, 0, 7))
        np.testing.assert_array_equal(labels.numpy(), np.where(is_pad, -100, self.IDS))
        masked, labels = model.create_masked_lm_inputs(self.IDS, mask_replace_prob=0, random_replace_prob=0, ignore_index=-5, **always)
        np.testing.assert_array_equal(masked.numpy(), self.IDS)
        np.testing.assert_array_equal(labels.numpy(), np.where(is_pad, -5, self.IDS))
        masked, labels = model.create_masked_lm_inputs(self.IDS, mask_replace_prob=0, random_replace_prob=1, **always)
        assert (masked.numpy()[~is_pad] != 0).all()
        assert (masked.numpy() != self.IDS)[~is_pad].mean() > 0.9
        masked, labels = model.create_masked_lm_inputs(self.IDS, mlm_probability=0, mask_token_id=7)
        np.testing.assert_array_equal(masked.numpy(), self.IDS)
        assert (labels.numpy() == -100).all()

    def test_special_tokens_mask(self, model):
        special = (np.random.default_rng(2).random(self.IDS.shape) < 0.5).astype(int)
        _, labels = model.create_masked_lm_inputs(self.IDS, None, special, mask_token_id=7, mlm_probability=1)
        np.testing.assert_array_equal(labels.numpy() == -100, special == 1)

    def test_seed(self, model):
        def draw(seed, ids=self.IDS):
            return [tensor.numpy() for tensor in model.create_masked_lm_inputs(ids, mask_token_id=7, seed=seed)]

        np.testing.assert_array_equal(draw(4), draw(4))
        assert not np.array_equal(draw(4), draw(5))
        np.testing.assert_array_equal(draw(4, self.IDS[:2, :11]), [array[:2, :11] for array in draw(4)])

    def test_special_ids_of_the_folder(self):
        """A loaded model knows its tokenizer's special tokens: here 0 to 4."""
        model = BERTForMaskedLM.from_pretrained(FIXTURES)
        assert model.special_token_ids == [0, 1, 2, 3, 4]
        ids = np.random.default_rng(3).integers(0, 120, (20, 40))
        settings = {"mask_token_id": 4, "mlm_probability": 1, "mask_replace_prob": 0, "random_replace_prob": 1, "seed": 1}
        masked, labels = (tensor.numpy() for tensor in model.create_masked_lm_inputs(ids, **settings))
        np.testing.assert_array_equal(labels == -100, ids < 5)
        assert (masked[ids >= 5] >= 5).all()


class TestTexts:
    TEXTS = ("The cat sat on the road.", "bread", "a happy king ruled, and the unhappy queen was not happy?")

    @pytest.mark.parametrize("texts", ["a cat", list(TEXTS), tuple(TEXTS), ["bread"]])
    @pytest.mark.parametrize("has_pairs", [False, True])
    def test_predict(self, trained, texts, has_pairs):
        pairs = None if not has_pairs else "a dog ran" if isinstance(texts, str) else ["a dog ran", "", "fish"][: len(texts)]
        got = trained.predict_token_ids_from_text(trained.tokenizer, texts, pairs)
        encoded = trained.tokenizer.encode_batch(*([t] if isinstance(t, str) else t for t in (texts, pairs)))
        wanted = trained.predict_token_ids(encoded["input_ids"], encoded["attention_mask"], encoded["token_type_ids"])
        assert got.dtype == np.int64
        assert got.shape[0] == (1 if isinstance(texts, str) else len(texts))
        np.testing.assert_array_equal(got.numpy(), wanted.numpy())

    @pytest.mark.parametrize("is_training", [False, True])
    def test_loss_is_that_of_the_steps(self, trained, is_training):
        encoded = trained.tokenizer.encode_batch(self.TEXTS, self.TEXTS[::-1], return_special_tokens_mask=True)
        ids, mask, types = (encoded[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
        settings = {"mlm_probability": 0.4, "mask_replace_prob": 0.5, "random_replace_prob": 0.3}
        masked, labels = trained.create_masked_lm_inputs(ids, mask, encoded["special_tokens_mask"], mask_token_id=4, seed=6, **settings)
        trained.train(is_training)
        try:
            for reduction in ("mean", "sum", None):
                wanted = trained.get_loss(labels, masked, mask, types, reduction=reduction, seed=6).numpy()
                texts = list(self.TEXTS), list(self.TEXTS[::-1])
                got = trained.get_loss_from_text(trained.tokenizer, *texts, **settings, reduction=reduction, seed=6)
                np.testing.assert_array_equal(got.numpy(), wanted)
                assert wanted.any()
        finally:
            trained.eval()

    def test_loss_of_one_text(self, trained):
        loss = trained.get_loss_from_text(trained.tokenizer, self.TEXTS[0], reduction=None, mlm_probability=1.0)
        assert loss.shape == (9,)
        np.testing.assert_array_equal(loss.numpy() > 0, [False, *[True] * 7, False])
        assert trained.get_loss_from_text(trained.tokenizer, self.TEXTS[0], mlm_probability=0.0).item() == 0.0

    def test_mask_token_id(self, trained):
        every = {"mlm_probability": 1.0, "mask_replace_prob": 1.0, "random_replace_prob": 0.0}
        default = trained.get_loss_from_text(trained.tokenizer, self.TEXTS[0], **every).item()
        assert trained.get_loss_from_text(trained.tokenizer, self.TEXTS[0], mask_token_id=4, **every).item() == default
        assert trained.get_loss_from_text(trained.tokenizer, self.TEXTS[0], mask_token_id=50, **every).item() != default

    def test_bad_arguments(self, trained):
        tokenizer = trained.tokenizer
        for method in (trained.predict_token_ids_from_text, trained.get_loss_from_text):
            with pytest.raises(ValueError, match="text_b has 1 texts, text_a has 2"):
                method(tokenizer, ["a", "b"], ["c"])
            with pytest.raises(TypeError, match="text_a must be a str or a list of str"):
                method(tokenizer, 5)
            with pytest.raises(TypeError, match="text_a must be a str or a list of str"):
                method(tokenizer, ["a", None])
            with pytest.raises(TypeError, match="tokenizer must be a BERTTokenizerFast"):
                method("tokenizer", "a")
            with pytest.raises(ValueError, match="position table 40 rows"):
                method(tokenizer, "cat " * 39)

    def test_empty_texts(self, trained):
        assert trained.predict_token_ids_from_text(trained.tokenizer, "").shape == (1, 2)
        assert trained.predict_token_ids_from_text(trained.tokenizer, []).shape == (0, 0)
        assert trained.get_loss_from_text(trained.tokenizer, "").item() == 0.0
        assert trained.get_loss_from_text(trained.tokenizer, []).item() == 0.0


class TestFillMask:
    TEXT = "the [MASK] sat on the [MASK]."

    def probabilities(self, model: BERTForMaskedLM, text: str) -> np.ndarray:
        """Return (masks, words) by way of `forward`."""
        ids = np.array([model.tokenizer.encode(text)])
        return np.exp(log_softmax(model(ids).numpy()[ids == 4].astype(np.float64)))

    def test_one_mask(self, trained):
        fills = trained.fill_mask("the cat is [MASK] and big.")
        assert len(fills) == 1
        assert len(fills[0]) == 5
        assert all(isinstance(fill, MaskFill) for fill in fills[0])
        (wanted,) = self.probabilities(trained, "the cat is [MASK] and big.")
        assert [fill.token for fill in fills[0]] == np.argsort(-wanted)[:5].tolist()
        np.testing.assert_allclose([fill.score for fill in fills[0]], np.sort(wanted)[:-6:-1], rtol=1e-5)
        for fill in fills[0]:
            assert fill.token_str == trained.tokenizer.convert_ids_to_tokens(fill.token)
            ids = [fill.token if i == 4 else i for i in trained.tokenizer.encode("the cat is [MASK] and big.")]
            assert fill.sequence == trained.tokenizer.decode([i for i in ids if i not in (2, 3)], skip_special_tokens=False)

    def test_many_masks(self, trained):
        fills = trained.fill_mask(self.TEXT, top_k=3)
        wanted = self.probabilities(trained, self.TEXT)
        assert [len(guesses) for guesses in fills] == [3, 3]
        assert [[fill.token for fill in guesses] for guesses in fills] == np.argsort(-wanted, axis=1)[:, :3].tolist()
        for mask, guesses in enumerate(fills):
            for fill in guesses:
                assert fill.sequence.count("[MASK]") == 1  # the other mask stays
                first = fill.sequence.startswith("the [MASK] sat") if mask else fill.sequence.endswith("sat on the [MASK].")
                assert first, fill.sequence

    def test_lists(self, trained):
        texts = [self.TEXT, "[MASK]", "a dog, a cat and a [MASK] flew. the king drank wine. the bird ran"]
        fills = trained.fill_mask(texts)
        assert [len(masks) for masks in fills] == [2, 1, 1]
        assert fills == [trained.fill_mask(text) for text in texts]  # to the bit, alone and in a batch
        assert trained.fill_mask(texts[:1]) == [trained.fill_mask(texts[0])]
        assert trained.fill_mask(tuple(texts)) == fills
        assert trained.fill_mask([]) == []

    def test_more_texts_than_one_batch(self, trained):
        """They are run in several batches, and come back in order."""
        words = trained.tokenizer.convert_ids_to_tokens(range(11, 100))
        texts = [f"the {a} and the [MASK] {b}, on the road, by the river and in the tree." for a in words[:23] for b in words[:30]]
        fills = trained.fill_mask(texts, top_k=2)
        assert sum(len(trained.tokenizer.encode(text)) for text in texts) > 3 * 4096
        some = range(0, len(texts), 29)
        assert [fills[i] for i in some] == [trained.fill_mask(texts[i], top_k=2) for i in some]

    @pytest.mark.parametrize("top_k", [1, 2, 119, 120])
    def test_top_k(self, trained, top_k):
        (guesses,) = trained.fill_mask("a [MASK] ran", top_k=top_k)
        scores = [fill.score for fill in guesses]
        assert len({fill.token for fill in guesses}) == len(guesses) == top_k
        assert scores == sorted(scores, reverse=True)
        assert (top_k == 120) == (sum(scores) == pytest.approx(1, abs=1e-6))
        for wrong in (0, -1, 121):
            with pytest.raises(ValueError, match="top_k must lie between 1 and the 120 words"):
                trained.fill_mask("a [MASK] ran", top_k=wrong)

    def test_targets(self, trained):
        words = ["cat", "river", "dog", "stone", "cat"]
        fills = trained.fill_mask(self.TEXT, targets=words)
        wanted = self.probabilities(trained, self.TEXT)
        for guesses, row in zip(fills, wanted, strict=True):
            ids = [fill.token for fill in guesses]
            assert {fill.token_str for fill in guesses} == set(words)
            assert ids == sorted(ids, key=lambda i: -row[i])
            np.testing.assert_allclose([fill.score for fill in guesses], row[ids], rtol=1e-5)  # of the whole vocabulary
        short = trained.fill_mask(self.TEXT, 2, words)
        assert short == [guesses[:2] for guesses in fills]
        for wrong in ([], "cat", ["no such word"], [""]):
            with pytest.raises(ValueError, match="target"):
                trained.fill_mask(self.TEXT, targets=wrong)

    def test_errors(self, trained):
        with pytest.raises(ValueError, match=r"no \[MASK\] in 'a cat'"):
            trained.fill_mask("a cat")
        with pytest.raises(ValueError, match=r"no \[MASK\] in 'a cat'"):
            trained.fill_mask(["a [MASK]", "a cat"])
        with pytest.raises(TypeError, match="texts must be a str or a list of str"):
            trained.fill_mask(None)

    def test_tokenizer(self, trained):
        bare = make(vocab_size=120)
        assert bare.tokenizer is None
        with pytest.raises(ValueError, match="no tokenizer"):
            bare.fill_mask("a [MASK]")
        assert len(bare.fill_mask("a [MASK]", tokenizer=trained.tokenizer)[0]) == 5
        with pytest.raises(TypeError, match="tokenizer must be"):
            bare.fill_mask("a [MASK]", tokenizer=object())
        # The ids of a tokenizer are its own: here [MASK] is 5, and the only word is 4.
        other = BERTTokenizerFast(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "[MASK]"])
        (guesses,) = bare.fill_mask("a [MASK]", targets=["a"], tokenizer=other)
        logits = bare(np.array([[2, 4, 5, 3]])).numpy()[0, 2].astype(np.float64)
        assert [fill.token for fill in guesses] == [4]
        assert guesses[0].score == pytest.approx(np.exp(log_softmax(logits))[4], rel=1e-5)


class TestState:
    def test_round_trip(self):
        source, ids = make(seed=1), np.array([[5, 6, 7]])
        wanted = source(ids).numpy()
        for target in (make(seed=2), BERTForMaskedLM(small_config()).eval()):
            target(ids)  # weights are packed now: loading must drop the panels
            target.load_state_dict(source.state_dict())
            np.testing.assert_array_equal(target(ids).numpy(), wanted)
            assert target.state_dict().keys() == source.state_dict().keys()
            for name, array in source.state_dict().items():
                np.testing.assert_array_equal(target.state_dict()[name], array)

    def test_using_a_model_does_not_change_its_state(self):
        model = make()
        before = {name: array.copy() for name, array in model.state_dict().items()}
        ids = ids_for(model, 2, 5)
        model(ids)
        model.train().get_loss(ids, ids)
        model.predict_token_ids(ids)
        after = model.state_dict()
        assert before.keys() == after.keys()
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array)
            assert not after[name].flags.writeable

    def test_paths(self):
        tied, untied = make().state_dict(), make(tie_word_embedding=False).state_dict()
        assert untied.keys() - tied.keys() == {"cls.predictions.decoder.weight"}
        assert tied.keys() < untied.keys()
        assert "bert.encoder.layer.2.attention.qkv.weight" in tied
        assert tied["bert.encoder.layer.2.attention.qkv.weight"].shape == (108, 36)
        assert "bert.pooler.dense.bias" in tied
        assert make().parameter_size == sum(array.size for array in tied.values())

    def test_strict(self):
        model = make()
        state = make(seed=3).state_dict()
        before = {name: array.copy() for name, array in model.state_dict().items()}
        missing = dict(list(state.items())[1:])
        cases = [
            (missing, KeyError, r"missing \['bert.embeddings.word_embeddings.weight'\], unexpected nothing"),
            ({**state, "bert.extra": np.zeros(3)}, KeyError, r"missing nothing, unexpected \['bert.extra'\]"),
            ({**state, "bert.embeddings.layer_norm.bias": np.zeros(35)}, ValueError, r"bert.embeddings.layer_norm.bias has shape \(35,\)"),
            ({**state, "cls.predictions.decoder.bias": np.zeros(61, int)}, TypeError, "cls.predictions.decoder.bias holds int64"),
            (
                {**state, "cls.predictions.decoder.weight": np.zeros((61, 36))},
                ValueError,
                "tied in this model, but their values differ",
            ),
        ]
        for wrong, error, message in cases:
            with pytest.raises(error, match=message):
                model.load_state_dict(wrong)
            for name, array in model.state_dict().items():  # nothing was set
                np.testing.assert_array_equal(array, before[name])

    def test_not_strict(self):
        model, state = make(), make(seed=3).state_dict()
        before = model.bert.embeddings.word_embeddings.weight.numpy().copy()
        some = dict(list(state.items())[1:])
        model.load_state_dict({**some, "extra": np.zeros(2)}, strict=False)
        np.testing.assert_array_equal(model.bert.embeddings.word_embeddings.weight.numpy(), before)
        for name, array in some.items():
            np.testing.assert_array_equal(model.state_dict()[name], array)
        with pytest.raises(ValueError, match="has shape"):
            model.load_state_dict({"cls.predictions.decoder.bias": np.zeros(60)}, strict=False)

    def test_tied_values(self):
        """Both paths of a tied parameter may be there if they agree; the second alone sets it too."""
        model, state = make(), make(seed=3).state_dict()
        table = state["bert.embeddings.word_embeddings.weight"]
        model.load_state_dict({**state, "cls.predictions.decoder.weight": table.copy()})
        np.testing.assert_array_equal(model.cls.predictions.decoder.weight.numpy(), table)

    @pytest.mark.parametrize("dtype", [np.float64, np.float16])
    def test_other_floats_become_float32(self, dtype):
        model, state = make(), {name: array.astype(dtype) for name, array in make(seed=3).state_dict().items()}
        model.load_state_dict(state)
        for name, array in model.state_dict().items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, state[name].astype(np.float32))

    def test_values_are_copied(self):
        model, state = make(), {name: array.copy() for name, array in make(seed=3).state_dict().items()}
        model.load_state_dict(state)
        kept = {name: array.copy() for name, array in state.items()}
        for array in state.values():
            array[...] = 0
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array, kept[name])

    def test_assign(self):
        model = make()
        ids = ids_for(model, 2, 5)
        before = model(ids).numpy()
        for name, parameter in model.named_parameters():
            if name.startswith("bert.pooler") or "token_type" in name:
                continue
            version, values = parameter.version, parameter.numpy().copy()
            parameter.assign(values + np.linspace(-1, 1, values.size).reshape(values.shape))
            assert parameter.version > version
            if ".qkv." not in name:  # a shift of the key bias alone changes nothing
                assert not np.array_equal(model(ids).numpy(), before), name
            parameter.assign(values)
            np.testing.assert_array_equal(model(ids).numpy(), before)

    @pytest.mark.parametrize("kind", [BERT, BERTForMaskedLM])
    @pytest.mark.parametrize("tie_word_embedding", [True, False])
    def test_folder_round_trip(self, kind, tie_word_embedding, tmp_path):
        model = randomise(kind(small_config(tie_word_embedding=tie_word_embedding, hidden_act="gelu_new", layer_norm_eps=1e-6))).eval()
        model.save_pretrained(tmp_path / "folder")
        loaded = kind.from_pretrained(tmp_path / "folder")
        ids = ids_for(model, 3, 7)
        for got, wanted in zip(*(m(ids) if kind is BERT else (m(ids),) for m in (loaded, model)), strict=True):
            np.testing.assert_array_equal(got.numpy(), wanted.numpy())
        assert {**vars(loaded.config), "add_pooling_layer": None} == {**vars(model.config), "add_pooling_layer": None}
        for name, array in loaded.state_dict().items():
            np.testing.assert_array_equal(array, model.state_dict()[name])


class TestEmbeddings:
    def test_get(self):
        model = make()
        assert model.get_input_embeddings() is model.bert.embeddings.word_embeddings is model.bert.get_input_embeddings()
        assert model.get_output_embeddings() is model.cls.predictions.decoder
        assert model.bert.get_output_embeddings() is None
        assert model.bert.tie_weights() is None
        with pytest.raises(AttributeError, match="no output embeddings"):
            model.bert.set_output_embeddings(Linear(36, 61, normal(1)))

    def test_tied(self):
        model = make()
        table, decoder = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert table is decoder
        decoder.assign(np.full((61, 36), 0.5))
        assert (model.get_input_embeddings().weight.numpy() == 0.5).all()

    def test_untie(self):
        model = make()
        ids = ids_for(model, 2, 6)
        wanted, n_before = model(ids).numpy(), model.parameter_size
        model.untie_weights()
        assert not model.config.tie_word_embedding
        assert model.parameter_size == n_before + 61 * 36
        np.testing.assert_array_equal(model(ids).numpy(), wanted)
        check_against_reference(model, input_ids=ids)
        decoder = model.get_output_embeddings().weight
        decoder.assign(decoder.numpy() * 2)
        check_against_reference(model, input_ids=ids)
        model.tie_weights()
        assert model.config.tie_word_embedding
        assert model.parameter_size == n_before
        np.testing.assert_array_equal(model(ids).numpy(), wanted)

    def test_untied_decoder_keeps_its_values(self):
        """Untying copies the table as it is now, not as it will be when the decoder is first used."""
        model = make()
        table = model.get_input_embeddings().weight
        before = table.numpy().copy()
        model.untie_weights()
        table.assign(np.zeros_like(before))
        np.testing.assert_array_equal(model.get_output_embeddings().weight.numpy(), before)

    def test_models_of_one_config_do_not_meddle(self, tmp_path):
        config = small_config()
        first, second = BERTForMaskedLM(config), BERTForMaskedLM(config)
        first.untie_weights()
        assert second.config.tie_word_embedding
        assert not first.config.tie_word_embedding
        for name, model in (("first", first), ("second", second)):
            model.save_pretrained(tmp_path / name)
            assert BERTForMaskedLM.from_pretrained(tmp_path / name).config.tie_word_embedding == (name == "second")

    @pytest.mark.parametrize("tie_word_embedding", [True, False])
    def test_set_input_embeddings(self, tie_word_embedding):
        model = make(tie_word_embedding=tie_word_embedding)
        decoder_before = model.get_output_embeddings().weight
        ids = ids_for(model, 2, 6)
        model(ids)
        table = Embedding(61, 36, normal(0.3, seed=4))
        model.set_input_embeddings(table)
        assert model.get_input_embeddings() is table
        assert dict(model.named_parameters())["bert.embeddings.word_embeddings.weight"] is table.weight
        assert model.get_output_embeddings().weight is (table.weight if tie_word_embedding else decoder_before)
        check_against_reference(model, input_ids=ids)

    @pytest.mark.parametrize("tie_word_embedding", [True, False])
    def test_set_output_embeddings(self, tie_word_embedding, tmp_path):
        model = make(tie_word_embedding=tie_word_embedding)
        ids = ids_for(model, 2, 6)
        table_before = model.get_input_embeddings().weight.numpy().copy()
        decoder = Linear(36, 61, normal(0.3, seed=4))
        model.set_output_embeddings(decoder)
        assert model.get_output_embeddings() is decoder
        np.testing.assert_array_equal(model.get_input_embeddings().weight.numpy(), table_before)
        check_against_reference(model, input_ids=ids)
        # A decoder of its own is not tied, and what is saved says so: loading warns of nothing.
        assert not model.config.tie_word_embedding
        model.save_pretrained(tmp_path)
        np.testing.assert_array_equal(BERTForMaskedLM.from_pretrained(tmp_path)(ids).numpy(), model(ids).numpy())

    def test_set_wrong_ones(self):
        model = make()
        with pytest.raises(TypeError, match="input embeddings must be a Embedding, not Linear"):
            model.set_input_embeddings(Linear(36, 61, normal(1)))
        with pytest.raises(ValueError, match=r"input embeddings must have shape \(61, 36\), not \(60, 36\)"):
            model.set_input_embeddings(Embedding(60, 36, normal(1)))
        with pytest.raises(TypeError, match="output embeddings must be a Linear, not Embedding"):
            model.set_output_embeddings(Embedding(61, 36, normal(1)))
        with pytest.raises(ValueError, match=r"output embeddings must have shape \(61, 36\), not \(36, 61\)"):
            model.set_output_embeddings(Linear(61, 36, normal(1)))


class TestThreads:
    def test_two_python_threads_on_one_model(self):
        """Fresh models each time, so that initial values are drawn and weights packed by both at once."""
        ids = np.random.default_rng(6).integers(0, 400, (8, 20))
        mask = right_padded(20, 7, 13, 1, 20, 2, 11, 16)
        labels = np.where(mask == 1, ids, -100)

        def work(model: BERTForMaskedLM) -> tuple[bytes, ...]:
            return (
                model(ids, mask).numpy().tobytes(),
                model.get_loss(labels, ids, mask, reduction=None).numpy().tobytes(),
                model.predict_token_ids(ids, mask).numpy().tobytes(),
                *(array.tobytes() for array in model.state_dict().values()),
            )

        def untouched() -> BERTForMaskedLM:
            lucid.manual_seed(77)
            return BERTForMaskedLM(small_config(vocab_size=400)).eval()

        def assigned() -> BERTForMaskedLM:
            return make(seed=9, vocab_size=400)

        before = lucid.random.get_state()
        try:
            for fresh in (untouched, assigned):
                wanted = work(fresh())
                with ThreadPoolExecutor(2) as pool:
                    for _ in range(10):
                        model, barrier = fresh(), threading.Barrier(2)

                        def task(model: BERTForMaskedLM = model, barrier: threading.Barrier = barrier) -> tuple[bytes, ...]:
                            barrier.wait(timeout=30)
                            return work(model)

                        for future in [pool.submit(task) for _ in range(2)]:
                            assert future.result(timeout=60) == wanted
        finally:
            lucid.random.set_state(*before)

    def test_two_models_at_once(self):
        models = [make(seed=seed) for seed in (1, 2)]
        ids = ids_for(models[0], 6, 18)
        wanted = [model(ids).numpy() for model in models]
        with ThreadPoolExecutor(2) as pool:
            for _ in range(10):
                got = list(pool.map(lambda model: model(ids).numpy(), models))
                for a, b in zip(got, wanted, strict=True):
                    np.testing.assert_array_equal(a, b)
