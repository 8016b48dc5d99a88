"""Runs as people start, stop and resume them: what they leave behind, what they refuse, and how they end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import texts
from typer.testing import CliRunner

from lucid.cli import app
from lucid.errors import FormatError
from lucid.models import BERTForMaskedLM, BERTTokenizerFast
from lucid.optim import NonFiniteError
from lucid.sealed_folder import verify
from lucid.training import Checkpoints, PretrainOptions, checkpoint, loop, pretrain
from lucid.training.options import read_toml
from lucid.training.run import put_together

from .conftest import losses, weights

ROOT = Path(__file__).resolve().parents[2]


def flags(options: PretrainOptions, *names: str) -> list[str]:
    """Return options as the command line has them."""
    found = []
    for name, value in asdict(options).items():
        flag = {"from_checkpoint": "--from"}.get(name, f"--{name.replace('_', '-')}")
        if value != getattr(PretrainOptions(), name) and (not names or name in names):
            for each in value if isinstance(value, tuple) else [value]:
                found += [flag, str(each)]
    return found


def command(*arguments: object, **variables: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "lucid.cli", "pretrain", *map(str, arguments)],
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


class TestWhatARunLeaves:
    def test_its_folder(self, uninterrupted, options):
        names = {path.name for path in uninterrupted.iterdir()}
        assert names - {"curve.png"} == {"pretrain.toml", "log.jsonl", "lock", "checkpoints", "model"}
        records = losses(uninterrupted)
        assert [record["step"] for record in records if "loss" in record] == list(range(1, 17))
        evaluations = [record for record in records if "validation" in record]
        assert [record["step"] for record in evaluations] == [0, 4, 8, 12, 16]
        assert evaluations[-1]["validation"]["loss"]["mean"] < evaluations[0]["validation"]["loss"]["mean"]
        assert records[0]["step"] == 0 and "loss" in records[1]
        assert BERTForMaskedLM.from_pretrained(uninterrupted / "model").config.num_hidden_layers == 2

    def test_the_resolved_options(self, uninterrupted, materials):
        saved = PretrainOptions(**read_toml(uninterrupted / "pretrain.toml"))
        assert saved.steps == 16 and saved.lr == 1e-2 and saved.eval_every == 4 and saved.data == (str(materials / "train.txt"),)
        assert saved.resolved(16) == saved

    def test_the_best_is_kept(self, options, materials):
        """The rate is so high that the model soon gets worse."""
        pretrain(replace(options, validation=(str(materials / "validation.txt"),), eval_every=2, lr=0.3, keep=1, decay="constant"))
        out = Path(options.out)
        evaluations = {r["step"]: r["validation"]["loss"]["mean"] for r in losses(out) if "validation" in r and r["step"]}
        best = min(evaluations, key=evaluations.__getitem__)
        assert best != 16
        assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [f"step-{best:08}", "step-00000016"]
        assert verify(out / "checkpoints" / "step-00000016")["best"] == {"step": best, "loss": evaluations[best]}

    def test_the_curve(self, uninterrupted):
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        assert (uninterrupted / "curve.png").read_bytes().startswith(b"\x89PNG")

    def test_epochs(self, options):
        run = put_together(replace(options, steps=None, epochs=1.5))
        n = run.batches.n_batches(0) + 0.5 * run.batches.n_batches(1)
        assert run.options.steps == -(-n // 4) and run.options.epochs is None


class TestFromACheckpoint:
    def test_it_starts_where_the_checkpoint_is(self, options, uninterrupted):
        model = str(uninterrupted / "model")
        made = put_together(replace(options, size=None, tokenizer=None, from_checkpoint=model, lr=None))
        assert made.options.lr == 5e-5
        started, loaded = made.new_model(), BERTForMaskedLM.from_pretrained(model)
        assert all(np.array_equal(a, b) for a, b in zip(started.state_dict().values(), loaded.state_dict().values(), strict=True))
        changed = put_together(replace(options, size=None, tokenizer=None, from_checkpoint=model, dropout=0.3)).new_model()
        assert changed.config.hidden_dropout_prob == 0.3 and changed.bert.embeddings.dropout.p == 0.3
        assert all(np.array_equal(a, b) for a, b in zip(changed.state_dict().values(), loaded.state_dict().values(), strict=True))

    def test_another_vocabulary(self, options, uninterrupted, materials, tmp_path):
        BERTTokenizerFast(vocab=[*texts.VOCAB, "more"]).save_pretrained(tmp_path / "other")
        given = replace(options, size=None, from_checkpoint=str(uninterrupted / "model"), tokenizer=str(tmp_path / "other"))
        with pytest.raises(FormatError, match=r"gives other ids than the tokenizer that .* was trained with: leave out --tokenizer"):
            pretrain(given)
        assert put_together(replace(given, tokenizer=str(materials / "tokenizer"))).tokenizer.vocab_size == len(texts.VOCAB)
        bare = tmp_path / "bare"
        BERTForMaskedLM.from_pretrained(uninterrupted / "model").save_pretrained(bare)
        for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
            (bare / name).unlink()
        with pytest.raises(
            FormatError, match=rf"the tokenizer has {len(texts.VOCAB) + 1} words, the word table of .* {len(texts.VOCAB)} rows"
        ):
            pretrain(replace(given, from_checkpoint=str(bare)))
        with pytest.raises(FileNotFoundError, match="has no tokenizer: name the one"):
            pretrain(replace(given, from_checkpoint=str(bare), tokenizer=None))


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"data": ()}, "--data is missing"),
            ({"size": None}, "either --size"),
            ({"from_checkpoint": "x"}, "either --size"),
            ({"tokenizer": None}, "--size wants --tokenizer"),
            ({"epochs": 1.0}, "either --steps or --epochs"),
            ({"steps": None}, "either --steps or --epochs"),
            ({"steps": 0}, "--steps must be at least 1, not 0"),
            ({"batch_tokens": 20}, "--batch-tokens must be at least --max-length, 24, not 20"),
            ({"max_length": 3}, "--max-length must be at least 4"),
            ({"max_length": 33}, "--max-length 33 is more than the 32 positions of"),
            ({"lr": 0.0}, "--lr must be between 0 and 1, not 0.0"),
            ({"decay": "square"}, "--decay must be linear, cosine or constant, not square"),
            ({"masking": "letter"}, "masking must be one of"),
            ({"mask_share": 2.0}, "must lie in"),
            ({"size": "huge"}, "--size huge is neither one of tiny, mini, small, medium, base, large nor a config.json"),
            ({"tokenizer": "/nowhere/at/all"}, "/nowhere/at/all"),
            ({"data": ("nowhere.txt",)}, r"nowhere\.txt does not exist"),
            ({"validation": ("nowhere.txt",)}, r"nowhere\.txt does not exist"),
        ],
    )
    def test_options(self, options, change, match):
        if "batch_tokens" not in change and "max_length" in change:
            change = {**change, "batch_tokens": 64}
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            pretrain(replace(options, **change))
        assert not Path(options.out, "pretrain.toml").exists()

    @pytest.mark.parametrize("bad", ["empty", "endless", "binary", "single tokens"])
    def test_bad_data_leaves_nothing(self, options, tmp_path, bad):
        data = {"empty": b"", "endless": b"sun " * 300_000, "binary": b"\x7fELF\0", "single tokens": b"sun\n\nmoon\n"}[bad]
        (tmp_path / "bad.txt").write_bytes(data)
        with pytest.raises(FormatError):
            pretrain(replace(options, data=(str(tmp_path / "bad.txt"),)))
        assert not Path(options.out, "pretrain.toml").exists() and not Path(options.out, "checkpoints").exists()

    def test_a_folder_with_a_run(self, options):
        short = replace(options, steps=1)
        pretrain(short)
        with pytest.raises(FileExistsError, match="there is a run in this folder: --resume goes on with it"):
            pretrain(short)
        with pytest.raises(ValueError, match="the run began with another --lr, --mask-share: leave that out"):
            pretrain(replace(short, lr=0.5, mask_share=0.3), resume=True)
        assert pretrain(replace(short, threads=2, keep=7), resume=True).n_steps == 1

    def test_text_that_changed(self, options, tmp_path):
        path = texts.write(tmp_path / "own.txt", texts.documents(5, 20))
        given = replace(options, steps=2, data=(str(path),))
        pretrain(given)
        path.write_text(path.read_text() + "\nthe sun sees the moon.\n")
        with pytest.raises(FormatError, match="text or tokenizer changed since the run began"):
            pretrain(given, resume=True)

    def test_two_processes(self, options):
        Path(options.out).mkdir()
        with loop._locked(Path(options.out)), pytest.raises(FormatError, match="another process is training in this folder"):
            pretrain(options)


class TestNotFinite:
    def test_weights_and_checkpoints_stay(self, options, monkeypatch):
        """A NaN in the third batch of step 7: named, logged, and nothing is touched."""
        from lucid.training import trainer

        real, count = trainer.pack_batch, 0

        def poisoned(model, batch, seed=None):
            nonlocal count
            count += 1
            if count == 6 * 4 + 3:
                with model.bert.embeddings.layer_norm.bias.write() as bias:
                    bias[0] = np.nan
            return real(model, batch, seed)

        monkeypatch.setattr(trainer, "pack_batch", poisoned)
        with pytest.raises(
            NonFiniteError, match=r"the loss is nan in step 7, batch 3 of 4 \(examples \d+ to \d+ in the order of epoch 1\)"
        ):
            pretrain(replace(options, save_every=3))
        out = Path(options.out)
        assert losses(out)[-1]["step"] == 7 and "the loss is nan in step 7" in losses(out)[-1]["error"]
        assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-00000003", "step-00000006"]
        monkeypatch.undo()
        pretrain(replace(options, save_every=3), resume=True)
        assert [record["step"] for record in losses(out)] == list(range(1, 17))

    def test_a_gradient(self, options):
        run = put_together(options)
        trainer = run.trainer(run.new_model())
        for _ in range(3):
            trainer.advance()
        weight = trainer.model.bert.encoder.layer[0].attention.qkv.weight
        before = {name: array.tobytes() for name, array in trainer.model.state_dict().items()}
        weight.grad = np.full(weight.shape, np.inf, np.float32)
        with pytest.raises(
            NonFiniteError, match=r"the gradient of .*qkv\.weight is not finite in step 1, batch from example 0 of epoch 0 on"
        ):
            trainer.advance()
        assert {name: array.tobytes() for name, array in trainer.model.state_dict().items()} == before
        assert trainer.n_steps == 0 and not trainer.optimizer.state_dict()["m"]


class TestSaving:
    def test_a_full_disk_does_not_stop_training(self, options, uninterrupted, monkeypatch, capsys):
        real, n = checkpoint.seal, 0

        def refuses_twice(target):
            nonlocal n
            n += 1
            if n <= 2:
                raise OSError(28, "No space left on device", str(target))
            return real(target)

        monkeypatch.setattr(checkpoint, "seal", refuses_twice)
        pretrain(replace(options, save_every=4))
        out = Path(options.out)
        assert capsys.readouterr().err.count("No space left on device") == 2
        assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000012", "step-00000016"]
        assert weights(out / "model") == weights(uninterrupted / "model")

    def test_the_last_one_must_be_written(self, options, monkeypatch):
        def refuses(target):
            raise OSError(28, "No space left on device", str(target))

        monkeypatch.setattr(checkpoint, "seal", refuses)
        with pytest.raises(OSError, match="No space left"):
            pretrain(replace(options, steps=2))


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_stop_and_resume(self, options, uninterrupted, monkeypatch, number, capsys):
        """The signal comes within step 6: what is saved has three of its batches."""
        real, n = loop.Trainer.advance, 0

        def interrupted(self):
            nonlocal n
            n += 1
            if n == 5 * 4 + 3:
                signal.raise_signal(number)
            return real(self)

        before = signal.getsignal(number)
        with monkeypatch.context() as patch:
            patch.setattr(loop.Trainer, "advance", interrupted)
            outcome = pretrain(options)
        assert outcome.stopped_by == number and outcome.folder.name == "step-00000005-3" and signal.getsignal(number) == before
        assert "stopped after step 5 of 16, saved: --resume goes on from there" in capsys.readouterr().err
        assert pretrain(options, resume=True).n_steps == 16
        out = Path(options.out)
        assert weights(out / "model") == weights(uninterrupted / "model")
        assert losses(out) == [record for record in losses(uninterrupted) if "validation" not in record]

    def test_while_it_evaluates(self, options, materials, uninterrupted, monkeypatch):
        """An evaluation that was given up is made when the run goes on."""
        given = replace(options, validation=(str(materials / "validation.txt"),), eval_every=4, save_every=7)
        real = loop.evaluate

        def interrupted(model, batches, **settings):
            if Path(options.out, "checkpoints").exists():
                signal.raise_signal(signal.SIGTERM)
            return real(model, batches, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "evaluate", interrupted)
            assert pretrain(given).n_steps == 8
        pretrain(given, resume=True)
        assert losses(Path(options.out)) == losses(uninterrupted)

    def test_what_was_evaluated_is_not_evaluated_again(self, options, materials, uninterrupted):
        """All that came after the checkpoint of step 8, with its evaluation in it, is lost; the log ends as if nothing had been."""
        given = replace(options, validation=(str(materials / "validation.txt"),), eval_every=4, save_every=8, keep=9)
        pretrain(given)
        for folder in Path(options.out, "checkpoints").iterdir():
            if folder.name > "step-00000008":
                shutil.rmtree(folder)
        assert verify(Path(options.out, "checkpoints", "step-00000008"))["evaluated"] == 8
        pretrain(given, resume=True)
        assert losses(Path(options.out)) == losses(uninterrupted)

    def test_a_second_interrupt_ends_at_once(self):
        from lucid.training.signals import StopSignals

        with StopSignals() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop and stop.received == signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert stop.received == signal.SIGINT  # the first decides the exit code

    def test_the_command(self, options, uninterrupted):
        """SIGTERM to the process: a saved checkpoint, one line, exit code 143; the same command line with --resume ends the run."""
        arguments = [*flags(options), "--resume"]
        with command(*arguments) as process:
            deadline = time.monotonic() + 60
            while not (Path(options.out) / "log.jsonl").exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            error = process.communicate(timeout=60)[1]
        if process.returncode == 0:
            pytest.skip("the run was over before the signal came")
        assert process.returncode == 143 and "--resume goes on from there" in error and "Traceback" not in error
        with command(*arguments) as process:
            error = process.communicate(timeout=60)[1]
        assert process.returncode == 0 and error.endswith(f"lucid: 16 steps done: the model is in {options.out}/model\n")
        assert weights(Path(options.out) / "model") == weights(uninterrupted / "model")


def kill_and_resume(options: PretrainOptions, n_kills: int, most_steps: int) -> int:
    """Run the command again and again, each time with another number of threads, and kill it `n_kills` times.

    Every fourth time that is at any moment from the start of the process on; else some moments after it has come up to `most_steps`
    steps further.
    """
    rng, n_killed, log = np.random.default_rng(n_kills), 0, Path(options.out, "log.jsonl")

    def n_logged() -> int:
        return len(log.read_bytes().splitlines()) if log.exists() else 0

    for attempt in range(20 * n_kills):
        with command(*flags(replace(options, threads=1 + attempt % 3)), "--resume") as process:
            if n_killed < n_kills:
                deadline, before = time.monotonic() + (300 if attempt % 4 else float(rng.uniform(0, 2))), n_logged()
                wanted = before + int(rng.integers(0, most_steps + 1))
                has_begun = False
                while process.poll() is None and time.monotonic() < deadline:
                    has_begun = has_begun or n_logged() != before or before == 0
                    if has_begun and n_logged() >= wanted and attempt % 4:
                        time.sleep(float(rng.uniform(0, 0.1)))
                        break
                    time.sleep(0.002)
                process.kill()
            error = process.communicate(timeout=600)[1]
        assert process.returncode in (0, -signal.SIGKILL), error
        n_killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert process.returncode == 0 and not list(Path(options.out, "checkpoints").glob("tmp-*"))
    return n_killed


def test_killed_at_random_moments(options, uninterrupted):
    """SIGKILL at any moment from before the first file is written: the same bits in the end."""
    assert kill_and_resume(replace(options, save_every=1), 3, 3)
    assert weights(Path(options.out) / "model") == weights(uninterrupted / "model")
    assert losses(Path(options.out)) == [record for record in losses(uninterrupted) if "validation" not in record]


@pytest.mark.slow
def test_twenty_kills_of_a_run_of_200_steps(options, tmp_path):
    """128 wide, dropout, four batches a step: killed LUCID_KILLS (20) times, with 1, 2 and 3 threads in turn."""
    long = replace(options, size="tiny", steps=200, batch_tokens=256, lr=1e-3, save_every=3)
    with command(*flags(long)) as process:
        error = process.communicate(timeout=900)[1]
    assert process.returncode == 0, error
    killed, n_kills = replace(long, out=str(tmp_path / "killed")), int(os.environ.get("LUCID_KILLS", "20"))
    assert kill_and_resume(killed, n_kills, 10) == n_kills
    assert weights(Path(killed.out) / "model") == weights(Path(long.out) / "model")
    assert losses(Path(killed.out)) == losses(Path(long.out)) and len(losses(Path(long.out))) == 200


class TestCommandLine:
    def test_pretrain_evaluate(self, run, options, materials, tmp_path):
        (tmp_path / "options.toml").write_text('batch-tokens = 64\nlr = 1e-2\nfrom = "x"\nsteps = 99\n')
        result = run("pretrain", "--config", tmp_path / "options.toml", *flags(options))
        assert result.exit_code == 1 and "either --size" in result.stderr
        (tmp_path / "options.toml").write_text("batch-tokens = 64\nlr = 1e-2\nsteps = 99\n")
        names = ("data", "out", "cache", "size", "tokenizer", "max_length")
        result = run("pretrain", "--config", tmp_path / "options.toml", *flags(options, *names), "--steps", 3)  # the command line overrules
        assert result.exit_code == 0, result.output
        assert result.stderr.splitlines()[-1] == f"lucid: 3 steps done: the model is in {options.out}/model"
        assert read_toml(Path(options.out) / "pretrain.toml")["steps"] == 3
        result = run("evaluate", options.out, "--data", materials / "validation.txt", "--max-length", 24, "--json")
        found = json.loads(result.stdout)
        assert found["model"] == f"{options.out}/model" and found["n_examples"] > 15
        result = run("evaluate", f"{options.out}/model", "--data", materials / "validation.txt", "--max-length", 24)
        assert re.search(rf"perplexity  {found['perplexity']['mean']:.2f}  \(95 %: [\d.]+ to [\d.]+\)\n", result.stdout)

    def test_resume_wants_nothing_else(self, run, options):
        assert run("pretrain", *flags(options), "--steps", 2).exit_code == 0
        assert run("pretrain", "--out", options.out, "--resume").exit_code == 0
        result = run("pretrain", "--out", options.out, "--resume", "--seed", 3)
        assert result.exit_code == 1 and "the run began with another --seed" in result.stderr

    def test_resume_with_epochs(self, run, options):
        arguments = flags(replace(options, steps=None, epochs=1.0))
        assert run("pretrain", *arguments).exit_code == 0
        assert run("pretrain", *arguments, "--resume").exit_code == 0
        result = run("pretrain", *arguments, "--resume", "--epochs", 2)
        assert result.exit_code == 1 and "the run began with another --steps" in result.stderr

    def test_relative_paths_hold_anywhere(self, run, options, materials, tmp_path, monkeypatch):
        monkeypatch.chdir(materials)
        given = replace(options, data=("train.txt",), size="config.json", tokenizer="tokenizer", cache="cache", steps=2)
        assert run("pretrain", *flags(given)).exit_code == 0
        monkeypatch.chdir(tmp_path)
        assert run("pretrain", "--out", options.out, "--resume").exit_code == 0

    def test_dry_run(self, run, options):
        result = run("pretrain", *flags(options), "--dry-run")
        assert result.exit_code == 0, result.output
        rows = {line.split()[0]: line for line in result.stdout.splitlines()}
        assert list(rows) == ["text", "model", "run", "operations", "memory", "speed", "time"]
        assert "40 documents" in rows["text"] and "16 steps" in rows["run"]
        assert not Path(options.out, "pretrain.toml").exists() and not Path(options.out, "checkpoints").exists()

    def test_errors_are_one_line(self, run, options, tmp_path):
        (tmp_path / "bad.toml").write_text("lr = [1]\n")
        for arguments, match in (
            (["pretrain", "--out", tmp_path / "x"], "--data is missing: text to learn from"),
            (["pretrain", "--out", tmp_path / "x", "--resume"], "--data is missing"),
            (["pretrain", "--config", tmp_path / "bad.toml"], "lr must be float, not [1]"),
            (["pretrain", "--config", tmp_path / "none.toml"], "none.toml: No such file"),
            (["evaluate", tmp_path / "x", "--data", tmp_path / "bad.toml"], "is no folder"),
            (["evaluate", "x", "--data", tmp_path / "y"], "y does not exist"),
        ):
            result = run(*arguments)
            assert result.exit_code == 1 and match in result.stderr and result.stderr.count("\n") == 1, result.output

    def test_train_tokenizer(self, run, materials, tmp_path):
        arguments = ["train-tokenizer", materials / "train.txt", "--vocab-size", 60]
        result = run(*arguments, "--out", tmp_path / "one")
        assert result.exit_code == 0 and result.stdout == f"60 words in {tmp_path}/one\n"
        run(*arguments, "--out", tmp_path / "two")
        assert (tmp_path / "one" / "vocab.txt").read_bytes() == (tmp_path / "two" / "vocab.txt").read_bytes()
        tokenizer = BERTTokenizerFast.from_pretrained(tmp_path / "one")
        assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        assert tokenizer.tokenize("The SUN.") == tokenizer.tokenize("the sun.") and "[UNK]" not in tokenizer.tokenize("The SUN.")
        for more, match in (
            (["--out", tmp_path / "one"], "holds a tokenizer already"),
            (["--out", tmp_path / "three", "--vocab-size", 10], "a vocabulary of 10 does not hold them"),
        ):
            result = run(*arguments, *more)
            assert result.exit_code == 1 and match in result.stderr
        (tmp_path / "late.txt").write_bytes(b"a good line\n" * 10_000 + b"\xff\n")
        result = run("train-tokenizer", tmp_path / "late.txt", "--out", tmp_path / "four")
        assert result.exit_code == 1 and "line 10001 is not UTF-8" in result.stderr and not (tmp_path / "four").exists()
        assert run("train-tokenizer", materials / "train.txt", "--cased", "--out", tmp_path / "cased").exit_code == 0
        assert BERTTokenizerFast.from_pretrained(tmp_path / "cased").tokenize("The") != ["the"]
        result = run("train-tokenizer", materials / "train.txt", "--vocab-size", 60, "--out", tmp_path / "five")
        assert BERTTokenizerFast.from_pretrained(tmp_path / "five").fingerprint == tokenizer.fingerprint

    def test_help_teaches(self, run):
        for name in ("pretrain", "evaluate", "train-tokenizer"):
            result = run(name, "--help")
            assert result.exit_code == 0 and "For example" in result.stdout and f"lucid {name}" in result.stdout


def test_checkpoints_of_a_run_can_be_read_while_it_runs(options):
    pretrain(replace(options, steps=2))
    assert Checkpoints(Path(options.out) / "checkpoints").newest().facts["n_steps"] == 2
