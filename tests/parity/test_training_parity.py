"""Training beside transformers' BERT: loss, every gradient, weights after ten steps, the losses on the way; with dropout and without.

The reference draws lucid's masks: `torch.nn.functional.dropout` is replaced while it runs. A mask comes from Philox in NumPy, by
DESIGN.md's counter, so that both the place of each number and the numbers themselves are checked. Bounds are DESIGN.md's.
`pytest -rP` shows how close each case came.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradients.models import gradients_of, make_batch, make_model, relative

import lucid
from lucid import Tensor
from lucid.models import BERTForMaskedLM
from lucid.models.checkpoint import foreign_names
from lucid.optim import AdamW, Schedule, default_groups

torch = pytest.importorskip("torch", reason="torch is the reference; it is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is the reference; it is not installed")
from dropout_masks import Masks  # noqa: E402  (it needs torch)

Array = Any
MINI: dict[str, Any] = {"vocab_size": 5003, "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 1024}
DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
N_STEPS = 10


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    lucid.set_num_threads(1)
    yield
    torch.set_num_threads(n)
    lucid.set_num_threads(None)


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


# The reference


def reference_of(model: BERTForMaskedLM, folder: Path) -> Any:
    model.save_pretrained(folder)
    return transformers.BertForMaskedLM.from_pretrained(folder, attn_implementation="eager").train()


def reference_step(net: Any, model: BERTForMaskedLM, batch: dict[str, Array], seed: int, **inputs: Any) -> float:
    """Forward with lucid's masks and backward; return the loss."""
    masks = Masks(model.config, seed, batch["attention_mask"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "dropout", masks)
        loss = net(**{name: torch.from_numpy(array) for name, array in batch.items()}, **inputs).loss
        loss.backward()
    assert masks.n_calls == len(masks.purposes)
    return float(loss.detach())


def parts(path: str, array: Array) -> dict[str, Array]:
    """Give a parameter's array, or its gradient, by the names that the reference has for it."""
    names = foreign_names(path)
    return dict(zip(names, np.split(array, len(names)), strict=True))


def foreign(model: BERTForMaskedLM, arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: part for path, array in arrays.items() for name, part in parts(path, array).items()}


def named(net: Any) -> dict[str, Any]:
    """Give the reference's parameters; the decoder's bias, which may be there twice, under lucid's name for it."""
    found = dict(net.named_parameters())
    bias = found.pop("cls.predictions.bias", None)
    found.setdefault("cls.predictions.decoder.bias", bias)
    return found


def values_of(net: Any, what: str) -> dict[str, Array]:
    """Give `data` or `grad` of the reference's parameters."""
    return {name: getattr(p, what).numpy().copy() for name, p in named(net).items()}


def is_key_bias(name: str) -> bool:
    return name.endswith("attention.self.key.bias")


def assert_losses_agree(ours: float, theirs: float) -> None:
    assert abs(ours - theirs) <= 1e-5 + 1e-6 * abs(theirs), f"loss {ours}, the reference has {theirs}"


def assert_gradients_agree(model: BERTForMaskedLM, net: Any) -> None:
    got, want = foreign(model, gradients_of(model)), values_of(net, "grad")
    assert got.keys() == want.keys()
    errors = {name: relative(got[name], want[name]) for name in want if not is_key_bias(name)}
    worst = max(errors, key=lambda name: errors[name])
    print(f"worst gradient: {errors[worst]:.2e} of {worst}")
    assert errors[worst] <= 1e-4, worst
    for name in filter(is_key_bias, want):  # the softmax does not see a shift of all scores: the true gradient is 0
        share = float(np.linalg.norm(got[name]) / np.linalg.norm(got[name.replace(".key.", ".query.")]))
        print(f"key bias: {share:.2e} of the query bias")
        assert share <= 1e-6, name


# One step


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_step_of_bert_mini_with_dropout(is_tied: bool, tmp_path: Path) -> None:
    model = make_model(**MINI, **DROPOUT, tie_word_embedding=is_tied)
    batch = make_batch(model, 4, 64, has_holes=False)
    net = reference_of(model, tmp_path)
    loss = model.get_loss(**batch, seed=2**40 + 7)
    loss.backward()
    assert_losses_agree(float(loss), reference_step(net, model, batch, 2**40 + 7))
    assert_gradients_agree(model, net)


def test_the_masks_matter(tmp_path: Path) -> None:
    """With the masks of another seed the reference is somewhere else: the test above compares dropout, too."""
    model = make_model(**MINI, **DROPOUT)
    batch = make_batch(model, 2, 32)
    net = reference_of(model, tmp_path)
    loss = float(model.get_loss(**batch, seed=1))
    assert_losses_agree(loss, reference_step(net, model, batch, 1))
    assert abs(loss - reference_step(net, model, batch, 2)) > 1e-3


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_a_step_of_odd_sizes_without_dropout(activation: str, is_tied: bool, tmp_path: Path) -> None:
    """Heads 26 wide, 1021 words, feed-forward 1201; sequences of unequal length with holes."""
    model = make_model(hidden_act=activation, tie_word_embedding=is_tied)
    batch = make_batch(model)
    net = reference_of(model, tmp_path)
    loss = model.get_loss(**batch)
    loss.backward()
    assert_losses_agree(float(loss), reference_step(net, model, batch, 0))
    assert_gradients_agree(model, net)


def test_a_step_of_odd_sizes_with_much_dropout(tmp_path: Path) -> None:
    model = make_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.3)
    batch = make_batch(model)
    net = reference_of(model, tmp_path)
    loss = model.get_loss(**batch, seed=3)
    loss.backward()
    assert_losses_agree(float(loss), reference_step(net, model, batch, 3))
    assert_gradients_agree(model, net)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradient_of_inputs_embeds(mode: str, tmp_path: Path) -> None:
    model = make_model(**(DROPOUT if mode == "train" else {}))
    batch = make_batch(model)
    net = reference_of(model, tmp_path)
    getattr(model, mode)()
    values = model.get_input_embeddings().weight.array[batch.pop("input_ids")]
    ours, theirs = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    loss = model.get_loss(**batch, inputs_embeds=ours, seed=5)
    loss.backward()
    assert_losses_agree(float(loss), reference_step(net, model, batch, 5, inputs_embeds=theirs))
    assert relative(ours.grad, theirs.grad.numpy()) <= 1e-4
    if mode == "train":
        for p in net.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        assert_gradients_agree(model, net)


