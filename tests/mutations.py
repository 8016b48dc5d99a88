"""Flip a sign, drop a term, forget a mask: for each, the tests named beside it must go red. Run in CI, not collected.

    python tests/mutations.py [words that a mutation's name must contain]

Every mutation is one replacement in one source line of a copy of the tree. The kernels are rebuilt for the instruction set in use
alone, without much optimisation, on two copies at a time. The exit status is 1 if a mutation survives, or if the list no longer fits
the sources.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parents[1]
N_COPIES = 2
OPS = "tests/gradients/test_ops.py"
TAPE = "tests/gradients/test_autograd.py"
OPTIM = "tests/optim"


@dataclass(frozen=True)
class Mutation:
    """`old` stands in the file once; `tests` is what pytest is to run."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(file: str, *tests: str, **changes: tuple[str, str]) -> list[Mutation]:
    stem = Path(file).stem
    return [Mutation(f"{stem}: {name.replace('_', ' ')}", file, old, new, tests) for name, (old, new) in changes.items()]


def op_tests(name: str) -> tuple[str, ...]:
    """The comparison with the float64 reference, for one op."""
    return OPS, "-k", f"reference and {name}"


MUTATIONS: list[Mutation] = [
    # Attention
    *_of(
        "lucid/_ext/attention.pyx",
        *op_tests("attention"),
        dq_zero=(
            "memcpy(d.d_q + (q0 + i) * d.q_stride + head * width, dq + i * wide,",
            "memset(d.d_q + (q0 + i) * d.q_stride + head * width, 0,",
        ),
        dk_zero=(
            "memcpy(d.d_k + (begin + i) * d.k_stride + head * width, dk + i * wide,",
            "memset(d.d_k + (begin + i) * d.k_stride + head * width, 0,",
        ),
        dv_zero=(
            "memcpy(d.d_v + (begin + i) * d.v_stride + head * width, dv + i * wide,",
            "memset(d.d_v + (begin + i) * d.v_stride + head * width, 0,",
        ),
        ds_sign=("dp_row[j] = call.scale * p_row[j]", "dp_row[j] = -call.scale * p_row[j]"),
        ds_without_the_scale=("dp_row[j] = call.scale * p_row[j]", "dp_row[j] = p_row[j]"),
        delta_sign=("(dp_row[j] - row_delta)", "(dp_row[j] + row_delta)"),
        delta_of_a_block_lost=("delta[i] += dot_row(p_row, dp_row, keys)", "delta[i] = dot_row(p_row, dp_row, keys)"),
        lse_sign=("-call.lse[(q0 + i) * call.n_heads + head]", "call.lse[(q0 + i) * call.n_heads + head]"),
        dp_without_the_mask=("dp_row[j] *= mask[i * KEY_BLOCK + j]", "dp_row[j] *= 1"),
        dv_without_the_mask=("mask[i * KEY_BLOCK + j] *= p_row[j]", "mask[i * KEY_BLOCK + j] = p_row[j]"),
        mask_of_other_keys=("call.key_columns + begin + k0", "call.key_columns + begin"),
        dq_of_the_last_keys_alone=("width - panel * PANEL, key_block > 0)", "width - panel * PANEL, False)"),
        forward_rescaling_sign=("alpha = exp1(m[i] - top)", "alpha = exp1(top - m[i])"),
        forward_lse_sign=("m[i] + logf(l[i])", "m[i] - logf(l[i])"),
        forward_mask_of_other_keys=("call.key_columns + key_begin + k0", "call.key_columns + key_begin"),
    ),
    # LayerNorm
    *_of(
        "lucid/_ext/layer_norm.pyx",
        *op_tests("layer_norm"),
        d_x_sign_of_the_mean=("dx[i] = r * (g - g_mean - normal * gn_mean)", "dx[i] = r * (g + g_mean - normal * gn_mean)"),
        d_x_sign_of_the_variance=("dx[i] = r * (g - g_mean - normal * gn_mean)", "dx[i] = r * (g - g_mean + normal * gn_mean)"),
        d_gain_sign=("d_gain[i] += dy[i] * normal", "d_gain[i] -= dy[i] * normal"),
        d_bias_sign=("d_bias[i] += dy[i]", "d_bias[i] -= dy[i]"),
        sum_of_a_tail_lost=("gn_lanes[j] += g * ((x[i] - mu) * r)", "gn_lanes[j] += 0"),
        last_row_of_a_block_lost=("min(n_rows, (block + 1) * NORM_ROWS)", "min(n_rows, (block + 1) * NORM_ROWS - 1)"),
        forward_sign=("y[i] = fma1((x[i] - mu) * r, gain[i], bias[i])", "y[i] = fma1((x[i] + mu) * r, gain[i], bias[i])"),
    ),
    # Activations
    *_of(
        "lucid/_ext/elementary.pyx",
        OPS,
        "-k",
        "slopes_over or (reference and activation)",
        gelu_slope=("exp_vector(set1(-0.5) * x * x)", "exp_vector(set1(-0.25) * x * x)"),
        gelu_slope_sign=("return fma(x, t, fma(set1(0.5)", "return fma(set1(0) - x, t, fma(set1(0.5)"),
        gelu_new_slope_sign=("fma(set1(0.134145), s, set1(1))", "fma(set1(-0.134145), s, set1(1))"),
        relu_slope=("choose(less(set1(0), x), set1(1), set1(0))", "choose(less(set1(0), x), set1(0), set1(1))"),
        silu_slope_sign=("return sigmoid_slope(x, x)", "return sigmoid_slope(x, set1(0) - x)"),
        sigmoid_side=("choose(less(x, set1(0)), e, s))", "choose(less(x, set1(0)), s, e))"),
        tanh_slope_sign=("return set1(1) - t * t", "return set1(1) + t * t"),
        sign_of_a_tail=("d_x[i] = d_y[i] * tail[i - whole]", "d_x[i] = -d_y[i] * tail[i - whole]"),
    ),
    # Products
    *_of(
        "lucid/_ext/gemm.pyx",
        *op_tests("linear"),
        bias_sum_sign=("totals[j] += x[i * stride + j]", "totals[j] -= x[i * stride + j]"),
        transposed_operand_sign=("y[j * y_stride + i] = x[i * x_stride + j]", "y[j * y_stride + i] = -x[i * x_stride + j]"),
        packed_columns_zero=(
            "memcpy(out + i * PANEL, b + i * stride, columns * sizeof(float))",
            "memset(out + i * PANEL, 0, columns * sizeof(float))",
        ),
        forward_chain_sign=("x0 = load(c) + x0", "x0 = load(c) - x0"),
    ),
    # Embedding
    *_of(
        "lucid/_ext/embedding.pyx",
        *op_tests("embedding"),
        sum_of_segments_out_of_order=("add_row(out, rows + index[i] * n, out, n)", "add_row(out, rows + i * n, out, n)"),
        first_token_of_a_segment_lost=(
            "    for i in range(n_rows):\n        add_row(out",
            "    for i in range(1, n_rows):\n        add_row(out",
        ),
    ),
    *_of(
        "lucid/ops/embedding.py",
        *op_tests("embedding"),
        tables_swapped=(
            "(positions.shape, position_ids), (types.shape, type_ids)",
            "(positions.shape, type_ids), (types.shape, position_ids % types.shape[0])",
        ),
    ),
    # Losses
    *_of(
        "lucid/_ext/cross_entropy.pyx",
        OPS,
        "-k",
        "reference and cross_entropy",
        label_sign=("d_x[label] -= 1", "d_x[label] += 1"),
        d_logits_sign=("d_x[i] *= d_loss", "d_x[i] *= -d_loss"),
        label_0_lost=("if 0 <= label < n:", "if 0 < label < n:"),
    ),
    *_of(
        "lucid/_ext/decoder.pyx",
        TAPE,
        "-k",
        "same_bits_with_a_tape or gradient_of_inputs",
        forward_sign=("(log_sum - losses[p])", "(log_sum + losses[p])"),
    ),
    *_of(
        "lucid/ops/decoder.py",
        *op_tests("decoder"),
        d_x_of_the_last_words_alone=("product(d, row_major[words], out=d_x)", "d_x = product(d, row_major[words])"),
        labels_of_the_first_words_alone=("np.ascontiguousarray(d_losses), begin, d,", "np.ascontiguousarray(d_losses), 0, d,"),
    ),
    *_of(
        "lucid/ops/total.py",
        OPS,
        "-k",
        "reference and (total or scale)",
        divisor=("np.float32(float(d_y) / divisor)", "np.float32(float(d_y) * divisor)"),
        factor=("np.asarray(d_y * np.float32(factor))", "np.asarray(d_y)"),
    ),
    # Linear, rows, dropout
    *_of(
        "lucid/ops/linear.py",
        *op_tests("linear"),
        residual_sign=("d_residual = d_y if has_residual", "d_residual = -d_y if has_residual"),
        columns_lost=(
            "d_weight = RowsGradient(rows, d_weight, weight.shape)",
            "d_weight = RowsGradient(slice(end - begin), d_weight, weight.shape)",
        ),
    ),
    *_of(
        "lucid/ops/layer_norm.py",
        *op_tests("layer_norm"),
        residual_sign=("return (d_x, d_gain, d_bias, d_x) if", "return (d_x, d_gain, d_bias, -d_x) if"),
    ),
    *_of("lucid/ops/rows.py", *op_tests("rows"), a_row_taken_twice=("np.add.at(d_x, rows, d_y)", "d_x[rows] = d_y")),
    *_of(
        "lucid/_ext/philox.pyx",
        OPS,
        "-k",
        "reference and dropout",
        kept_and_dropped_swapped=("words[element % 4] < threshold", "words[element % 4] >= threshold"),
        scale_lost=("else x[i] * scale", "else x[i]"),
        place_lost=("first_element + (columns[i] if columns is not NULL else i)", "(columns[i] if columns is not NULL else i)"),
    ),
    *_of(
        "lucid/ops/dropout.py", *op_tests("dropout"), mask_not_reused=("return (_forward(d_y, **saved, keep=False)[0],)", "return (d_y,)")
    ),
    # The optimizer
    *_of(
        "lucid/_ext/adamw.pyx",
        OPS,
        OPTIM,
        "-k",
        "adamw or squares or norm",
        m_sign=("fma1(a1, g, beta1 * m[i])", "fma1(-a1, g, beta1 * m[i])"),
        v_of_the_wrong_beta=("fma1(a2 * g, g, beta2 * v[i])", "fma1(a2 * g, g, beta1 * v[i])"),
        v_sign=("fma1(a2 * g, g, beta2 * v[i])", "fma1(-a2 * g, g, beta2 * v[i])"),
        weight_sign=("- rate * m[i]", "+ rate * m[i]"),
        decay_lost=("w[i] = keep * w[i]", "w[i] = w[i]"),
        scale_lost=("g = d_w[i] * scale", "g = d_w[i]"),
        norm_of_a_tail_lost=("        lanes[i % ROW_LANES] += value * value", "        lanes[i % ROW_LANES] += 0"),
    ),
    *_of(
        "lucid/optim/adamw.py",
        OPTIM,
        one_count_for_all=("step=moments.n_updates", "step=self.n_steps"),
        clipping_lost=("scale=scale", "scale=1.0"),
        a_nan_goes_through=("if not math.isfinite(norm):", "if False:"),
        the_loss_goes_through=("if loss is not None and not math.isfinite(float(loss)):", "if False:"),
        norms_decay=("id(parameter) in plain or name.endswith", "name.endswith"),
    ),
    *_of(
        "lucid/optim/schedule.py",
        OPTIM,
        warm_up_off_by_one=("return step / self.n_warmup", "return (step - 1) / self.n_warmup"),
        cosine_sign=("(1 + math.cos(", "(1 - math.cos("),
    ),
    *_of("lucid/optim/clip.py", OPTIM, factor_upside_down=("(max_norm / norm)", "(norm / max_norm)")),
    # The tape
    *_of(
        "lucid/autograd.py",
        TAPE,
        a_second_way_back_lost=("waiting[target] = waiting[target] + _dense(d_x)", "waiting[target] = _dense(d_x)"),
        used_twice=("self.backward, self.saved, self.targets, self.parameters = None, None, (), ()", "pass"),
        versions_not_looked_at=("if parameter.version != version:", "if False:"),
        frozen_versions_not_looked_at=(
            "for x in tensors if x is not None and hasattr",
            "for x in tensors if x is not None and x.requires_grad and hasattr",
        ),
        recomputed_versions_not_looked_at=("(x, *parameters))", "(x,))"),
        checked_too_late=("    for node in nodes:\n        node.check()\n", ""),
        no_grad_left_on=("_recording.is_on = _recording.before.pop()", "_recording.before.pop()"),
        no_grad_everywhere=("class _Recording(threading.local):", "class _Recording:"),
        gradient_shared_with_the_caller=("gradient = np.array(gradient, np.float32)", "gradient = np.asarray(gradient, np.float32)"),
    ),
    *_of(
        "lucid/tensor.py",
        TAPE,
        gradients_do_not_add_up=("self.grad = gradient if self.grad is None else self.grad + gradient", "self.grad = gradient"),
    ),
    *_of("lucid/ops/op.py", TAPE, rows_replace=("total[self.rows] += self.values", "total[self.rows] = self.values")),
]


