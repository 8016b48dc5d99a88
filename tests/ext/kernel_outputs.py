"""What every kernel gives for fixed inputs, to compare one build of the kernels with another.

``python kernel_outputs.py NAME`` prints the SHA-256 of each kernel's outputs under the build of that name. The inputs are
made of exact operations only, so they are the same on every machine.
"""

import hashlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from lucid.ops.activation import ACTIVATIONS

Array = Any
WIDTHS = (1, 3, 15, 16, 17, 31, 48, 97, 768)  # around every number of lanes, and that of BERT-base
SEQUENCES = ((1,), (5, 1, 17), (3, 200, 0, 385))  # lengths; more than one block of keys, more than one of queries
HEADS = ((1, 1), (3, 7), (2, 64))  # number, width
SEED, STREAM = 0x0123456789ABCDEF, 0x02030004


class Inputs:
    """Numbers from a seed."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(20_190_524)

    def floats(self, *shape: int, scale: float = 1.0) -> Array:
        """Uniform in [-scale, scale)."""
        return ((2 * self.rng.random(shape) - 1) * scale).astype(np.float32)

    def ints(self, low: int, high: int, n: int) -> Array:
        return self.rng.integers(low, high, n).astype(np.int32)


def nothing(*shape: int) -> Array:
    """An array that shows what was not written."""
    return np.full(shape, np.float32(7e7))


def starts_of(lengths: tuple[int, ...]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


class Outputs:
    """One method for each kernel, of its name; it yields what every call writes: an array or several."""

    def __init__(self, kernels: ModuleType, n_threads: int = 2) -> None:
        self.kernels, self.n_threads = kernels, n_threads

    def __getitem__(self, name: str) -> list[tuple[Array, ...]]:
        return [written if isinstance(written, tuple) else (written,) for written in getattr(self, name)(Inputs())]

    @classmethod
    def names(cls) -> list[str]:
        return [name for name in vars(cls) if not name.startswith("_") and name != "names"]

    def _panels(self, n: int, k: int) -> Array:
        return nothing(-(-n // self.kernels.panel_width), k, self.kernels.panel_width)

    def _packed(self, weight: Array) -> Array:
        panels = self._panels(*weight.shape)
        self.kernels.pack_rows(weight, panels, self.n_threads)
        return panels

    def activation_forward(self, inputs: Inputs) -> Iterator[Any]:
        ends = np.array([0, -0.0, 1e-30, -1e-30, 87, -87, 88.5, -88.5, 1e30, -1e30, np.inf, -np.inf], np.float32)
        for activation in ACTIVATIONS.values():
            for n in (1, 31, 5000):
                x = np.concatenate([inputs.floats(n, scale=9), ends])
                y = nothing(*x.shape)
                self.kernels.activation_forward(x, y, activation, self.n_threads)
                yield y

    def activation_backward(self, inputs: Inputs) -> Iterator[Any]:
        for activation in ACTIVATIONS.values():
            for n in (1, 31, 5000):
                d_x = nothing(n)
                self.kernels.activation_backward(inputs.floats(n, scale=9), inputs.floats(n), d_x, activation, self.n_threads)
                yield d_x

    def gemm(self, inputs: Inputs) -> Iterator[Any]:
        for m in (1, 2, 3, 4, 5, 6, 7, 8, 9, 70):
            for n, k in ((1, 1), (25, 5), (49, 259), (97, 1537)):
                for activation in (0, ACTIVATIONS["gelu"]):
                    a, panels = inputs.floats(m, k), self._packed(inputs.floats(n, k))
                    for transpose, accumulate in ((False, False), (True, True)):
                        out = inputs.floats(m, n)
                        a_here = np.ascontiguousarray(a.T) if transpose else a
                        self.kernels.gemm(
                            a_here, panels, inputs.floats(n), inputs.floats(m, n), out, 0, activation, transpose, accumulate, self.n_threads
                        )
                        yield out
                first = min(n - 1, 13)
                out = nothing(m, n - first)
                self.kernels.gemm(a, panels, None, None, out, first, 0, False, False, self.n_threads)
                yield out

    def pack_rows(self, inputs: Inputs) -> Iterator[Any]:
        yield from self.unpack_rows(inputs)

    def unpack_rows(self, inputs: Inputs) -> Iterator[Any]:
        for n in WIDTHS:
            back = nothing(n, 19)
            self.kernels.unpack_rows(self._packed(inputs.floats(n, 19)), back, self.n_threads)
            yield back

    def pack_columns(self, inputs: Inputs) -> Iterator[Any]:
        for n in WIDTHS:
            panels = self._panels(n, 19)
            self.kernels.pack_columns(inputs.floats(19, n), panels, self.n_threads)
            yield panels.transpose(1, 0, 2).reshape(19, -1)[:, :n]

    def column_sum(self, inputs: Inputs) -> Iterator[Any]:
        for n in WIDTHS:
            out = nothing(n)
            self.kernels.column_sum(inputs.floats(70, n), out, self.n_threads)
            yield out

    def philox_block(self, inputs: Inputs) -> Iterator[Any]:
        yield np.array([self.kernels.philox_block(*map(int, inputs.ints(0, 1 << 30, 4)), SEED) for _ in range(9)], np.uint32)

    def dropout_forward(self, inputs: Inputs) -> Iterator[Any]:
        for n in WIDTHS:
            y = nothing(7, n)
            columns, examples = inputs.ints(0, 512, 7), inputs.ints(0, 99, 7)
            self.kernels.dropout_forward(inputs.floats(7, n), y, columns, examples, SEED, STREAM, 0.1, self.n_threads)
            yield y

    def layer_norm_forward(self, inputs: Inputs) -> Iterator[Any]:
        for n in WIDTHS:
            for residual in (None, inputs.floats(7, n)):
                y, total, mean, rstd = nothing(7, n), nothing(7, n), nothing(7), nothing(7)
                x = inputs.floats(7, n) + np.float32(0.25)
                self.kernels.layer_norm_forward(
                    x, residual, inputs.floats(n), inputs.floats(n), 1e-12, y, total, mean, rstd, self.n_threads
                )
                yield y, total, mean, rstd

    def layer_norm_backward(self, inputs: Inputs) -> Iterator[Any]:
        for n in WIDTHS:
            d_x, d_gain, d_bias = nothing(70, n), nothing(2, n), nothing(2, n)
            x, gain, mean, rstd, d_y = (
                inputs.floats(70, n),
                inputs.floats(n),
                inputs.floats(70),
                inputs.floats(70) + 2,
                inputs.floats(70, n),
            )
            self.kernels.layer_norm_backward(x, gain, mean, rstd, d_y, d_x, d_gain, d_bias, self.n_threads)
            yield d_x, d_gain, d_bias

    def embedding_forward(self, inputs: Inputs) -> Iterator[Any]:
        for n in WIDTHS:
            for is_packed in (False, True):
                words = inputs.floats(50, n)
                words = (self._packed(words) if is_packed else words).reshape(-1)
                y, total, mean, rstd = nothing(7, n), nothing(7, n), nothing(7), nothing(7)
                tables = (words, is_packed, inputs.ints(0, 50, 7), inputs.floats(9, n), inputs.ints(0, 9, 7), inputs.floats(2, n))
                norm = (inputs.ints(0, 2, 7), inputs.floats(n), inputs.floats(n), 1e-12)
                self.kernels.embedding_forward(*tables, *norm, y, total, mean, rstd, self.n_threads)
                yield y, total, mean, rstd

    def sum_segments(self, inputs: Inputs) -> Iterator[Any]:
        for n in WIDTHS:
            out = nothing(3, n)
            self.kernels.sum_segments(inputs.floats(30, n), inputs.ints(0, 30, 40), starts_of((11, 0, 29)), out, self.n_threads)
            yield out

    def attention_forward(self, inputs: Inputs) -> Iterator[Any]:
        for call in self._attention(inputs):
            yield call["out"], call["lse"]

    def attention_backward(self, inputs: Inputs) -> Iterator[Any]:
        for call in self._attention(inputs):
            gradients = [nothing(*operand.shape) for operand in call["operands"][:3]]
            d_out = inputs.floats(*call["out"].shape)
            self.kernels.attention_backward(*call["operands"], call["lse"], d_out, *gradients, *call["dropout"], self.n_threads)
            yield tuple(gradients)

    def _attention(self, inputs: Inputs) -> Iterator[dict[str, Any]]:
        for lengths in SEQUENCES:
            for n_heads, head_width in HEADS:
                for p in (0.0, 0.1):
                    for is_asked in (None, 7):  # of every query, or of at most so many of a sequence
                        n, width = sum(lengths), n_heads * head_width
                        asked = lengths if is_asked is None else tuple(min(length, is_asked) for length in lengths)
                        q, k, v = inputs.floats(sum(asked), width, scale=2), *(inputs.floats(n, width, scale=2) for _ in range(2))
                        query_starts, key_starts = starts_of(asked), starts_of(lengths)
                        columns = (inputs.ints(0, 512, sum(asked)), inputs.ints(0, 512, n))
                        dropout = (*columns, inputs.ints(0, 99, len(lengths)), SEED, STREAM, p)
                        out, lse = nothing(sum(asked), width), nothing(sum(asked), n_heads)
                        operands = (q, k, v, query_starts, key_starts, n_heads, 1 / np.sqrt(head_width))
                        self.kernels.attention_forward(*operands, out, lse, *dropout, self.n_threads)
                        yield {"operands": operands, "out": out, "lse": lse, "dropout": dropout}

    def encoder_forward(self, inputs: Inputs) -> Iterator[Any]:
        for lengths in SEQUENCES:
            for n_heads, head_width in HEADS:
                n, width, inner = sum(lengths), n_heads * head_width, 2 * n_heads * head_width + 1
                shapes = [(3 * width, width), (width, width), (inner, width), (width, inner)]
                layers = []
                for activation in (1, 3):
                    packed = [(self._packed(inputs.floats(*shape, scale=shape[1] ** -0.5)), inputs.floats(shape[0])) for shape in shapes]
                    to_qkv, dense, dense_in, dense_out = packed
                    norms = [(inputs.floats(width), inputs.floats(width), 1e-5) for _ in range(2)]
                    weights = (*to_qkv, *dense, *norms[0], *dense_in, *dense_out, *norms[1])
                    layers.append(self.kernels.EncoderLayer(n_heads, 1 / np.sqrt(head_width), activation, *weights))
                scratch, hidden = nothing(n * (width + max(4 * width, inner))), nothing(n, width)
                asked = tuple(min(length, 7) for length in lengths)
                starts, asked_starts = starts_of(lengths), starts_of(asked)
                rows = np.concatenate([np.arange(begin, begin + k, dtype=np.int32) for begin, k in zip(starts, asked, strict=False)])
                for of_last in ((None, None), (rows, asked_starts)):
                    out = nothing(n if of_last[0] is None else len(rows), width)
                    self.kernels.encoder_forward(layers, inputs.floats(n, width), starts, *of_last, scratch, hidden, out, self.n_threads, 0)
                    yield (out,)

    def cross_entropy_forward(self, inputs: Inputs) -> Iterator[Any]:
        for n in (*WIDTHS, 1021):
            losses, lse = nothing(7), nothing(7)
            labels = inputs.ints(0, n, 7)
            labels[3] = -100
            self.kernels.cross_entropy_forward(inputs.floats(7, n, scale=9), labels, losses, lse, self.n_threads)
            yield losses, lse

    def logit_sums(self, inputs: Inputs) -> Iterator[Any]:
        for first_word, n in ((0, 1), (384, 383), (0, 1021), (768, 384)):
            sums, label_logits = nothing(7, 5, 2), nothing(7)
            labels = inputs.ints(0, 1921, 7)
            labels[3] = first_word
            self.kernels.logit_sums(inputs.floats(7, n, scale=9), labels, first_word, sums, label_logits, self.n_threads)
            yield sums, label_logits

    def join_sums(self, inputs: Inputs) -> Iterator[Any]:
        for n_blocks in (1, 3, 80):
            sums, losses, lse = inputs.floats(7, n_blocks, 2, scale=9), inputs.floats(7), nothing(7)
            sums[:, :, 1] = 1 + np.abs(sums[:, :, 1])
            self.kernels.join_sums(sums, losses, lse)
            yield losses, lse

    def cross_entropy_backward(self, inputs: Inputs) -> Iterator[Any]:
        for n in (*WIDTHS, 1021):
            d_logits = nothing(7, n)
            logits, labels, lse = inputs.floats(7, n, scale=9), inputs.ints(0, n, 7), inputs.floats(7) + np.float32(15)
            d_losses = inputs.floats(7)
            for first in (0, n // 2):  # the word of the first column
                self.kernels.cross_entropy_backward(logits, labels, lse, d_losses, first, d_logits, self.n_threads)
                yield d_logits.copy()

    def decoder_cross_entropy_forward(self, inputs: Inputs) -> Iterator[Any]:
        for n_words in (1, 49, 1021):
            for bias in (None, inputs.floats(n_words)):
                losses, lse = nothing(70), nothing(70)
                x, panels, labels = inputs.floats(70, 97), self._packed(inputs.floats(n_words, 97)), inputs.ints(0, n_words, 70)
                self.kernels.decoder_cross_entropy_forward(x, panels, bias, labels, n_words, losses, lse, self.n_threads)
                yield losses, lse

    def decoder_top_k_forward(self, inputs: Inputs) -> Iterator[Any]:
        for n_words in (5, 49, 1021):
            values, lse, ids = nothing(70, 5), nothing(70), np.full((70, 5), -7, np.int32)
            x, panels = inputs.floats(70, 97), self._packed(inputs.floats(n_words, 97))
            self.kernels.decoder_top_k_forward(x, panels, inputs.floats(n_words), n_words, values, ids, lse, self.n_threads)
            yield values, ids, lse

    def mlm_mask_forward(self, inputs: Inputs) -> Iterator[Any]:
        n = 5000
        ids, may_mask = inputs.ints(0, 1021, n).astype(np.int64), (inputs.ints(0, 8, n) > 0).astype(np.uint8)
        masked, labels = np.full((2, n), -7, np.int64)
        special = np.array([0, 5, 100, 101, 102, 1020], np.int32)
        where = (inputs.ints(0, 512, n), inputs.ints(0, 99, n), special)
        numbers = (1021, 103, SEED, STREAM, 0.3, 0.8, 0.1, -100)
        self.kernels.mlm_mask_forward(ids, may_mask, *where, *numbers, masked, labels, self.n_threads)
        yield masked, labels

    def adamw_step(self, inputs: Inputs) -> Iterator[Any]:
        for n in (1, 31, 5000):
            weight, d_weight, m, v = inputs.floats(n), inputs.floats(n), inputs.floats(n), np.abs(inputs.floats(n))
            self.kernels.adamw_step(weight, d_weight, m, v, 1e-3, 0.9, 0.999, 1e-8, 0.01, 0.271, 0.003, 0.7, self.n_threads)
            yield weight, m, v

    def sum_of_squares(self, inputs: Inputs) -> Iterator[Any]:
        for n in (1, 31, 5000):
            yield np.float64(self.kernels.sum_of_squares(inputs.floats(n), self.n_threads))


def digest(calls: list[tuple[Array, ...]]) -> str:
    """SHA-256 of the bits of all arrays; every NaN counts as the same."""
    sha = hashlib.sha256()
    for array in (array for call in calls for array in call):
        if np.isnan(array).any():
            array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
        sha.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    outputs = Outputs(importlib.import_module(f"lucid._ext._kernels_{sys.argv[1]}"))
    for name in Outputs.names():
        print(f"{digest(outputs[name])}  {name}")