# Ten steps


def test_ten_steps_of_bert_mini_with_dropout(tmp_path: Path) -> None:
    """AdamW, clipping, warm-up and decay; two batches in turn, other masks in every step."""
    model = make_model(**MINI, **DROPOUT)
    net = reference_of(model, tmp_path)
    start = values_of(net, "data")
    optimizer = AdamW(model, lr=3e-4, weight_decay=0.01, max_grad_norm=1.0)
    schedule = Schedule(optimizer, 3, 12)
    twins = named(net)
    theirs = torch.optim.AdamW(
        [
            {"params": [twins[name] for path in group["params"] for name in foreign_names(path)], "weight_decay": group["weight_decay"]}
            for group in default_groups(model, 0.01)
        ],
        lr=3e-4,
    )
    losses = []
    for step in range(N_STEPS):
        batch = make_batch(model, 3, 24, seed=step % 2, p_label=0.5)
        model.zero_grad()
        loss = model.get_loss(**batch, seed=step)
        loss.backward()
        rate = schedule.step()
        norm = optimizer.step(loss, batch=step)
        theirs.zero_grad()
        losses.append((float(loss), reference_step(net, model, batch, step)))
        want = np.sqrt(sum(float(np.square(array.astype(np.float64)).sum()) for array in values_of(net, "grad").values()))
        assert norm == pytest.approx(want, rel=1e-5)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
    print("losses", [f"{a:.6f} {b - a:+.1e}" for a, b in losses])
    for ours, reference in losses:
        assert_losses_agree(ours, reference)
    assert losses[-1][0] < losses[1][0] - 0.2  # the same batch, after eight steps
    got, want = foreign(model, {path: p.numpy() for path, p in model.named_parameters()}), values_of(net, "data")
    weights = {name: relative(got[name], want[name]) for name in want if not is_key_bias(name)}
    moves = {name: relative(got[name] - start[name], want[name] - start[name]) for name in weights}
    worst = max(moves, key=lambda name: moves[name])
    print(f"worst weight: {max(weights.values()):.2e}; worst way from the start: {moves[worst]:.2e} of {worst}")
    assert max(weights.values()) <= 1e-4
    assert moves[worst] <= 1e-2
