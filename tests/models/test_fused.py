"""The layers in one call: the bits of the modules one by one, and only where nobody can tell the difference."""

import copy
import gc
import os
import pickle
import signal
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lucid import Tensor, no_grad
from lucid.models import BERT, BERTConfig, BERTForMaskedLM
from lucid.models.bert import backbone
from lucid.models.bert.backbone import BERTEncoder
from lucid.nn import Linear, Module, Parameter, derived
from lucid.ops.linear import PackedWeight

N_LAYERS, WIDTH = 3, 52


def config(**changes: Any) -> BERTConfig:
    sizes = {"num_attention_heads": 4, "intermediate_size": 130, "vocab_size": 311, "max_position_embeddings": 160}
    return BERTConfig.sized(N_LAYERS, WIDTH, **{**sizes, **changes})


@pytest.fixture
def model() -> BERT:
    return BERT(config()).eval()


@pytest.fixture
def ids(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 311, (3, 145))


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the backbone applied each operation."""
    counts: Counter[str] = Counter()
    apply = backbone.apply

    def counted(op: Any, *inputs: Any, **params: Any) -> Any:
        counts[op.name] += 1
        return apply(op, *inputs, **params)

    monkeypatch.setattr(backbone, "apply", counted)
    return counts


def one_by_one(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Tensor]) -> bytes:
    with monkeypatch.context() as patch:
        patch.setattr(BERTEncoder, "_weights", lambda _: None)
        derived.changed()
        result = run().numpy().tobytes()
    derived.changed()
    return result


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("mask", ["none", "right", "holes", "an empty sequence"])
def test_the_bits_are_those_of_the_modules(
    act: str,
    mask: str,
    ids: np.ndarray,
    used: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    for_each_thread_count: Callable[..., list[Any]],
) -> None:
    model = BERT(config(hidden_act=act)).eval()
    kept = np.ones(ids.shape, int)
    if mask == "right":
        kept[0, 7:] = kept[2, 131:] = 0
    if mask == "holes":
        kept = rng.integers(0, 2, ids.shape)
    if mask == "an empty sequence":
        kept[1] = 0
    want = one_by_one(monkeypatch, lambda: model(ids, kept)[0])
    assert used["encoder"] == 0 < used["attention"]
    used.clear()
    for got in for_each_thread_count(lambda: model(ids, kept)[0].numpy().tobytes()):
        assert got == want
    assert used["encoder"] > 0 == used["attention"]


def test_a_masked_language_model_runs_its_last_layer_for_the_asked_rows(
    ids: np.ndarray, used: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for n_layers in (1, N_LAYERS):
        model = BERTForMaskedLM(config(num_hidden_layers=n_layers)).eval()
        labels = np.full(ids.shape, -100)
        labels[:, 3] = 5
        used.clear()
        got = model.get_loss(labels, ids).numpy().tobytes()
        assert used["encoder"] == 1
        assert used["attention"] == used["gather_rows"] == 0
        used.clear()
        assert got == one_by_one(monkeypatch, lambda model=model, labels=labels: model.get_loss(labels, ids))


def test_new_weights_are_seen(model: BERT, ids: np.ndarray, used: Counter[str]) -> None:
    before = model(ids)[0].numpy()
    weight = model.encoder.layer[1].feed_forward.dense_out.weight
    model.train()
    weight.assign(2 * weight.numpy())
    after = model.eval()(ids)[0].numpy()
    assert not np.array_equal(before, after)
    weight.assign(0.5 * weight.numpy())
    assert model(ids)[0].numpy().tobytes() == before.tobytes()
    with weight.write() as array:
        array *= 2
    assert model(ids)[0].numpy().tobytes() == after.tobytes()
    weight.adopt_packed(PackedWeight.pack(0.5 * weight.numpy()))
    assert model(ids)[0].numpy().tobytes() == before.tobytes()
    weight.adopt(2 * weight.numpy())
    assert model(ids)[0].numpy().tobytes() == after.tobytes()
    model.encoder.layer[0].attention.layer_norm.eps = 0.5
    assert model(ids)[0].numpy().tobytes() != after.tobytes()
    assert used["encoder"] == 7


def test_weights_are_taken_once(model: BERT, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    take = backbone.BERTLayer.weights
    monkeypatch.setattr(backbone.BERTLayer, "weights", lambda layer: made.append(layer) or take(layer))
    for _ in range(3):
        model(ids)
    assert len(made) == N_LAYERS


@pytest.mark.parametrize("how", ["train", "row_major", "assign", "adopt_packed", "load_state_dict", "delete"])
def test_old_panels_are_let_go(how: str, ids: np.ndarray) -> None:
    model = BERT(config()).eval()
    model(ids)
    dense = model.encoder.layer[1].feed_forward.dense_out
    panels = weakref.ref(dense.weight.packed().panels)
    assert panels() is not None
    if how == "train":
        model.train()(ids)
    if how == "row_major":
        dense.weight.row_major()
    if how == "adopt_packed":
        dense.weight.adopt_packed(PackedWeight.pack(dense.weight.numpy()))
    if how == "assign":
        dense.weight.assign(dense.weight.numpy())
    if how == "load_state_dict":
        model.load_state_dict(model.state_dict())
    if how == "delete":
        del model, dense
        gc.collect()
    assert panels() is None


def test_a_copy_has_weights_of_its_own(model: BERT, ids: np.ndarray) -> None:
    before = model(ids)[0].numpy()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert twin(ids)[0].numpy().tobytes() == before.tobytes()
    weight = twin.encoder.layer[0].attention.qkv.weight
    weight.assign(2 * weight.numpy())
    assert twin(ids)[0].numpy().tobytes() != before.tobytes()
    assert model(ids)[0].numpy().tobytes() == before.tobytes()


def test_what_was_made_while_something_changed_is_not_kept(model: BERT) -> None:
    made = iter("abc")

    def make() -> str:
        value = next(made)
        if value == "a":
            model.encoder.layer[0].attention.qkv.bias.assign(np.zeros(3 * WIDTH))
        return value

    assert [derived.derived(model, make) for _ in range(3)] == ["a", "b", "b"]


class Identity(Module):
    """A layer that does nothing."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


