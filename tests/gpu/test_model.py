"""A whole model on the GPU beside the same on the CPU: it answers alike, learns alike, and goes back and forth."""

from typing import Any

import numpy as np
import pytest

import lucid
from gpu.emulator import DeviceArray, Emulator
from lucid.autograd import gradcheck
from lucid.models import BERT, BERTConfig, BERTForMaskedLM
from lucid.optim import AdamW, NonFiniteError
from lucid.tensor import Tensor

SIZES = {
    "vocab_size": 119,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 16,
}
ROWS, LENGTH = 3, 9
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}
"""Of a result relative to its largest number, and of a gradient relative to its norm."""


def model_of(seed: int = 3, **changes: Any) -> BERTForMaskedLM:
    lucid.manual_seed(seed)
    return BERTForMaskedLM(BERTConfig.base(**{**SIZES, **changes}))


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    ids = rng.integers(5, 119, (ROWS, LENGTH))
    mask = np.arange(LENGTH)[None] < np.array([9, 4, 7])[:, None]
    labels = np.where((rng.random(ids.shape) < 0.4) & mask, ids, -100)
    return {"labels": labels, "input_ids": np.where(rng.random(ids.shape) < 0.2, 4, ids), "attention_mask": mask.astype(np.int64)}


def near(got: Any, want: Any, tolerance: float) -> None:
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    assert np.abs(got - want).max() <= tolerance * max(1e-3, np.abs(want).max())


def near_norm(got: Any, want: Any, tolerance: float, floor: float) -> None:
    assert np.linalg.norm(got - want) <= tolerance * max(np.linalg.norm(want), floor)


