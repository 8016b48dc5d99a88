"""A checkpoint that transformers wrote, and its answers as they were recorded: parity without torch.

`fixtures/make.py` made both.
"""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lucid.models import BERT, BERTForMaskedLM, BERTTokenizerFast
from lucid.optim import AdamW, Schedule

FIXTURES = Path(__file__).parent / "fixtures"
CASES = ("full", "padded", "holes", "positions", "embeds")
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return load_file(FIXTURES / "reference.safetensors")


@pytest.fixture(scope="module")
def model() -> BERTForMaskedLM:
    return BERTForMaskedLM.from_pretrained(FIXTURES)


@pytest.fixture(params=CASES)
def case(request, recorded) -> dict[str, np.ndarray]:
    return {name.split("/")[1]: array for name, array in recorded.items() if name.startswith(f"{request.param}/")}


def inputs_of(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: case[name] for name in INPUTS if name in case}


def real_cells(case: dict[str, np.ndarray]) -> np.ndarray:
    return case.get("attention_mask", np.ones_like(case["labels"])) == 1


def test_load_report(model):
    report = model.load_report
    assert report.n_loaded == len(dict(model.named_parameters()))
    assert report.is_tied
    assert (report.missing, report.unexpected) == ((), ())
    modules = ("bert.pooler.dense", "cls.seq_relationship")
    assert set(report.ignored) == {f"{name}.{kind}" for name in modules for kind in ("weight", "bias")}
    assert not model.training


def test_logits(model, case):
    got, wanted, is_real = model(**inputs_of(case)).numpy(), case["logits"], real_cells(case)
    assert got.dtype == np.float32
    assert got.shape == wanted.shape
    assert np.abs(got - wanted)[is_real].max() <= 4e-6 * max(5, np.abs(wanted[is_real]).max())
    assert not got[~is_real].any()


def test_arg_max(model, case):
    first, second = np.sort(case["logits"], axis=2)[:, :, :-3:-1].transpose(2, 0, 1)
    is_clear = real_cells(case) & (first - second > 1e-4)
    assert is_clear.sum() >= 8
    got = model.predict_token_ids(**inputs_of(case)).numpy()
    np.testing.assert_array_equal(got[is_clear], case["logits"].argmax(axis=2)[is_clear])


def test_losses(model, case):
    losses = model.get_loss(case["labels"], **inputs_of(case), reduction=None).numpy()
    np.testing.assert_allclose(losses, case["losses"], rtol=1e-6, atol=1e-5)
    n_labels = (case["labels"] != -100).sum()
    assert n_labels >= 4
    wanted = case["losses"].sum(dtype=np.float64)
    assert model.get_loss(case["labels"], **inputs_of(case)).item() == pytest.approx(wanted / n_labels, rel=1e-6, abs=1e-5)


def test_backbone(case):
    backbone = BERT.from_pretrained(FIXTURES)
    hidden, pooled = backbone(**inputs_of(case))
    is_real = real_cells(case)
    assert np.abs(hidden.numpy() - case["hidden"])[is_real].max() <= 1e-4 * np.abs(case["hidden"][is_real]).max()
    # transformers pools column 0, even where it is padding.
    starts_real = is_real[:, 0]
    assert starts_real.any()
    np.testing.assert_allclose(pooled.numpy()[starts_real], case["pooled"][starts_real], rtol=0, atol=1e-5)


def test_fill_mask(model, recorded):
    texts = ["The cat [MASK] on the road.", "[MASK] is a long river, and the dogs slept.", "An unhappy king was not [MASK]!"]
    assert isinstance(model.tokenizer, BERTTokenizerFast)
    fills = model.fill_mask(texts)
    assert [len(masks) for masks in fills] == [1, 1, 1]
    assert [[fill.token for fill in masks[0]] for masks in fills] == recorded["fill_mask/tokens"].tolist()
    np.testing.assert_allclose([[fill.score for fill in masks[0]] for masks in fills], recorded["fill_mask/scores"], rtol=0, atol=1e-5)


def test_ten_steps_of_training(model):
    """Dropout on, two batches in turn, AdamW, clipping, warm-up and decay: each loss, and the norm of each step's gradients."""
    recorded = load_file(FIXTURES / "training.safetensors")
    trained = BERTForMaskedLM.from_pretrained(FIXTURES).train()
    assert trained.config.hidden_dropout_prob == trained.config.attention_probs_dropout_prob == 0.1
    optimizer = AdamW(trained, lr=5e-3, weight_decay=0.01, max_grad_norm=1.0)
    schedule = Schedule(optimizer, n_warmup=3, n_steps=12)
    batches = [{name[2:]: array for name, array in recorded.items() if name.startswith(f"{i}/")} for i in (0, 1)]
    losses, norms = [], []
    for step in range(10):
        trained.zero_grad()
        loss = trained.get_loss(**batches[step % 2], seed=step)
        loss.backward()
        schedule.step()
        losses.append(loss.item())
        norms.append(optimizer.step(loss))
    wanted = recorded["losses"]
    assert np.abs(np.array(losses) - wanted).max() <= 1e-5 + 1e-6 * np.abs(wanted).max()
    np.testing.assert_allclose(norms, recorded["norms"], rtol=1e-4)
    assert wanted[8] < wanted[0] - 1  # the same batch, after eight steps
    assert (recorded["norms"] > 1).all()  # all were clipped
    got = model.get_loss(**batches[0]).item()
    assert abs(got - losses[0]) > 1e-3  # dropout was on
