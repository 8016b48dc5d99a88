"""The recipe of the built-in model: its stages fit together, its log is that of the model, and its first steps give the logged bits."""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from lucid.hub import BUILTIN, checkpoint_folder
from lucid.models.config_file import read_config
from lucid.training import PretrainOptions
from lucid.training.options import read_toml

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "builtin-en"
CORPUS = Path(os.environ.get("LUCID_CORPUS", ROOT.parent / "shared" / "corpus")).absolute()
STAGES = ("1-short", "2-middle", "3-long")
N_STEPS = 200


def log_of(stage: str) -> list[dict]:
    with lzma.open(RECIPE / "log" / f"{stage}.jsonl.xz", "rt") as file:
        return [json.loads(line) for line in file]


def losses(rows: list[dict]) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_stages_fit_together():
    stages = [PretrainOptions(**read_toml(RECIPE / f"{stage}.toml")) for stage in STAGES]
    for options in stages:
        options.check()
    assert [options.out for options in stages] == list(STAGES)
    assert [options.from_checkpoint for options in stages] == [None, "1-short/model", "2-middle/model"]
    assert stages[0].size == "config.json" and stages[-1].max_length == 128
    assert len({options.data for options in stages}) == len({options.cache for options in stages}) == 1
    script = (RECIPE / "train.sh").read_text()
    assert f"for stage in {' '.join(STAGES)}; do" in script


def test_the_model_is_of_the_recipes_shape():
    made, shipped = (read_config(folder, add_pooling_layer=False) for folder in (RECIPE, checkpoint_folder(BUILTIN)))
    for field in fields(made):
        assert getattr(made, field.name) == getattr(shipped, field.name), field.name


@pytest.mark.parametrize("stage", STAGES)
def test_the_log_is_whole(stage):
    rows = log_of(stage)
    n_steps = read_toml(RECIPE / f"{stage}.toml")["steps"]
    assert list(losses(rows)) == list(range(1, n_steps + 1))
    evaluations = [row for row in rows if "validation" in row]
    assert evaluations[-1]["step"] == n_steps
    before, after = (evaluations[i]["validation"]["perplexity"]["mean"] for i in (0, -1))
    assert after < before / 2


def test_the_log_is_that_of_the_model():
    """Its last figures are those of the card, but for the rounding to float16."""
    found = log_of("3-long")[-1]["validation"]
    card = (checkpoint_folder(BUILTIN) / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| this model |"))
    perplexity, accuracy = (float(cell.split()[0]) for cell in row.split("|")[2:4])
    assert perplexity == pytest.approx(found["perplexity"]["mean"], rel=0.005)
    assert accuracy == pytest.approx(found["accuracy"]["mean"], abs=0.002)


@pytest.mark.slow
@pytest.mark.skipif(
    not CORPUS.is_dir(), reason="the text of the recipe is not here: its folder is that which LUCID_CORPUS names, or ../shared/corpus"
)
def test_the_first_steps_give_the_logged_bits(tmp_path):
    (tmp_path / "corpus").symlink_to(CORPUS)
    for name in ("config.json", "1-short.toml"):
        shutil.copy(RECIPE / name, tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    lucid = [sys.executable, "-m", "lucid.cli"]
    tokenizer = [*lucid, "train-tokenizer", "corpus/train-*.txt.xz", "--vocab-size", "8000", "--out", "tokenizer"]
    subprocess.run(tokenizer, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "tokenizer" / "vocab.txt").read_bytes() == (checkpoint_folder(BUILTIN) / "vocab.txt").read_bytes()

    log = tmp_path / "1-short" / "log.jsonl"
    errors = tmp_path / "errors.txt"
    with errors.open("w") as file:
        process = subprocess.Popen([*lucid, "pretrain", "--config", "1-short.toml"], cwd=tmp_path, env=environment, stderr=file)
    end = time.monotonic() + 1800
    try:
        while process.poll() is None and not (log.exists() and len(log.read_bytes().splitlines()) > N_STEPS + 1):
            assert time.monotonic() < end, errors.read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM, errors.read_text()
    finally:
        process.kill()
        process.wait()
    found = losses([json.loads(line) for line in log.read_text().splitlines()])
    expected = losses(log_of("1-short"))
    assert [found[step] for step in range(1, N_STEPS + 1)] == [expected[step] for step in range(1, N_STEPS + 1)]