class Doubled(Linear):
    """Another module in a layer's place."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(Tensor(2 * x.array), **options)


@pytest.mark.parametrize(
    "why",
    [
        "train", "dropout alone", "another class", "another layer", "another forward", "another value", "a class's forward",
        "fewer heads", "no activation", "inner states", "gradient", "switched off",
    ],
)  # fmt: skip
def test_modules_run_one_by_one_where_that_makes_a_difference(
    why: str, model: BERT, used: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = model.encoder.layer[1]
    inputs: dict[str, Any] = {"input_ids": [[1, 2, 3]]}
    model(**inputs)
    assert used["encoder"] == 1
    used.clear()
    if why == "train":
        model.train()
    if why == "dropout alone":
        layer.feed_forward.dropout.train()
    if why == "another class":
        layer.attention.dense = Doubled(WIDTH, WIDTH, lambda shape: np.ones(shape, np.float32)).eval()
    if why == "another layer":
        model.encoder.layer[1] = Identity().eval()
    if why == "another forward":
        layer.feed_forward.forward = lambda hidden, batch: hidden
    if why == "another value":
        layer.attention.dense.value = lambda parameter, packed=False: parameter.numpy()
    if why == "a class's forward":
        forward = Linear.forward
        monkeypatch.setattr(Linear, "forward", lambda module, x, **options: forward(module, x, **options))
    if why == "fewer heads":
        layer.attention.qkv = Linear(WIDTH, 3 * WIDTH // 2, lambda shape: np.ones(shape, np.float32)).eval()
        layer.attention.dense = Linear(WIDTH // 2, WIDTH, lambda shape: np.ones(shape, np.float32)).eval()
        layer.attention.n_heads = 2
    if why == "no activation":
        layer.feed_forward.activation = None
    if why == "inner states":
        inputs["output_hidden_states"] = True
    if why == "gradient":
        inputs = {"inputs_embeds": Tensor(np.ones((1, 3, WIDTH), np.float32), requires_grad=True)}
    if why == "switched off":
        model.encoder.is_fused = False
    sequence = model(**inputs)[0]
    assert used["encoder"] == 0
    assert used["attention"] == N_LAYERS - (why == "another layer")
    if why == "gradient":
        sequence.backward(np.ones(sequence.shape, np.float32))
        assert inputs["inputs_embeds"].grad.any()
        with no_grad():
            model(**inputs)
        assert used["encoder"] == 1


def test_a_layer_that_was_taken_out_is_gone(model: BERT, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model([[1, 2, 3]])[0].numpy().tobytes()
    del model.encoder.layer[1]
    assert len(model.encoder.layer) == N_LAYERS - 1
    after = model([[1, 2, 3]])[0].numpy().tobytes()
    assert after != before
    assert after == one_by_one(monkeypatch, lambda: model([[1, 2, 3]])[0])


def test_a_deleted_override_is_gone(model: BERT, used: Counter[str]) -> None:
    dense = model.encoder.layer[1].attention.dense
    dense.forward = lambda x: x
    model([[1, 2, 3]])
    del dense.forward
    model([[1, 2, 3]])
    assert used["encoder"] == 1


def test_weights_that_do_not_agree_are_refused_as_by_the_modules(model: BERT) -> None:
    model.encoder.layer[1].feed_forward.dense_in.weight = Parameter((129, WIDTH), lambda shape: np.ones(shape, np.float32))
    with pytest.raises(ValueError, match=r"linear: bias must have shape \(129\)"):
        model([[1, 2, 3]])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_need_not_wait_for_a_thread_of_its_parent() -> None:
    """Forked while another thread is in the middle of a change."""
    is_inside, may_leave = threading.Event(), threading.Event()

    def change() -> None:
        with derived._lock:
            is_inside.set()
            may_leave.wait()

    thread = threading.Thread(target=change)
    thread.start()
    is_inside.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        derived.changed()
        os._exit(0)
    may_leave.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_signals_handler_may_change_a_module() -> None:
    with derived._lock:  # as within `changed`
        assert derived._lock.acquire(blocking=False)
        derived._lock.release()


def test_a_replaced_module_is_used(model: BERT) -> None:
    before = model([[1, 2, 3]])[0].numpy()
    layer = model.encoder.layer[1]
    values = {name: parameter.numpy() for name, parameter in layer.attention.dense.named_parameters()}
    layer.attention.dense = Doubled(WIDTH, WIDTH, lambda shape: np.zeros(shape, np.float32)).eval()
    layer.attention.dense.load_state_dict(values)
    assert not np.array_equal(model([[1, 2, 3]])[0].numpy(), before)
