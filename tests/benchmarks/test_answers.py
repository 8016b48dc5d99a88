import numpy as np
import pytest

from benchmarks.answers import BOUNDS, WrongAnswerError, check
from benchmarks.workloads import TOP_K, Task


def log_probs(rng: np.random.Generator, n: int = 3, n_words: int = 50) -> np.ndarray:
    logits = rng.standard_normal((n, n_words))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def guesses(wanted: np.ndarray) -> dict[str, np.ndarray]:
    ids = np.argsort(-wanted, axis=1)[:, :TOP_K]
    return {"ids": ids, "scores": np.exp(np.take_along_axis(wanted, ids, axis=1))}


@pytest.mark.parametrize(("task", "name"), [(Task.LOGITS, "logits"), (Task.ENCODE, "hidden")])
def test_arrays_are_compared_everywhere(rng: np.random.Generator, task: Task, name: str) -> None:
    wanted = rng.standard_normal((2, 3, 4))
    off = wanted.copy()
    off[1, 2, 3] += 0.5 * BOUNDS[name] * np.abs(wanted).max()
    assert check(task, {name: off}, {name: wanted}) == pytest.approx(0.5)
    off[1, 2, 3] += 0.6 * BOUNDS[name] * np.abs(wanted).max()
    with pytest.raises(WrongAnswerError, match=name):
        check(task, {name: off}, {name: wanted})


def test_half_precision_is_refused(rng: np.random.Generator) -> None:
    wanted = rng.standard_normal((2, 3, 64)).astype(np.float32)
    check(Task.ENCODE, {"hidden": wanted * np.float32(1 + 1e-6)}, {"hidden": wanted})
    with pytest.raises(WrongAnswerError):
        check(Task.ENCODE, {"hidden": wanted.astype(np.float16)}, {"hidden": wanted})


def test_what_is_no_number_or_has_another_shape_is_refused(rng: np.random.Generator) -> None:
    wanted = rng.standard_normal((2, 3, 4))
    broken = wanted.copy()
    broken[0, 0, 0] = np.nan
    for answer in (broken, wanted[:1], wanted[..., :3]):
        with pytest.raises(WrongAnswerError):
            check(Task.LOGITS, {"logits": answer}, {"logits": wanted})


def test_nothing_to_compare_is_no_agreement() -> None:
    with pytest.raises(WrongAnswerError, match="nothing"):
        check(Task.LOSS, {"loss": 1.0}, {"other": 1.0})


@pytest.mark.parametrize(("name", "factor"), [("loss", 1 + 2e-5), ("gradient_norm", 1 + 2e-4), ("loss_with_dropout", 1.06)])
def test_each_number_of_a_step_has_its_bound(name: str, factor: float) -> None:
    wanted = {"loss": np.array(10.0), "gradient_norm": np.array(3.0), "loss_with_dropout": np.array(10.0)}
    within = {**wanted, name: wanted[name] * (1 + (factor - 1) / 4)}
    assert 0 < check(Task.TRAINING_STEP, within, wanted) < 1
    with pytest.raises(WrongAnswerError, match=name):
        check(Task.TRAINING_STEP, {**wanted, name: wanted[name] * factor}, wanted)


def test_guesses_by_scores(rng: np.random.Generator) -> None:
    wanted = log_probs(rng)
    answer = guesses(wanted)
    assert check(Task.FILL_MASKS, answer, {"log_probs": wanted}) < 1e-6


def test_words_as_likely_as_each_other_may_change_places(rng: np.random.Generator) -> None:
    wanted = log_probs(rng)
    order = np.argsort(-wanted, axis=1)
    wanted[0, order[0, 1]] = wanted[0, order[0, 0]]
    answer = guesses(wanted)
    answer["ids"][0, :2] = answer["ids"][0, 1::-1]
    assert check(Task.FILL_MASKS, answer, {"log_probs": wanted}) < 1e-6


def test_a_word_twice_is_refused_even_where_another_is_as_likely(rng: np.random.Generator) -> None:
    wanted = log_probs(rng)
    order = np.argsort(-wanted, axis=1)
    wanted[0, order[0, 1]] = wanted[0, order[0, 0]]
    answer = guesses(wanted)
    answer["ids"][0, 1] = answer["ids"][0, 0]
    with pytest.raises(WrongAnswerError, match="twice"):
        check(Task.FILL_MASKS, answer, {"log_probs": wanted})


def wrong_word(answer: dict) -> None:
    answer["ids"][1, 0] = answer["ids"][1, 4] + 1


def wrong_score(answer: dict) -> None:
    answer["scores"][2, 3] *= 1.01


def wrong_order(answer: dict) -> None:
    for values in answer.values():
        values[0, :2] = values[0, 1::-1].copy()


def next_best(answer: dict) -> None:
    answer["ids"][0, 4] = answer["ids"][0, 3]


def other_text(answer: dict) -> None:
    for values in answer.values():
        values[:] = values[[1, 0, 2]]


@pytest.mark.parametrize("damage", [wrong_word, wrong_score, wrong_order, next_best, other_text])
def test_wrong_guesses_are_refused(rng: np.random.Generator, damage) -> None:
    wanted = log_probs(rng)
    answer = guesses(wanted)
    damage(answer)
    with pytest.raises(WrongAnswerError):
        check(Task.FILL_MASKS, answer, {"log_probs": wanted})
