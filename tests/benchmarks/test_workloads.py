from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import PEERS, chosen
from benchmarks.texts import FIRST_WORD, MASK, N_WORDS, vocabulary
from benchmarks.workloads import IGNORED, Case, Task, batches_by_length, find, mask_of, padded, workloads
from lucid.text import BERTTokenizerFast

CASES = [pytest.param(case, id=f"{w.name}-{case.label}") for is_quick in (False, True) for w in workloads(is_quick) for case in w.cases]


def test_the_vocabulary_is_berts_shape() -> None:
    words = vocabulary()
    assert len(words) == len(set(words)) == N_WORDS
    assert [words.index(special) for special in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 100, 101, 102, 103]
    assert all(word.isalpha() and len(word) >= 4 for word in words[FIRST_WORD:])


@pytest.mark.parametrize("case", CASES)
def test_a_text_has_the_tokens_that_its_case_says(case: Case) -> None:
    tokenizer = BERTTokenizerFast(vocab=vocabulary())
    rows = tokenizer.encode_batch(case.texts(), padding=False)["input_ids"]
    assert tuple(map(len, rows)) == case.lengths == tuple(map(len, case.rows()))
    assert all(row.count(MASK) == 1 and 100 not in row for row in rows)
    assert all(FIRST_WORD <= i < N_WORDS for row in case.rows() for i in row[1:-1])


@pytest.mark.parametrize("case", CASES)
def test_labels_are_15_per_cent(case: Case) -> None:
    labels = np.concatenate(case.labels())
    assert tuple(map(len, case.labels())) == case.lengths
    n_labelled = (labels != IGNORED).sum()
    assert n_labelled == round(0.15 * case.n_tokens)
    if case.task in (Task.LOSS, Task.TRAINING_STEP):
        assert case.n_asked == n_labelled


@pytest.mark.parametrize(
    ("name", "label", "gflops"),
    # Published beside the floors: 1129, 885, 1914 ms at 202 GFLOP/s; three times forward for a step.
    [("W1", "8x128", 228.0), ("W2", "8x128", 178.8), ("W2", "4x512", 386.6), ("W5", "8x128", 558.4)],
)
def test_operations(name: str, label: str, gflops: float) -> None:
    assert find(name, label, is_quick=False).flops("base") / 1e9 == pytest.approx(gflops, rel=2e-3)


def test_padding_and_batches() -> None:
    rows = [[5, 6, 7], [8], [9, 1]]
    assert padded(rows, -1).tolist() == [[5, 6, 7], [8, -1, -1], [9, 1, -1]]
    assert mask_of(rows).tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batches_by_length(rows, 2) == [[1, 2], [0]]


def test_every_peer_has_a_file_and_workloads_that_exist() -> None:
    names = {one.name for one in workloads()}
    for one in PEERS:
        assert (Path(__file__).parents[2] / "benchmarks" / "peers" / f"{one.module}.py").exists()
        assert set(one.workloads) <= names
    assert {name for one in PEERS if one.name == "lucid" for name in one.workloads} == names


def test_peers_are_chosen_by_name() -> None:
    assert [one.name for one in chosen(["openvino"], is_quick=False)] == ["lucid", "openvino"]
    assert [one.name for one in chosen(None, is_quick=True)] == ["lucid", "numpy"]
    assert "torch-compile" not in [one.name for one in chosen(None, is_quick=False)]
    with pytest.raises(KeyError, match="no peer 'tensorflow'"):
        chosen(["tensorflow"], is_quick=False)