def gradients_of(model: BERTForMaskedLM) -> dict[str, np.ndarray]:
    return {name: Tensor(p.grad).numpy() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_it_answers_alike(device: Any, dtype: str, activation: str) -> None:
    model = model_of(hidden_act=activation).eval()
    inputs = batch()
    labels = inputs.pop("labels")
    on_cpu = (
        model(**inputs, output_hidden_states=True, output_attentions=True),
        model.get_loss(labels, **inputs),
        model.get_loss(labels, **inputs, reduction=None),
    )
    ids, accuracy = model.predict_token_ids(**inputs), model.get_accuracy(labels, **inputs)
    model.to("gpu", dtype)
    assert model.device == "gpu"
    on_gpu = (
        model(**inputs, output_hidden_states=True, output_attentions=True),
        model.get_loss(labels, **inputs),
        model.get_loss(labels, **inputs, reduction=None),
    )
    assert on_gpu[0].logits.device == on_gpu[1].device == "gpu"
    assert on_gpu[1].dtype == on_gpu[2].dtype == np.float32
    tolerance = TOLERANCE[dtype]
    for got, want in zip(on_gpu[1:], on_cpu[1:], strict=True):
        near(got, want, tolerance)
    near(on_gpu[0].logits, on_cpu[0].logits, tolerance)
    for name in ("hidden_states", "attentions"):
        for got, want in zip(getattr(on_gpu[0], name), getattr(on_cpu[0], name), strict=True):
            near(got, want, tolerance)
    if dtype == "float32":
        assert np.array_equal(model.predict_token_ids(**inputs), ids)
        assert float(model.get_accuracy(labels, **inputs)) == float(accuracy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_its_gradients_are_alike(device: Any, dtype: str, is_recomputed: bool) -> None:
    """With dropout: the same numbers are dropped."""
    model = model_of()
    model.bert.encoder.is_recomputed = is_recomputed
    loss = model.get_loss(**batch(), seed=8)
    loss.backward()
    want = gradients_of(model)
    model.zero_grad()
    model.to("gpu", dtype)
    on_gpu = model.get_loss(**batch(), seed=8)
    near(on_gpu, loss, TOLERANCE[dtype])
    on_gpu.backward()
    got = gradients_of(model)
    assert got.keys() == want.keys()
    floor = 1e-2 * max(map(np.linalg.norm, want.values()))
    for name in want:
        assert got[name].dtype == np.float32
        near_norm(got[name], want[name], 10 * TOLERANCE[dtype] if dtype == "float32" else 5e-2, floor)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns_alike(device: Any, dtype: str) -> None:
    losses = {}
    for where in ("cpu", "gpu"):
        model = model_of()
        model.to(where, dtype if where == "gpu" else None)
        optimizer = AdamW(model, lr=1e-3, max_grad_norm=1.0)
        losses[where] = []
        for step in range(6):
            loss = model.get_loss(**batch(), seed=step)
            loss.backward()
            norm = optimizer.step(loss)
            optimizer.zero_grad()
            losses[where].append((float(loss), float(norm)))
        optimizer.settle()
    assert losses["gpu"][-1][0] < losses["gpu"][0][0] - 0.1
    assert np.allclose(losses["gpu"], losses["cpu"], rtol=1e-4 if dtype == "float32" else 3e-2)


def test_a_step_waits_for_nothing(emulated: Emulator) -> None:
    model = model_of().to("gpu", "bfloat16")
    optimizer = AdamW(model, lr=1e-3, max_grad_norm=1.0)
    inputs = batch()

    def step() -> None:
        loss = model.get_loss(**inputs, seed=1)
        loss.backward()
        optimizer.step(loss)
        optimizer.zero_grad()

    step()
    n = DeviceArray.n_reads
    step()  # it asks whether the one before was finite
    assert DeviceArray.n_reads == n


def test_a_step_that_is_not_finite_changes_nothing(device: Any) -> None:
    model = model_of().to("gpu")
    optimizer = AdamW(model, lr=1e-3)
    model.get_loss(**batch(), seed=1).backward()
    optimizer.step()
    state, before = optimizer.state_dict(), model.state_dict()
    for value in (np.nan, np.inf):
        model.bert.encoder.layer[0].attention.qkv.bias.grad[0] = value
        optimizer.step(batch=7)
        with pytest.raises(NonFiniteError, match=r"a gradient was not finite.*in step 2, batch 7: no weight was touched"):
            optimizer.settle()
        after = optimizer.state_dict()
        assert after["n_steps"] == state["n_steps"] == 1
        assert after["n_updates"] == state["n_updates"]
        for kind in ("m", "v"):
            assert all(np.array_equal(after[kind][name], state[kind][name]) for name in state[kind])
        assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())
    optimizer.step()
    with pytest.raises(NonFiniteError):  # at the latest, the next step says it
        optimizer.step()


def test_there_and_back(device: Any, tmp_path: Any) -> None:
    model = model_of().eval()
    before = {name: value.copy() for name, value in model.state_dict().items()}
    model.to("gpu", "bfloat16")
    assert all(p.array.dtype == np.float32 and not isinstance(p.array, np.ndarray) for p in model.parameters())
    assert {p.operand.dtype.name for p in model.parameters()} == {"bfloat16", "float32"}
    model.save_pretrained(tmp_path)
    loaded = BERTForMaskedLM.from_pretrained(tmp_path)
    for state in (loaded.state_dict(), model.state_dict(), model.to("cpu").state_dict()):
        assert all(np.array_equal(value, before[name]) for name, value in state.items())
    assert model.device == "cpu"
    model.get_loss(**batch())


def test_what_is_written_is_read(device: Any) -> None:
    model = model_of().eval().to("gpu", "bfloat16")
    weight = model.bert.encoder.layer[0].feed_forward.dense_in.weight
    first = weight.operand
    assert weight.operand is first
    weight.assign(np.full(weight.shape, 2.0))
    assert (Tensor(weight.operand).numpy().astype(np.float32) == 2).all()
    with weight.write() as array:
        array[...] = 3
    assert (Tensor(weight.operand).numpy().astype(np.float32) == 3).all()
    model.load_state_dict(model_of(5).state_dict())
    assert model.device == "gpu"


def test_the_optimizer_goes_on_elsewhere(device: Any) -> None:
    model = model_of()
    optimizer = AdamW(model, lr=1e-3)
    for where in ("cpu", "gpu", "cpu"):
        model.to(where)
        model.get_loss(**batch(), seed=2).backward()
        optimizer.step()
        optimizer.zero_grad()
    state = optimizer.state_dict()
    assert set(state["n_updates"].values()) == {3}
    other = AdamW(model_of().to("gpu"), lr=1e-3)
    other.load_state_dict(state)
    assert all(np.array_equal(value, state["m"][name]) for name, value in other.state_dict()["m"].items())


def test_gradcheck(device: Any) -> None:
    from lucid.autograd import apply
    from lucid.ops.layer_norm import layer_norm
    from lucid.ops.reshape import reshape
    from lucid.ops.total import total

    rng = np.random.default_rng(0)
    x, gain, bias = (Tensor(rng.standard_normal(s).astype(np.float32), device="gpu", requires_grad=True) for s in ((3, 8), 8, 8))

    def loss(*arrays: Tensor) -> Tensor:
        y = apply(layer_norm, *arrays, eps=1e-5)
        return apply(total, apply(reshape, apply(layer_norm, y, gain, bias, eps=1e-5), shape=(24,)), divisor=1.0)

    gradcheck(loss, x, gain, bias)


def test_vectors_in_place_of_words(device: Any) -> None:
    lucid.manual_seed(1)
    model = BERT(BERTConfig.base(**SIZES)).eval()
    vectors = np.random.default_rng(2).standard_normal((2, 5, 64)).astype(np.float32)
    want, pooled = model(inputs_embeds=vectors)
    model.to("gpu")
    on_gpu = Tensor(vectors, device="gpu", requires_grad=True)
    for given in (vectors, on_gpu):
        got, got_pooled = model(inputs_embeds=given)
        near(got, want, 1e-5)
        near(got_pooled, pooled, 1e-5)
    with pytest.raises(TypeError, match="inputs_embeds"):
        model(inputs_embeds=Tensor(vectors, requires_grad=True))


def test_tensors(device: Any) -> None:
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    x = Tensor(host, device="gpu")
    assert (x.device, x.shape, x.dtype) == ("gpu", (2, 3), np.float32)
    assert np.array_equal(x.numpy(), host)
    assert np.array_equal(np.asarray(x), host)
    assert np.array_equal(x.to("cpu").array, host)
    assert x.to("gpu") is x
    assert x[1].device == "gpu"
    assert x[1, 2].item() == 5
    assert x.tolist() == host.tolist()
    assert "device='gpu'" in repr(x)
    assert (x * 2).numpy().tolist() == (host * 2).tolist()
    assert x.to(np.float64).dtype == np.float64
    assert Tensor(x.array).device == "gpu"


def test_types_of_a_model(device: Any) -> None:
    model = model_of()
    with pytest.raises(ValueError, match="float32, not bfloat16"):
        model.to("cpu", "bfloat16")
    with pytest.raises(ValueError, match="dtype 'int8' is unknown"):
        model.to("gpu", "int8")
    assert model.device == "cpu"
    model.to("gpu", "float16").to("gpu")
    assert model.bert.encoder.layer[0].attention.qkv.weight.operand.dtype == np.float16  # as it was
    model.to("cpu").to("gpu")
    assert model.bert.encoder.layer[0].attention.qkv.weight.operand.dtype == np.float32


def test_status(emulated: Emulator) -> None:
    assert lucid.device.gpu_status() == "available: an emulated GPU"
