"""No input, however wrong, may crash the interpreter; and what is said of it helps.

The calls themselves are made up in bad_calls.py, which runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lucid
from lucid import models

V, C, P, TYPES = 50, 16, 9, 2
N_CALLS = int(os.environ.get("LUCID_BAD_CALLS", "2000"))


@pytest.fixture(scope="module")
def model() -> models.BERTForMaskedLM:
    config = models.BERTConfig.sized(
        2, C, vocab_size=V, num_attention_heads=2, intermediate_size=24, max_position_embeddings=P, type_vocab_size=TYPES, pad_token_id=0
    )
    model = models.BERTForMaskedLM(config).eval()
    model.tokenizer = models.BERTTokenizerFast(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sun"])
    return model


class TestAnything:
    def run(self, n_calls: int, seed: int) -> dict[str, Any]:
        """Make calls in another process; return its report, or fail with the call that killed it."""
        script = Path(__file__).parent / "bad_calls.py"
        # A process that hangs ends itself; this limit is for one that cannot.
        done = subprocess.run([sys.executable, script, str(n_calls), str(seed)], capture_output=True, text=True, timeout=120 + n_calls / 20)
        lines = done.stdout.splitlines()
        again = f"python tests/bad_calls.py 1 {seed} "
        if not lines or not lines[-1].startswith("{"):
            pytest.fail(f"the process ended with {done.returncode} in call {lines[-1:]}: {again}N repeats it\n{done.stderr[-5000:]}")
        assert done.returncode == 0, f"{again}N repeats call N:\n{done.stderr[:20000]}"
        report: dict[str, Any] = json.loads(lines[-1])
        return report

    def test_random_calls(self):
        report = self.run(N_CALLS, seed=1)
        assert report["failures"] == 0
        assert sum(report["outcomes"].values()) == report["calls"] == N_CALLS
        outcomes: dict[str, set[str]] = defaultdict(set)
        for name in report["outcomes"]:
            function, outcome = name.split()
            outcomes[function].add(outcome)
        # The calls are wrong in ways that matter only if each function refuses some and takes others.
        assert len(outcomes) >= 35
        for function, seen in outcomes.items():
            assert seen - {"returned"}, f"{function} refused nothing"
            assert "returned" in seen or function == "save_pretrained", f"{function} took nothing"
        n_returned = sum(n for name, n in report["outcomes"].items() if name.endswith("returned"))
        assert 0.2 < n_returned / N_CALLS < 0.8
        if "LUCID_BAD_CALLS" in os.environ:
            print(f"{N_CALLS} calls in {report['seconds']} s")

    def test_a_call_can_be_repeated(self):
        """The same call again, out of its run: so a failure can be looked at."""
        script = str(Path(__file__).parent / "bad_calls.py")
        reports = []
        for arguments in (("3", "7", "40"), ("1", "7", "40"), ("1", "7", "41"), ("1", "7", "42")):
            done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=120, check=True)
            lines = done.stdout.splitlines()
            assert lines[:-1] == [str(int(arguments[2]) + i) for i in range(int(arguments[0]))]
            reports.append(json.loads(lines[-1])["outcomes"])
        together: dict[str, int] = defaultdict(int)
        for report in reports[1:]:
            for name, n in report.items():
                together[name] += n
        assert together == reports[0]

    @pytest.mark.parametrize(
        ("damage", "what"),
        [
            ("numpy.flatnonzero = None", "TypeError"),  # is allowed: no failure, but nothing returns either
            ("lucid.models.bert.backbone.BERT.encode = lambda *a: (_ for _ in ()).throw(SystemError('x'))", "SystemError"),
            ("lucid.models.bert.backbone.BERT.encode = lambda *a: 1 / 0", "ZeroDivisionError"),
            ("lucid.models.bert.backbone.BERT.encode = lambda *a: a.nothing", "AttributeError"),
            ("lucid.ops.layer_norm.layer_norm.cpu.forward.__globals__['kernels'] = None", "AttributeError"),
            ("import ctypes; lucid.models.bert.backbone.BERT.encode = lambda *a: ctypes.string_at(0)", "Segmentation fault"),
            ("lucid.Tensor.numpy = lambda self: self.array * numpy.nan if self.array.dtype.kind == 'f' else self.array", "not finite"),
        ],
    )
    def test_damage_is_noticed(self, damage, what):
        """The run fails where lucid is broken: so it can fail."""
        code = f"import numpy, lucid.models, sys; {damage}\nsys.argv = ['bad_calls.py', '60', '5']; import runpy; runpy.run_path({SCRIPT!r}, run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode != 0
        assert what in done.stderr


SCRIPT = str(Path(__file__).parent / "bad_calls.py")
