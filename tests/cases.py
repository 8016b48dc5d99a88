"""The case table: for every op the calls that tests (and benchmarks) make, its reference and the bound of its error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import reference

from lucid.ops.activation import activation
from lucid.ops.attention import AttentionDropout, attention
from lucid.ops.attention_map import attention_map
from lucid.ops.cross_entropy import cross_entropy
from lucid.ops.decoder import decoder_cross_entropy, decoder_loss, decoder_top_k
from lucid.ops.dropout import dropout
from lucid.ops.embedding import embedding
from lucid.ops.encoder import LayerWeights, encoder
from lucid.ops.layer_norm import layer_norm
from lucid.ops.linear import PackedWeight, linear
from lucid.ops.mlm_mask import mlm_mask
from lucid.ops.op import Op
from lucid.ops.reshape import reshape
from lucid.ops.rows import gather_rows, scatter_rows
from lucid.ops.total import scale, total
from lucid.random import Purpose, stream

Array = Any
Rng = np.random.Generator

ROWS = (1, 5, 6, 7, 129)
"""Numbers of rows that meet every tile height of the product, and more than one block of rows."""


# The table


def exact(*_: Any, **__: Any) -> float:
    return 0.0


@dataclass(frozen=True)
class Call:
    """The arguments of one call, in order and by name; the one named `packed` is handed over as a PackedWeight."""

    arrays: dict[str, Any]
    params: dict[str, Any]
    packed: str | None = None

    def run(self, op: Op) -> Any:
        arrays = {name: PackedWeight.pack(array) if name == self.packed else array for name, array in self.arrays.items()}
        return op(*arrays.values(), **self.params)

    def replace(self, **changed: Any) -> Call:
        arrays = {name: changed.get(name, value) for name, value in self.arrays.items()}
        return Call(arrays, {**self.params, **{name: value for name, value in changed.items() if name not in arrays}}, self.packed)

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> Call:
        """Change every array, those inside an AttentionDropout or LayerWeights too."""

        def apply(value: Any) -> Any:
            if isinstance(value, (AttentionDropout, LayerWeights)):
                return dataclasses.replace(value, **{f.name: apply(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init})
            if isinstance(value, list):
                return [apply(item) for item in value]
            return change(value) if isinstance(value, np.ndarray) else value

        return Call({n: apply(v) for n, v in self.arrays.items()}, {n: apply(v) for n, v in self.params.items()}, self.packed)


@dataclass(frozen=True)
class Case:
    op: Op
    label: str
    build: Callable[[Rng], Call]
    reference: Callable[..., Any]
    bound: Callable[..., Any]

    def __str__(self) -> str:
        return f"{self.op.name}-{self.label}"

    def check(self, got: Any, call: Call) -> None:
        """Assert that `got` is what the call should give, within the bound."""
        want, bound = self.reference(*call.arrays.values(), **call.params), self.bound(*call.arrays.values(), **call.params)
        if not isinstance(want, tuple):
            got, want, bound = (got,), (want,), (bound,)
        elif bound == 0:
            bound = (0.0,) * len(want)
        for g, w, b in zip(got, want, bound, strict=True):
            assert_within(g, w, b)


def assert_within(got: Array, want: Array, bound: Array | float) -> None:
    """Assert |got - want| <= bound in every element, and that infinities and NaN agree."""
    assert got.shape == want.shape, f"shape {got.shape}, want {want.shape}"
    assert np.array_equal(np.isfinite(got), np.isfinite(want)), "finite in one, not in the other"
    with np.errstate(invalid="ignore"):
        error, bound = np.abs(got.astype(np.float64) - want), np.broadcast_to(bound, want.shape)
    is_wrong = ~((error <= bound) | (got == want) | (np.isnan(got) & np.isnan(want)))
    if is_wrong.any():
        at = tuple(int(i) for i in np.argwhere(is_wrong)[0])
        raise AssertionError(f"{is_wrong.sum()} of {want.size} wrong; first at {at}: {got[at]!r}, want {want[at]!r} within {bound[at]:.3g}")


def normal(rng: Rng, *shape: int, scale: float = 1.0) -> Array:
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def integers(rng: Rng, low: int, high: int, n: int) -> Array:
    return rng.integers(low, high, n).astype(np.int32)


def starts_of(lengths: tuple[int, ...]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _activation(name: str, *shape: int) -> Case:
    def build(rng: Rng) -> Call:
        return Call({"x": normal(rng, *shape, scale=3)}, {"name": name})

    return Case(activation, f"{name}-{shape}", build, reference.activation, reference.activation_bound)


def _linear(
    m: int, n: int, k: int, epilogue: str = "", activation: str | None = None, columns: tuple[int, int] | None = None, packed: bool = False
) -> Case:
    """`epilogue` names what there is: "b" a bias, "r" a residual."""

    def build(rng: Rng) -> Call:
        width = n if columns is None else columns[1] - columns[0]
        arrays = {
            "x": normal(rng, m, k),
            "weight": normal(rng, n, k, scale=k**-0.5),
            "bias": normal(rng, n) if "b" in epilogue else None,
            "residual": normal(rng, m, width) if "r" in epilogue else None,
        }
        return Call(arrays, {"activation": activation, "columns": columns}, "weight" if packed else None)

    extras = [epilogue, activation or "", str(columns or ""), "packed" if packed else ""]
    return Case(linear, "-".join([f"{m}x{n}x{k}", *filter(None, extras)]), build, reference.linear, reference.linear_bound)


def _layer_norm(n_rows: int, width: int, residual: bool = False, offset: float = 0.0, eps: float = 1e-12) -> Case:
    def build(rng: Rng) -> Call:
        arrays = {"x": normal(rng, n_rows, width) + np.float32(offset), "gain": normal(rng, width), "bias": normal(rng, width)}
        return Call({**arrays, "residual": normal(rng, n_rows, width) if residual else None}, {"eps": eps})

    label = f"{n_rows}x{width}{'-residual' if residual else ''}{f'-offset {offset}' if offset else ''}"
    return Case(layer_norm, label, build, reference.layer_norm, reference.layer_norm_bound)


def _embedding(
    n_tokens: int, width: int, n_words: int, n_positions: int = 7, n_types: int = 2, packed: bool = False, eps: float = 1e-12
) -> Case:
    def build(rng: Rng) -> Call:
        tables = {"words": normal(rng, n_words, width), "positions": normal(rng, n_positions, width), "types": normal(rng, n_types, width)}
        ids = {
            "ids": integers(rng, 0, n_words, n_tokens),
            "position_ids": integers(rng, 0, n_positions, n_tokens),
            "type_ids": integers(rng, 0, n_types, n_tokens),
        }
        norm = {"gain": normal(rng, width), "bias": normal(rng, width)}
        return Call({**tables, **norm}, {**ids, "eps": eps}, "words" if packed else None)

    label = f"{n_tokens}x{width}-of-{n_words}{'-packed' if packed else ''}"
    return Case(embedding, label, build, reference.embedding, reference.embedding_bound)


def _attention(
    n_heads: int, head_width: int, lengths: tuple[int, ...], asked: tuple[int, ...] | None = None, p: float | None = None
) -> Case:
    """`asked` gives the number of queries of every sequence, where they are not the sequence itself."""

    def build(rng: Rng) -> Call:
        width, n_keys = n_heads * head_width, sum(lengths)
        n_queries = n_keys if asked is None else sum(asked)
        if asked is None:
            arrays = {"queries": normal(rng, n_keys, 3 * width), "keys_values": None}
        else:
            arrays = {"queries": normal(rng, n_queries, width), "keys_values": normal(rng, n_keys, 2 * width)}
        drop = None
        if p is not None:
            key_columns = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
            query_columns = key_columns if asked is None else integers(rng, 0, 512, n_queries)
            examples = integers(rng, 0, 1 << 30, len(lengths))
            drop = AttentionDropout(p, 2**63 + 11, stream(Purpose.ATTENTION_DROPOUT, 3, 2), query_columns, key_columns, examples)
        starts = {"key_starts": starts_of(lengths), "query_starts": None if asked is None else starts_of(asked)}
        return Call(arrays, {"n_heads": n_heads, **starts, "dropout": drop})

    extras = [f"asked {asked}" if asked else "", f"p {p}" if p is not None else ""]
    return Case(
        attention,
        "-".join([f"{n_heads}x{head_width}-{lengths}", *filter(None, extras)]),
        build,
        reference.attention,
        reference.attention_bound,
    )


def _labels(rng: Rng, n: int, n_words: int) -> Array:
    labels = integers(rng, 0, n_words, n)
    labels[:2] = (0, n_words - 1)[: len(labels)]
    return labels


def _cross_entropy(n_rows: int, n_words: int, scale: float = 1.0, is_ignored: bool = False) -> Case:
    def build(rng: Rng) -> Call:
        labels = _labels(rng, n_rows, n_words)
        if is_ignored:
            labels[rng.random(n_rows) < 0.5] = -100
        return Call({"logits": normal(rng, n_rows, n_words, scale=scale)}, {"labels": labels})

    label = f"{n_rows}x{n_words}{f'-scale {scale}' if scale != 1 else ''}{'-ignored' if is_ignored else ''}"
    return Case(cross_entropy, label, build, reference.cross_entropy, reference.cross_entropy_bound)


def _decoder_arrays(rng: Rng, n_rows: int, n_words: int, width: int, bias: bool) -> dict[str, Any]:
    return {"x": normal(rng, n_rows, width), "weight": normal(rng, n_words, width), "bias": normal(rng, n_words) if bias else None}


def _decoder_cross_entropy(n_rows: int, n_words: int, width: int, bias: bool = True, packed: bool = False) -> Case:
    def build(rng: Rng) -> Call:
        return Call(
            _decoder_arrays(rng, n_rows, n_words, width, bias), {"labels": _labels(rng, n_rows, n_words)}, "weight" if packed else None
        )

    label = f"{n_rows}x{n_words}x{width}{'-bias' if bias else ''}{'-packed' if packed else ''}"
    return Case(decoder_cross_entropy, label, build, reference.decoder_cross_entropy, reference.decoder_cross_entropy_bound)


def _decoder_loss(n_rows: int, n_words: int, width: int, divisor: float, bias: bool = True, packed: bool = False) -> Case:
    def build(rng: Rng) -> Call:
        call = _decoder_cross_entropy(n_rows, n_words, width, bias, packed).build(rng)
        return Call(call.arrays, {**call.params, "divisor": divisor}, call.packed)

    label = f"{n_rows}x{n_words}x{width}{'-bias' if bias else ''}{'-packed' if packed else ''}-over {divisor}"
    return Case(decoder_loss, label, build, reference.decoder_loss, reference.decoder_loss_bound)


def _decoder_top_k(n_rows: int, n_words: int, width: int, k: int, bias: bool = True, packed: bool = False) -> Case:
    def build(rng: Rng) -> Call:
        return Call(_decoder_arrays(rng, n_rows, n_words, width, bias), {"k": k}, "weight" if packed else None)

    label = f"{n_rows}x{n_words}x{width}-k {k}{'-bias' if bias else ''}{'-packed' if packed else ''}"
    return Case(decoder_top_k, label, build, reference.decoder_top_k, reference.decoder_top_k_bound)


def _dropout(n_rows: int, width: int, p: float) -> Case:
    def build(rng: Rng) -> Call:
        tokens = {"columns": integers(rng, 0, 512, n_rows), "examples": integers(rng, 0, 1 << 30, n_rows)}
        return Call(
            {"x": normal(rng, n_rows, width)},
            {"p": p, "seed": 2**64 - 1, "stream": stream(Purpose.FEED_FORWARD_DROPOUT, 11, 65535), **tokens},
        )

    return Case(dropout, f"{n_rows}x{width}-p {p}", build, reference.dropout, exact)


def _mlm_mask(n: int, **params: Any) -> Case:
    def build(rng: Rng) -> Call:
        tokens = {
            "may_mask": (rng.random(n) < 0.9).astype(np.uint8),
            "columns": integers(rng, 0, 512, n),
            "examples": integers(rng, 0, 1 << 30, n),
        }
        vocabulary = {"special_ids": np.array([0, 100, 101, 102, 103], np.int32), "vocab_size": 1021, "mask_token_id": 103}
        return Call({"ids": rng.integers(0, 1021, n)}, {**tokens, **vocabulary, "seed": 2**63 + 5, **params})

    return Case(mlm_mask, "-".join([str(n), *(f"{k} {v}" for k, v in params.items())]), build, reference.mlm_mask, exact)


def _gather_rows(n_rows: int, width: int, n_taken: int) -> Case:
    def build(rng: Rng) -> Call:
        return Call({"x": normal(rng, n_rows, width)}, {"rows": integers(rng, 0, n_rows, n_taken)})

    return Case(gather_rows, f"{n_taken}-of-{n_rows}x{width}", build, reference.gather_rows, exact)


def _scatter_rows(n_rows: int, width: int, n_given: int) -> Case:
    def build(rng: Rng) -> Call:
        rows = np.sort(rng.permutation(n_rows)[:n_given]).astype(np.int32)
        return Call({"x": normal(rng, n_given, width)}, {"rows": rows, "n_rows": n_rows})

    return Case(scatter_rows, f"{n_given}-to-{n_rows}x{width}", build, reference.scatter_rows, exact)


def _total(n: int, divisor: float) -> Case:
    def build(rng: Rng) -> Call:
        return Call({"x": normal(rng, n)}, {"divisor": divisor})

    def bound(x: Array, *, divisor: float) -> float:
        return float(2 * reference.U * abs(x.sum(dtype=np.float64) / divisor)) + 1e-30

    return Case(total, f"{n}-by {divisor}", build, reference.total, bound)


def _scale(*shape: int) -> Case:
    def build(rng: Rng) -> Call:
        return Call({"x": normal(rng, *shape)}, {"factor": 0.25})

    return Case(scale, "x".join(map(str, shape)), build, reference.scale, exact)


def _reshape(shape: tuple[int, ...], new_shape: tuple[int, ...]) -> Case:
    def build(rng: Rng) -> Call:
        return Call({"x": normal(rng, *shape)}, {"shape": new_shape})

    return Case(reshape, f"{shape}-{new_shape}", build, reference.reshape, exact)


def layer_weights(rng: Rng, n_heads: int, width: int, inner: int, activation: str = "gelu") -> LayerWeights:
    def packed(n: int, k: int) -> PackedWeight:
        return PackedWeight.pack(normal(rng, n, k, scale=k**-0.5))

    return LayerWeights(
        n_heads,
        activation,
        packed(3 * width, width),
        normal(rng, 3 * width),
        packed(width, width),
        normal(rng, width),
        normal(rng, width),
        normal(rng, width),
        1e-5,
        packed(inner, width),
        normal(rng, inner),
        packed(width, inner),
        normal(rng, width),
        normal(rng, width),
        normal(rng, width),
        1e-6,
    )


def _encoder(
    n_heads: int,
    head_width: int,
    inner: tuple[int, ...],
    lengths: tuple[int, ...],
    activation: str = "gelu",
    n_asked: tuple[int, ...] | None = None,
) -> Case:
    """A layer for each width in `inner`; `n_asked` rows of each sequence."""

    def build(rng: Rng) -> Call:
        width, starts = n_heads * head_width, starts_of(lengths)
        layers = [layer_weights(rng, n_heads, width, n, activation) for n in inner]
        params: dict[str, Any] = {"layers": layers, "starts": starts, "rows": None, "row_starts": None}
        if n_asked is not None:
            asked = [begin + np.sort(rng.permutation(n)[:k]) for begin, n, k in zip(starts[:-1], lengths, n_asked, strict=True)]
            params |= {"rows": np.concatenate(asked).astype(np.int32), "row_starts": starts_of(n_asked)}
        return Call({"x": normal(rng, sum(lengths), width)}, params)

    def bound(x: Array, **_: Any) -> float:
        return float(256 * x.shape[1] ** 0.5 * reference.U)

    return Case(encoder, f"{n_heads}x{head_width}-{inner}-{lengths}-{activation}-{n_asked}", build, reference.encoder, bound)


def _attention_map(n_heads: int, head_width: int, lengths: tuple[int, ...], length: int) -> Case:
    def build(rng: Rng) -> Call:
        columns = [np.sort(rng.permutation(length)[:n]) for n in lengths]
        return Call(
            {"qkv": normal(rng, sum(lengths), 3 * n_heads * head_width)},
            {
                "n_heads": n_heads,
                "starts": np.cumsum([0, *lengths]).astype(np.int32),
                "columns": np.concatenate(columns).astype(np.int32),
                "length": length,
            },
        )

    def bound(qkv: Array, *, n_heads: int, **_: Any) -> float:
        return float(64 * head_width * reference.U * max(1.0, np.abs(qkv).max() ** 2))

    return Case(attention_map, f"{n_heads}x{head_width}-{lengths}", build, reference.attention_map, bound)


CASES: tuple[Case, ...] = (
    # The first case of an op is the one that error tests start from: it has every argument, all well-formed.
    _activation("gelu", 5, 31),
    *(_activation(name, 3, 1021) for name in ("gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh", "exp", "erf")),
    _activation("gelu", 0),
    _activation("gelu", 1),
    _activation("gelu", 2, 3, 5),
    _activation("gelu", 5, 3072),
    _linear(5, 31, 7, "br", "gelu"),
    _linear(0, 5, 3, "br"),
    _linear(5, 0, 3, "br"),
    _linear(1, 1, 1, "br"),
    _linear(1, 1, 1031, "b"),
    _linear(2, 23, 3),
    _linear(3, 24, 4, "r"),
    _linear(4, 25, 255, "b", "relu"),
    _linear(5, 47, 256, "br", "gelu_new"),
    _linear(6, 48, 257, "b", "silu"),
    _linear(7, 49, 259, "b", "tanh", packed=True),
    _linear(64, 13, 767, "b"),
    _linear(65, 29, 769, "r"),
    _linear(129, 97, 1537, "br", packed=True),
    _linear(7, 1021, 33, "br", columns=(5, 1000)),
    _linear(7, 1021, 33, "br", "gelu", columns=(17, 18), packed=True),
    _linear(7, 1021, 33, "br", columns=(40, 40)),
    _linear(5, 2304, 768, "b", packed=True),
    _linear(6, 3072, 768, "b", "gelu"),
    *(_linear(m, 768, 3072, "br") for m in ROWS),
    _layer_norm(5, 31, residual=True),
    *(_layer_norm(n_rows, width) for n_rows, width in ((0, 8), (1, 2), (3, 7), (5, 8), (4, 15), (4, 16), (2, 17), (3, 1021))),
    *(_layer_norm(m, 768, residual=True) for m in ROWS),
    _layer_norm(3, 1, eps=1e-3),
    _layer_norm(3, 3072, offset=10.0),
    _layer_norm(4, 129, offset=1000.0, eps=1e-5),
    _layer_norm(6, 128, offset=-3.0, residual=True, eps=1e-3),
    _embedding(9, 31, 53),
    _embedding(0, 8, 5),
    _embedding(1, 1, 1, n_positions=1, n_types=1, packed=True, eps=1e-3),
    _embedding(13, 26, 1021, packed=True),
    _embedding(129, 768, 251, n_positions=512),
    _embedding(129, 768, 251, n_positions=512, packed=True),
    _attention(3, 5, (4, 3, 6), asked=(1, 3, 2), p=0.3),
    _attention(1, 1, (1,)),
    _attention(2, 3, (0, 0)),
    _attention(2, 13, (5, 0, 6, 7)),
    _attention(2, 13, (5, 0, 6, 7), asked=(0, 0, 9, 1)),
    _attention(3, 26, (33, 1, 31)),
    _attention(1, 24, (24, 25, 23)),
    _attention(2, 25, (191, 192, 193)),
    _attention(2, 25, (193,), asked=(3,)),
    _attention(2, 8, (385, 300), p=0.1),
    _attention(1, 96, (40,)),
    _attention(12, 64, (129, 7)),
    _attention(12, 64, (512,), asked=(5,)),
    _cross_entropy(5, 31, is_ignored=True),
    *(_cross_entropy(*shape) for shape in ((0, 3), (1, 1), (3, 2), (4, 16), (2, 383), (2, 384), (3, 385), (7, 1021))),
    _cross_entropy(5, 30522, scale=3.0),
    _cross_entropy(5, 1021, scale=40.0),
    _decoder_cross_entropy(5, 31, 7),
    _decoder_cross_entropy(0, 31, 7),
    _decoder_cross_entropy(1, 1, 1, bias=False),
    _decoder_cross_entropy(6, 383, 26),
    _decoder_cross_entropy(7, 385, 26, bias=False, packed=True),
    _decoder_cross_entropy(129, 1021, 26, packed=True),
    _decoder_cross_entropy(5, 1200, 768),
    _decoder_loss(5, 31, 7, 5),
    _decoder_loss(0, 31, 7, 1),
    _decoder_loss(7, 385, 26, 1, bias=False, packed=True),
    _decoder_loss(129, 1021, 26, 129),
    _decoder_top_k(5, 31, 7, 3),
    _decoder_top_k(0, 31, 7, 1),
    _decoder_top_k(1, 1, 1, 1, bias=False),
    _decoder_top_k(6, 385, 26, 1, packed=True),
    _decoder_top_k(7, 1021, 26, 5, bias=False, packed=True),
    _decoder_top_k(7, 1021, 26, 128),
    _decoder_top_k(19, 1021, 26, 129),
    _decoder_top_k(3, 1021, 26, 1021),
    _decoder_top_k(129, 771, 33, 10),
    _decoder_top_k(3, 30522, 13, 5),
    _dropout(5, 31, 0.3),
    *(_dropout(*case) for case in ((0, 8, 0.1), (1, 1, 0.5), (7, 5, 0.0), (129, 768, 0.1), (3, 1021, 0.999))),
    _mlm_mask(101, ignore_index=-100, epoch=0),
    _mlm_mask(0),
    _mlm_mask(1, mlm_probability=1.0),
    _mlm_mask(3000),
    _mlm_mask(500, mlm_probability=0.5, epoch=65535, ignore_index=-1),
    _mlm_mask(500, mlm_probability=1.0, mask_replace_prob=0.0, random_replace_prob=1.0),
    _gather_rows(7, 31, 5),
    _gather_rows(7, 31, 0),
    _gather_rows(129, 768, 300),
    _scatter_rows(7, 31, 5),
    _scatter_rows(7, 31, 0),
    _scatter_rows(7, 31, 7),
    _scatter_rows(300, 768, 129),
    _total(7, 3.0),
    _total(0, 1.0),
    _total(1021, 1.0),
    _scale(5, 31),
    _scale(0, 3),
    _reshape((5, 6), (3, 10)),
    _reshape((0, 6), (2, 0, 3)),
    _encoder(3, 5, (31,), (4, 3, 6), n_asked=(2, 3, 1)),
    _encoder(1, 1, (1,), (1,)),
    _encoder(2, 8, (16,), (0, 0)),
    _encoder(2, 8, (16,), (4, 5), n_asked=(0, 0)),
    _encoder(2, 13, (7, 130), (0, 5, 0, 2), "relu"),
    _encoder(2, 13, (130, 7), (0, 5, 0, 9), "relu", n_asked=(0, 1, 0, 9)),
    _encoder(4, 64, (1024, 256), (129, 1, 70)),
    _encoder(4, 64, (256, 1024), (129, 1, 70), n_asked=(17, 1, 0)),
    _attention_map(3, 5, (4, 3, 6), 8),
    _attention_map(1, 1, (1,), 1),
    _attention_map(2, 13, (0, 5), 7),
)


def cases_of(op: Op) -> list[Case]:
    return [case for case in CASES if case.op is op]
