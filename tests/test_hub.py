"""Checkpoints by hub name, from a cache made by hand, with the network forbidden."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lucid.hub import checkpoint_folder
from lucid.models import BERTConfig, BERTForMaskedLM, BERTTokenizerFast

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


def make_cache(cache: Path) -> BERTForMaskedLM:
    """Lay out one repository as the hub's library does: blobs, snapshots that link to them, and refs."""
    model = BERTForMaskedLM(BERTConfig.sized(1, 64, vocab_size=50, add_pooling_layer=False)).eval()
    model.tokenizer = BERTTokenizerFast(vocab=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat"])
    repository = cache / "models--someone--small-bert"
    saved = cache / "saved"
    model.save_pretrained(saved)
    (repository / "blobs").mkdir(parents=True)
    for commit in (COMMIT, OTHER_COMMIT):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for i, file in enumerate(sorted(saved.iterdir())):
            blob = repository / "blobs" / f"{i:040x}"
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "older").write_text(OTHER_COMMIT)
    return model


def run_offline(cache: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_loads_from_the_cache_offline(tmp_path: Path) -> None:
    model = make_cache(tmp_path)
    ids = [[2, 3, 4, 5]]
    code = f"""
import lucid.models as models
for options in ({{}}, {{"revision": "older"}}, {{"revision": {OTHER_COMMIT!r}}}):
    model = models.BERTForMaskedLM.from_pretrained("someone/small-bert", **options)
    print(model({ids}).numpy().tobytes().hex())
"""
    done = run_offline(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [model(ids).numpy().tobytes().hex()] * 3


def test_the_tokenizer_alone(tmp_path: Path) -> None:
    make_cache(tmp_path)
    code = """
from lucid.models import BERTTokenizerFast
for options in ({}, {"revision": "older"}):
    print(BERTTokenizerFast.from_pretrained("someone/small-bert", **options).encode("The cat sat"))
"""
    done = run_offline(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[2, 5, 6, 7, 3]"] * 2


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["fill-mask", "the [MASK] sat", "--json", "-m", "someone/small-bert"], '"masks"'),
        (["encode", "the cat", "--json", "-m", "someone/small-bert"], "[2, 5, 6, 3]"),
        (["info", "someone/small-bert"], "1 layers, 64 wide"),
    ],
)
def test_commands_take_names(tmp_path: Path, arguments: list[str], shown: str) -> None:
    make_cache(tmp_path)
    done = run_offline(tmp_path, f"from lucid.cli import app; app({arguments!r})")
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_what_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or str(tmp_path))
    assert checkpoint_folder("org/name", "main") == tmp_path
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        BERTTokenizerFast.from_pretrained("org/name")
    (_, whole), (_, tokenizer) = asked
    assert {"config.json", "model-*.safetensors", "vocab.txt", "added_tokens.json"} <= set(whole["allow_patterns"])
    assert {"vocab.txt", "tokenizer.json", "added_tokens.json"} <= set(tokenizer["allow_patterns"])
    assert not any("model" in pattern or "config.json" == pattern for pattern in tokenizer["allow_patterns"])


@pytest.mark.parametrize(
    ("name", "options"),
    [("someone/not-there", ""), ("not-there", ""), ("someone/small-bert", ", revision='no-such-branch'")],
)
def test_what_is_not_in_the_cache_is_one_clear_error(tmp_path: Path, name: str, options: str) -> None:
    make_cache(tmp_path)
    code = f"""
import lucid.models as models
try:
    models.BERTForMaskedLM.from_pretrained({name!r}{options})
except FileNotFoundError as error:
    print(error)
"""
    done = run_offline(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout and "HF_HUB_OFFLINE" in done.stdout


@pytest.mark.parametrize("name", ["", "a/b/c", "../escape", "/no/such/folder", "org/name with space", ".hidden/x"])
def test_what_is_no_name_is_no_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match="no folder"):
        checkpoint_folder(name or "no such/")


def test_a_folder_is_used_as_it_is_and_has_no_revision(tmp_path: Path) -> None:
    assert checkpoint_folder(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="revision"):
        checkpoint_folder(tmp_path, revision="main")
