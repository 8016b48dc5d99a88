"""What is said where the GPU has no room for a batch: in the encoder, in the head, on the way back; and the estimate of what fits."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpu.emulator import Emulator
from gpu.test_model import batch, model_of
from lucid._gpu import decoder as on_gpu
from lucid.device import DeviceMemoryError
from lucid.models import BERTConfig, BERTForMaskedLM
from lucid.models.bert.packing import TokenRows
from lucid.models.bert.room import bytes_of_logits, bytes_of_row, bytes_of_token, tokens_that_fit
from lucid.ops import decoder

NO_ROOM = (
    r"no room for this batch of 3 x 9, 20 tokens: Out of memory allocating [\d,]+ bytes.*about ([\d,]+) tokens at once may fit: give fewer"
)


def loss(model: BERTForMaskedLM) -> Any:
    return model.get_loss(**batch())


def losses(model: BERTForMaskedLM) -> Any:
    return model.get_loss(**batch(), reduction=None)


def guesses(model: BERTForMaskedLM) -> Any:
    inputs = batch()
    del inputs["labels"]
    return model.predict_token_ids(**inputs)


def logits(model: BERTForMaskedLM) -> Any:
    inputs = batch()
    del inputs["labels"]
    return model(**inputs)


def some_logits(model: BERTForMaskedLM) -> Any:
    inputs = batch()
    del inputs["labels"]
    packed = model.bert.pack(**inputs)
    return model.logits_of(packed, TokenRows(np.array([1, 12, 13], np.int32), np.array([0, 1, 1, 3], np.int32)), np.array([5, 6]))


def forget_gradients(model: BERTForMaskedLM) -> None:
    for p in model.parameters():
        p.grad = None


def bytes_taken(emulated: Emulator, call: Callable[[], Any]) -> int:
    before = emulated.xp.n_free
    call()
    return int(before - emulated.xp.n_free)


@pytest.mark.parametrize("call", [loss, losses, guesses, logits, some_logits])
@pytest.mark.parametrize("is_training", [False, True])
def test_no_room_going_forward(emulated: Emulator, is_training: bool, call: Callable[[BERTForMaskedLM], Any]) -> None:
    model = model_of().train(is_training).to("gpu", "bfloat16")
    call(model)  # types of the weights are made once
    whole = bytes_taken(emulated, lambda: call(model))
    is_recorded = is_training and call in (loss, losses, logits)
    held = model.parameter_size * (4 + 2 + (12 if is_recorded else 0))
    n_rows = {guesses: 20, logits: 20, some_logits: 3}.get(call, int((batch()["labels"] != -100).sum()))
    fits = tokens_that_fit(
        emulated.xp.n_bytes - held, model.config, 2, is_training=is_recorded, row_share=n_rows / 20, has_logits=call is logits
    )
    for n_free in (1000, whole - 1):
        emulated.xp.n_free = n_free
        with pytest.raises(DeviceMemoryError, match=NO_ROOM + (", and add gradients up" if is_recorded else "$")) as error:
            call(model)
        assert f"about {fits:,} tokens" in str(error.value)


@pytest.mark.parametrize("is_recomputed", [False, True])
@pytest.mark.parametrize("call", [loss, losses, logits])
def test_no_room_on_the_way_back(emulated: Emulator, call: Callable[[BERTForMaskedLM], Any], is_recomputed: bool) -> None:
    model = model_of().to("gpu")
    model.bert.encoder.is_recomputed = is_recomputed

    def back() -> Any:
        y = call(model) * 0.5  # what is last on the tape was not recorded by the model
        return lambda: y.backward(None if y.size == 1 else np.ones(y.shape, np.float32))

    whole = bytes_taken(emulated, back())
    advice = ", and add gradients up over several batches" + ("$" if is_recomputed else ", or let layers be recomputed$")
    for n_free in (0, whole - 1):
        emulated.xp.n_free = emulated.xp.n_bytes
        forget_gradients(model)
        y = back()
        emulated.xp.n_free = n_free
        with pytest.raises(DeviceMemoryError, match=NO_ROOM + advice):
            y()


def test_another_error_on_the_way_back_is_itself(emulated: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    y = loss(model_of().to("gpu"))
    monkeypatch.setattr("lucid.autograd._step_back", lambda *_: [][1])
    with pytest.raises(IndexError):
        y.backward()


def test_bytes_of_a_token() -> None:
    """BERT-base in bfloat16: what was estimated for 32,768 tokens, 9.7 GB, and a layer for what comes and goes."""
    config = BERTConfig.base()
    assert 9e9 < 32768 * bytes_of_token(config, 2, is_training=True) < 11e9
    assert bytes_of_token(config, 2, is_training=True, is_recomputed=True) < bytes_of_token(config, 2, is_training=True) / 4
    assert bytes_of_token(config, 2, is_training=False) < bytes_of_token(config, 2, is_training=True) / 10


def test_bytes_of_the_head() -> None:
    config = BERTConfig.base()
    assert decoder.ROWS_AT_ONCE == on_gpu.ROWS_AT_ONCE
    assert 1024 * bytes_of_logits(config, 2, is_training=False) == 1024 * 4 * 30522  # the 125 MB of the docs
    assert bytes_of_logits(config, 2, is_training=True) == 6 * 30522  # and gradients that go into products
    assert bytes_of_logits(config, 4, is_training=True) == 4 * 30522  # in the logits' place
    assert bytes_of_row(config, 2, is_training=True, has_logits=True) > 4 * 2 * 30522
    assert bytes_of_row(config, 2, is_training=True, has_logits=False) == 2 * 6 * 768


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("has_logits", [False, True])
@pytest.mark.parametrize("row_share", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("free", [1e6, 1e8, 1e9, 7e10])
def test_what_fits_is_the_most(free: float, row_share: float, has_logits: bool, is_training: bool) -> None:
    config, itemsize = BERTConfig.base(), 2

    def wanted(n: int) -> float:
        rows = row_share * n
        encoder = n * bytes_of_token(config, itemsize, is_training=is_training)
        head = rows * bytes_of_row(config, itemsize, is_training=is_training, has_logits=has_logits)
        if not has_logits:
            head += min(rows, 1024) * bytes_of_logits(config, itemsize, is_training=is_training)
        return encoder + head if is_training else max(encoder, head)

    n = tokens_that_fit(free, config, itemsize, is_training=is_training, row_share=row_share, has_logits=has_logits)
    assert wanted(n) <= free < wanted(n + 2)


def test_nothing_fits_where_the_model_does_not() -> None:
    assert tokens_that_fit(-1e9, BERTConfig.base(), 4, is_training=True, row_share=0.15) == 0


@pytest.mark.parametrize(("is_training", "share"), [(False, 0.05), (True, 0.05), (True, 1.0)])
def test_the_estimate_is_near_what_a_step_takes(emulated: Emulator, is_training: bool, share: float) -> None:
    """Arrays of the emulated GPU are NumPy's, whose peak Python can tell."""
    model = model_of(vocab_size=900, max_position_embeddings=128, hidden_size=32, intermediate_size=128, num_hidden_layers=6)
    model.train(is_training).to("gpu")
    rng = np.random.default_rng(4)
    ids = rng.integers(5, 900, (4, 128))
    labels = np.where(rng.random(ids.shape) < share, ids, -100)

    def step() -> None:
        y = model.get_loss(labels, ids)
        if is_training:
            y.backward()

    step()
    forget_gradients(model)
    tracemalloc.start()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    gradients = 4 * model.parameter_size if is_training else 0
    fits = tokens_that_fit(peak - gradients, model.config, 4, is_training=is_training, row_share=share)
    assert 0.75 * ids.size < fits < 1.25 * ids.size