def copy_of_the_tree(folder: Path) -> Path:
    """Copy what building and testing need; built files too, with their times, so that only what changes is built again."""
    shutil.copytree(ROOT / "lucid", folder / "lucid", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder / name)
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "LUCID_OPTIMIZE": "-O1"}
    environment |= {"LUCID_ISA": instruction_set(), "LUCID_BUILD_ONLY": instruction_set(), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def instruction_set() -> str:
    from lucid import _ext

    return _ext.instruction_set


def build(folder: Path) -> None:
    built = run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], folder)
    if built.returncode:
        raise RuntimeError(f"the mutated kernels do not build:\n{built.stderr[-2000:]}")


def test(folder: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests], folder)


@contextmanager
def changed(folder: Path, mutation: Mutation) -> Iterator[None]:
    """Apply a mutation, build it, and put sources and built kernels back."""
    path = folder / mutation.file
    touched = [path, *(folder / "lucid" / "_ext").glob(f"_kernels_{instruction_set()}.*.so")] if path.suffix == ".pyx" else [path]
    kept = {file: (file.read_bytes(), file.stat()) for file in touched}
    text = path.read_text()
    try:
        path.write_text(text.replace(mutation.old, mutation.new))
        if path.suffix == ".pyx":
            build(folder)
        yield
    finally:
        for file, (content, stat) in kept.items():
            file.unlink()  # the kernels' inode may be mapped by a process that is ending
            file.write_bytes(content)
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def try_one(mutation: Mutation, copies: Queue[Path]) -> tuple[Mutation, bool, str, float]:
    """Return whether the tests went red, what they said, and the seconds it took."""
    folder, begin = copies.get(), time.monotonic()
    try:
        with changed(folder, mutation):
            result = test(folder, mutation.tests)
        if result.returncode not in (0, 1) and result.returncode > 0:
            raise RuntimeError(f"pytest did not run the tests of {mutation.name}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
        found = re.search(r"^FAILED (?:tests/)?(\S+)", result.stdout, re.MULTILINE)
        said = found[1] if found else f"signal {-result.returncode}" if result.returncode < 0 else "nothing"
        return mutation, result.returncode != 0, said, time.monotonic() - begin
    finally:
        copies.put(folder)


def main(words: list[str]) -> int:
    wanted = [m for m in MUTATIONS if all(word in m.name for word in words)]
    wanted.sort(key=lambda m: not m.file.endswith(".pyx"))  # the slow ones first
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for n in range(N_COPIES):
            copies.put(copy_of_the_tree(Path(folder) / str(n)))
        for mutation in wanted:  # the list fits the sources
            path = ROOT / mutation.file
            if path.read_text().count(mutation.old) != 1:
                print(f"{mutation.file} holds {path.read_text().count(mutation.old)} times: {mutation.old}")
                return 1
        for copy in list(copies.queue):
            build(copy)
        for tests in dict.fromkeys(m.tests for m in wanted):
            result = test(copies.queue[0], tests)
            if result.returncode:
                print(f"red without any mutation: {' '.join(tests)}\n{result.stdout[-3000:]}{result.stderr[-1000:]}")
                return 1
        print(f"{len(wanted)} mutations; the tests are green without them", flush=True)
        n_survivors, begin = 0, time.monotonic()
        with ThreadPoolExecutor(N_COPIES) as pool:
            for mutation, is_red, said, seconds in pool.map(lambda m: try_one(m, copies), wanted):
                n_survivors += not is_red
                print(f"{'red     ' if is_red else 'SURVIVED'} {seconds:5.0f} s  {mutation.name:<60} {said}", flush=True)
    print(f"{len(wanted) - n_survivors} of {len(wanted)} mutations were noticed, in {time.monotonic() - begin:.0f} s")
    return 1 if n_survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
