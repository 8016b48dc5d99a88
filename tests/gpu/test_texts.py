"""The public surface on texts, with the model on the GPU: what it says is what the CPU says, and stays where the model is."""

import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest

import lucid
from lucid.models import BERT, BERTConfig, BERTForMaskedLM, BERTTokenizerFast
from lucid.tensor import Tensor

WORDS = "the a cat dog sat slept on mat is big ##s . ,".split()
VOCAB = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
SIZES = {"vocab_size": len(VOCAB), "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
TEXTS = ["the cat sat on the [MASK].", "a dog [MASK] on a big [MASK]."]


@pytest.fixture
def tokenizer() -> BERTTokenizerFast:
    return BERTTokenizerFast(vocab=VOCAB)


def pair() -> tuple[BERTForMaskedLM, BERTForMaskedLM]:
    """The same model twice, in eval mode: for the CPU, and on the GPU."""
    lucid.manual_seed(2)
    model = BERTForMaskedLM(BERTConfig.base(**SIZES, max_position_embeddings=16, initializer_range=0.2)).eval()
    model.special_token_ids = [0, 1, 2, 3, 4]
    return model, copy.deepcopy(model).to("gpu")


def test_losses_and_predictions(device: Any, tokenizer: BERTTokenizerFast) -> None:
    on_cpu, _ = pair()
    options = {"tokenizer": tokenizer, "text_a": "the cat sat on a mat", "text_b": "dogs slept", "seed": 5, "mlm_probability": 0.5}
    for reduction in ("mean", "sum", None):
        want = on_cpu.get_loss_from_text(**options, reduction=reduction).numpy()
        got = on_cpu.get_loss_from_text(**options, reduction=reduction, device="gpu")
        assert on_cpu.device == got.device == "gpu"
        assert np.allclose(got, want, rtol=1e-5, atol=1e-6)
        on_cpu.to("cpu")
    want = on_cpu.predict_token_ids_from_text(tokenizer, TEXTS)
    got = on_cpu.predict_token_ids_from_text(tokenizer, TEXTS, device="gpu")
    assert got.device == "gpu"
    assert np.array_equal(got, want)


@pytest.mark.parametrize("options", [{"top_k": 3}, {"targets": ["cat", "dogs"]}, {"joint": True, "top_k": 2}])
def test_fill_mask(device: Any, tokenizer: BERTTokenizerFast, options: dict[str, Any]) -> None:
    on_cpu, on_gpu = pair()
    want, got = (model.fill_mask(TEXTS, tokenizer=tokenizer, **options) for model in (on_cpu, on_gpu))

    def flat(value: Any) -> list[Any]:
        if dataclasses.is_dataclass(value):
            return flat([getattr(value, field.name) for field in dataclasses.fields(value)])
        return [x for inside in value for x in flat(inside)] if isinstance(value, (list, tuple)) else [value]

    assert any(isinstance(w, float) for w in flat(want))
    for g, w in zip(flat(got), flat(want), strict=True):
        assert g == (pytest.approx(w, rel=1e-4) if isinstance(w, float) else w)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_embed(device: Any, tokenizer: BERTTokenizerFast, pooling: str) -> None:
    lucid.manual_seed(2)
    model = BERT(BERTConfig.base(**SIZES, max_position_embeddings=16)).eval()
    want = model.embed(TEXTS, pooling, tokenizer=tokenizer, normalize=True)
    got = model.to("gpu").embed(TEXTS, pooling, tokenizer=tokenizer, normalize=True)
    assert got.device == "gpu"
    assert np.allclose(got, want, atol=1e-5)


def test_ids_may_be_on_the_gpu(device: Any) -> None:
    on_cpu, on_gpu = pair()
    ids = np.random.default_rng(0).integers(5, len(VOCAB), (2, 7))
    masked, labels = on_gpu.create_masked_lm_inputs(Tensor(ids, device="gpu"), mask_token_id=4, seed=3)
    want_masked, want_labels = on_cpu.create_masked_lm_inputs(ids, mask_token_id=4, seed=3)
    assert np.array_equal(masked, want_masked)
    assert np.array_equal(labels, want_labels)
    given = Tensor(masked, device="gpu")
    loss = on_gpu.get_loss(Tensor(labels, device="gpu"), given, attention_mask=Tensor(np.ones((2, 7)), device="gpu"))
    assert np.allclose(loss, on_cpu.get_loss(labels, masked), rtol=1e-5)
    assert np.array_equal(on_gpu.predict_token_ids(given.array), on_cpu.predict_token_ids(masked))


def test_tables_change_on_the_gpu(device: Any) -> None:
    _, model = pair()
    model.to("gpu", "bfloat16")
    model.resize_token_embeddings(len(VOCAB) + 3)
    model.untie_weights()
    assert {p.device for p in model.parameters()} == {"gpu"}
    assert model.cls.predictions.decoder.weight.operand.dtype.name == "bfloat16"
    assert model([[5, 6, 7]]).shape == (1, 3, len(VOCAB) + 3)
    assert model([[5, 6, 7]]).device == "gpu"


def test_copies(device: Any) -> None:
    """A deep copy is on the GPU too; by pickle, it is on the CPU: another process may have no GPU."""
    _, model = pair()
    for other, where in ((pickle.loads(pickle.dumps(model)), "cpu"), (copy.deepcopy(model), "gpu")):
        assert other.device == where
        assert other.cls.predictions.decoder.weight is other.bert.embeddings.word_embeddings.weight
        assert all(np.array_equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
