"""Stop a save before each of its system calls, or let the call fail, and look at what is left; prints a table as JSON.

    python tests/training/crash_points.py FOLDER

FOLDER gets everything. A child saves a checkpoint of step 2 beside one of step 1 and keeps one of them, while strace, attached to it,
kills it or makes one call fail. It is run once to see which calls there are, then once for each call and each way to fail.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import texts

from lucid.errors import FormatError
from lucid.sealed_folder import MANIFEST
from lucid.threads import set_num_threads
from lucid.training import Checkpoints, PretrainOptions, Trainer
from lucid.training.run import Run, put_together

SAVED, REFUSED, WRONG = 0, 3, 4
CALLS = "%file,%desc"


def make_run(folder: Path) -> Run:
    texts.write(folder / "train.txt", texts.documents(1, 40))
    texts.tokenizer().save_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps(sizes))
    options = PretrainOptions(
        data=(str(folder / "train.txt"),),
        out=str(folder / "run"),
        size=str(folder / "config.json"),
        tokenizer=str(folder / "tokenizer"),
        max_length=24,
        batch_tokens=64,
        steps=4,
        threads=1,
    )
    return put_together(replace(options, seed=1))


def save_in_child(trainer: Trainer, target: Path, inject: list[str], log: Path | None = None, n_bytes: int | None = None) -> int:
    """Save in a forked child under strace; return how it ended: an exit code, or minus a signal."""
    child = os.fork()
    if not child:
        signal.sigwait([signal.SIGUSR1])  # no call that may fail
        code = WRONG
        try:
            if n_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
            checkpoints = Checkpoints(target)
            checkpoints.save(trainer, {"corpus": "x"})
            code = SAVED
            checkpoints.keep(1)
        except OSError:
            code = code if code == SAVED else REFUSED
        except FormatError:
            code = REFUSED
        finally:
            os._exit(code)
    command = ["strace", "-f", "-p", str(child), "-e", f"trace={CALLS}", "-o", str(log or os.devnull), *inject]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        line = strace.stderr.readline()
        if "attached" not in line:
            os.kill(child, signal.SIGKILL)
            raise RuntimeError(f"strace cannot attach: {line}")
        os.kill(child, signal.SIGUSR1)
        status = os.waitpid(child, 0)[1]
        strace.communicate()
    return os.waitstatus_to_exitcode(status)


def calls_of(log: Path) -> Counter[str]:
    """Return how often each call was made between the word to go and the end."""
    names = re.findall(r"^\d+\s+(\w+)\(", log.read_text(), re.MULTILINE)
    return Counter(names)


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking: the child runs no kernel
    folder = Path(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    set_num_threads(1)
    run = make_run(folder)
    trainer = run.trainer(run.new_model())
    trainer.advance()
    before = Checkpoints(folder / "before")
    before.save(trainer, {"corpus": "x"})
    trainer.advance()
    reference = Checkpoints(folder / "reference").save(trainer, {"corpus": "x"})
    log = folder / "strace.log"
    target = folder / "target"

    results: dict[str, Counter[str]] = {}

    def attempt(way: str, inject: list[str], n_bytes: int | None = None) -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(before.folder, target)
        ended = save_in_child(trainer, target, inject, log, n_bytes)
        count = results.setdefault(way, Counter())
        count["points"] += 1
        checkpoints = Checkpoints(target)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = checkpoints.newest()
            except (FormatError, OSError):
                found = None
        step = None if found is None else found.facts["n_steps"]
        count["old" if step == 1 else "new" if step == 2 else "LOST"] += 1
        count["left a temporary folder"] += any(path.name.startswith("tmp-") for path in target.iterdir())
        count["killed" if ended == -signal.SIGKILL else {SAVED: "saved", REFUSED: "refused"}.get(ended, "WRONG END")] += 1
        # What is there must be what was meant to be, to the byte: the manifest holds the hash of every file.
        meant = {1: before.folder / "step-00000001", 2: reference}.get(step)
        same = meant is not None and (found.folder / MANIFEST).read_bytes() == (meant / MANIFEST).read_bytes()
        count["MIXED"] += bool(caught) or not same or (ended == SAVED and step != 2)
        checkpoints.sweep()
        names = {path.name for path in target.iterdir()}
        count["UNSWEPT"] += not names <= {"step-00000001", "step-00000002"}

    attempt("nothing", [])
    assert results["nothing"]["new"] == 1, results
    calls = calls_of(log)
    for name, n in sorted(calls.items()):
        for k in range(1, n + 1):
            attempt("SIGKILL", ["-e", f"inject={name}:signal=SIGKILL:when={k}"])
            for error in ("ENOSPC", "EIO", "EINTR"):
                attempt(error, ["-e", f"inject={name}:error={error}:when={k}"])
    for k in range(1, calls["write"] + 1):
        attempt("a write that wrote nothing, and says 1 byte", ["-e", f"inject=write:retval=1:when={k}"])
    largest = max(path.stat().st_size for path in (folder / "before").rglob("*"))
    for i in range(20):
        attempt("RLIMIT_FSIZE", [], largest * i // 20)
    print(json.dumps({"calls": calls, "results": results}))


if __name__ == "__main__":
    main()
