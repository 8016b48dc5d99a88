"""The model that comes with lucid: what it is, how it is found, and what the command does without --model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import lucid.models as models
from lucid.cli import app
from lucid.hub import BUILTIN, checkpoint_folder
from lucid.text import BERTTokenizerFast

FOLDER = checkpoint_folder(BUILTIN)
MASKED = "The [MASK] rises in the east."


@pytest.fixture(scope="module")
def model() -> models.BERTForMaskedLM:
    return models.from_builtin()


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command in an empty folder, with no model in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LUCID_MODEL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_is_small_and_whole(model):
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt"} <= files.keys()
    assert sum(files.values()) <= 9e6
    assert {array.dtype for array in load_file(FOLDER / "model.safetensors").values()} == {np.dtype(np.float16)}
    assert not model.training and model.load_report.missing == model.load_report.unexpected == ()
    assert {parameter.dtype for parameter in model.parameters()} == {np.dtype(np.float32)}
    assert model.tokenizer.vocab_size == model.config.vocab_size == 8_000


def test_has_learnt_english(model):
    """It guesses what no frequency of words would: which noun, verb, number and preposition fit."""
    for text, right, wrong in (
        ("The president of the United [MASK] signed the law.", "states", "water"),
        ("He looked out of the [MASK] and saw the garden.", "window", "congress"),
        ("The children [MASK] playing in the garden.", "are", "is"),
        ("The child [MASK] playing in the garden.", "is", "are"),
        ("The patient was taken to the [MASK].", "hospital", "theory"),
        ("In the first chapter [MASK] the book", "of", "by"),
    ):
        best = model.fill_mask(text, targets=[right, wrong])[0][0]
        assert best.target == right, text
    assert model.fill_mask("She gave him the book, and he read [MASK].", top_k=3)[0][0].token_str in {"it", "him", "them", "her"}


def test_is_what_every_way_of_asking_gives(model, tmp_path, monkeypatch):
    fills = model.fill_mask(MASKED)
    assert models.BERTForMaskedLM.from_pretrained("builtin").fill_mask(MASKED) == fills
    assert BERTTokenizerFast.from_pretrained("builtin").fingerprint == model.tokenizer.fingerprint
    backbone = models.BERT.from_pretrained("builtin")
    np.testing.assert_array_equal(backbone.embed(["A text."]), model.bert.embed(["A text."]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin").mkdir()  # a folder of that name does not stand in for it
    assert checkpoint_folder("builtin") == FOLDER
    assert checkpoint_folder("./builtin") == Path("builtin")
    with pytest.raises(ValueError, match="a revision is for names on the hub"):
        models.BERTForMaskedLM.from_pretrained("builtin", revision="main")


def test_masks_with_its_own_mask_token(model):
    """It is not word 103, as in the released vocabularies."""
    ids = np.full((4, 50), model.tokenizer.convert_tokens_to_ids("sun"))
    masked, labels = model.create_masked_lm_inputs(ids, mlm_probability=1.0, mask_replace_prob=1.0, random_replace_prob=0.0, seed=0)
    assert (np.asarray(masked) == model.tokenizer.mask_token_id).all() and (np.asarray(labels) == ids).all()
    masked, _ = model.create_masked_lm_inputs(ids, mask_token_id=103, mlm_probability=1.0, mask_replace_prob=1.0, random_replace_prob=0.0)
    assert (np.asarray(masked) == model.tokenizer.mask_token_id).all()
    masked, _ = model.create_masked_lm_inputs(ids, mask_token_id=7, mlm_probability=1.0, mask_replace_prob=1.0, random_replace_prob=0.0)
    assert (np.asarray(masked) == 7).all()


class TestCommands:
    def test_fill_mask(self, run, model):
        result = run("fill-mask", MASKED, "--json")
        guesses = json.loads(result.stdout)["masks"][0]
        assert [guess["token_str"] for guess in guesses] == [fill.token_str for fill in model.fill_mask(MASKED)[0]]

    def test_info_encode_and_evaluate(self, run, model, tmp_path):
        facts = json.loads(run("info", "--json").stdout)
        assert facts["folder"] == str(FOLDER) and facts["problem"] is None
        assert json.loads(run("encode", "The sun.", "--json").stdout)["ids"] == model.tokenizer.encode("The sun.")
        Path("text.txt").write_text("The sun rises in the east, and the moon follows it through the night.\n" * 20)
        assert json.loads(run("evaluate", "--data", "text.txt", "--json").stdout)["model"] == str(FOLDER)

    def test_pretrain(self, run, tmp_path):
        Path("builtin").mkdir()  # a folder of that name does not stand in for it
        Path("text.txt").write_text("The sun rises in the east, and the moon follows it through the night.\n" * 20)
        result = run("pretrain", "--from", "builtin", "--data", "text.txt", "--steps", "2", "--batch-tokens", "256", "--out", "run")
        assert result.exit_code == 0, result.output
        words = models.BERTForMaskedLM.from_pretrained("run/model").fill_mask(MASKED)[0]
        for command in (["fill-mask", MASKED, "--json", "-m", "run"], ["info", "run", "--json"], ["encode", "a", "--json", "-m", "run"]):
            assert run(*command).exit_code == 0, command  # the folder of a run stands for its model
        result = run("pretrain", "--from", "run", "--data", "text.txt", "--steps", "1", "--batch-tokens", "256", "--out", "again")
        assert result.exit_code == 0 and f'from = "{tmp_path / "run" / "model"}"' in Path("again/pretrain.toml").read_text()
        guesses = json.loads(run("fill-mask", MASKED, "--json", "-m", "run").stdout)["masks"][0]
        assert [guess["score"] for guess in guesses] == [fill.score for fill in words]

    def test_the_environment_names_another(self, run, monkeypatch):
        monkeypatch.setenv("LUCID_MODEL", "./nowhere")
        for command in (["fill-mask", MASKED], ["info"], ["encode", "a"], ["evaluate", "--data", str(FOLDER / "config.json")]):
            result = run(*command)
            assert result.exit_code == 1 and "nowhere is no folder" in result.stderr, command

    def test_another_process_with_no_network(self, tmp_path):
        environment = {name: value for name, value in os.environ.items() if name != "LUCID_MODEL"} | {"HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-X", "importtime", "-m", "lucid.cli", "fill-mask", MASKED]
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")])
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and len(re.findall(r"^│", done.stdout, re.MULTILINE)) == 5
        assert "huggingface_hub" not in done.stderr  # nobody asked the hub


class TestHalfPrecisionFolders:
    def test_numbers_are_rounded_once(self, model, tmp_path):
        model.save_pretrained(tmp_path, dtype="float16")
        again = models.BERTForMaskedLM.from_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
        assert again.fill_mask(MASKED) == model.fill_mask(MASKED)  # they were float16 before
        assert (tmp_path / "model.safetensors").read_bytes() == (FOLDER / "model.safetensors").read_bytes()

    def test_what_does_not_fit_is_an_error(self, tmp_path):
        model = models.bert_for_masked_lm_tiny(vocab_size=100)
        weight = model.bert.embeddings.word_embeddings.weight
        values = weight.numpy().copy()
        values[3, 4] = 7e4
        weight.adopt(values)
        with pytest.raises(ValueError, match=r"word_embeddings\.weight holds 70000, which float16 has no room for: save in float32"):
            model.save_pretrained(tmp_path / "new", dtype="float16")
        assert not list((tmp_path / "new").iterdir())
        values[3, 4] = np.inf  # infinite before and after: nothing is lost
        weight.adopt(values)
        model.save_pretrained(tmp_path / "new", dtype="float16")

    def test_other_types_are_an_error(self, model, tmp_path):
        with pytest.raises(ValueError, match="dtype must be 'float32' or 'float16', not 'int8'"):
            model.save_pretrained(tmp_path / "new", dtype="int8")
        assert not (tmp_path / "new").exists()
