"""Wrong calls of everything public: run as ``python tests/bad_calls.py N SEED [FIRST]``.

Call number i of a seed is always the same call, so ``1 SEED i`` repeats it. Its number goes to stdout before it
is made: the last number is that of a call that killed the process. A call must return a result that makes sense,
or raise one of `ALLOWED`; the last line is a JSON object of how often each function did which.
"""

import array
import faulthandler
import json
import math
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"  # a wrong name must not go out to the network

import lucid
from lucid import models, nn, optim, random
from lucid.ops.activation import activation
from lucid.ops.adamw import adamw_step, sum_of_squares
from lucid.ops.attention import AttentionDropout, attention
from lucid.ops.attention_map import attention_map
from lucid.ops.cross_entropy import cross_entropy
from lucid.ops.decoder import decoder_cross_entropy, decoder_top_k
from lucid.ops.dropout import dropout
from lucid.ops.embedding import embedding
from lucid.ops.layer_norm import layer_norm
from lucid.ops.linear import PackedWeight, linear
from lucid.ops.mlm_mask import mlm_mask
from lucid.ops.reshape import reshape
from lucid.ops.rows import gather_rows, scatter_rows
from lucid.ops.total import scale, total

Rng = np.random.Generator
ALLOWED = (TypeError, ValueError, IndexError, KeyError, lucid.DeviceError)  # lucid.FormatError is a ValueError
MOST_SECONDS = 10
MOST_BYTES = 8 << 30  # of address space: a call that asks for terabytes must not get them
V, C, HEADS, F, P, TYPES = 40, 12, 2, 20, 7, 2
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sun", "rises", "in", "east", "##s", "##ing", ".", ",", "a", "b", "c"]
NAN, INF = float("nan"), float("inf")
INTEGERS = (-1, 0, 1, 2, V - 1, V, V + 1, P, -(2**31), 2**31 - 1, 2**31, 2**32, -(2**63), 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30)
NUMBERS = (0, 1, 0.15, 0.5, -0.1, 1.1, 1e-300, 1e300, 5e-324, -0.0, NAN, INF, -INF, True, np.float32(0.5), np.float64(NAN), 2**70)


def one(rng: Rng, *things: Any) -> Any:
    return things[int(rng.integers(len(things)))]


class Lying:
    """Something that calls itself an array and is none."""

    dtype, shape, ndim, size = np.dtype(np.float32), (2, 3), 2, 6


class Exporting:
    """Something that gives an array when asked, in one way or the other."""

    def __init__(self, values: Any, way: str) -> None:
        if way == "array":
            self.__class__ = type("ArrayOnly", (), {"__array__": lambda self, dtype=None, copy=None: np.array(values, dtype)})
        else:
            self.__class__ = type(
                "DLPackOnly",
                (),
                {
                    "__dlpack__": lambda self, **options: values.__dlpack__(**options),
                    "__dlpack_device__": lambda self: values.__dlpack_device__(),
                },
            )


def junk(rng: Rng) -> Any:
    """Return something that is hardly ever right."""
    return one(
        rng, None, True, 0, -1, 1.5, NAN, 2**63, 2**70, 3 + 4j, "", "b c", "the sun", "\ud800", b"ab", [], [[]], (), {}, set(), object(), int,
        np.ndarray, np.float32, Lying(), lambda: None, (i for i in range(3)), range(4), [1, [2, 3]], [[1, 2], [3]], [["a"]], [None], [[None]],
        {"input_ids": 1}, np.array("text"), np.array(["a", "b"]), np.array([None, 1]), np.zeros((2, 3), object), np.zeros(3, "M8[s]"),
        np.zeros((2, 2), [("a", "i4")]), np.zeros((2, 3), complex), np.zeros(0), np.zeros((0, 3)), np.zeros((2, 3)), np.float32(1), np.array(1),
        memoryview(b"abcd"), array.array("i", [1, 2]), Exporting(np.zeros((2, 3), np.int64), "array"), Exporting(np.ones((2, 3)), "dlpack"),
        lucid.Tensor([[1, 2, 3]]), lucid.Tensor(1.5), Path("x"), slice(None), Ellipsis, 1e400, bytearray(4), frozenset([1]),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ arrays


def relaid(rng: Rng, a: Any) -> Any:
    """Return the same numbers, or views of them, in another layout."""
    a = np.asarray(a)
    if a.ndim == 0 or a.size == 0:
        return a
    match int(rng.integers(13)):
        case 0:
            return np.asfortranarray(a)
        case 1:
            return np.repeat(a, 2, axis=0)[::2]
        case 2:
            return np.repeat(a, 3, axis=-1)[..., ::3]
        case 3:
            return a[::-1]
        case 4:
            return a[..., ::-1]
        case 5:
            view = a.copy()
            view.flags.writeable = False
            return view
        case 6:
            return np.broadcast_to(a[:1], a.shape)
        case 7:
            return a.T
        case 8:
            raw = np.zeros(a.nbytes + 1, np.uint8)
            view = raw[1:].view(a.dtype).reshape(a.shape)
            view[...] = a
            return view  # not aligned
        case 9:
            return np.lib.stride_tricks.as_strided(a, a.shape, (0,) * a.ndim)
        case 10:
            return np.ma.array(a, mask=rng.random(a.shape) < 0.5)
        case 11:
            return np.matrix(a) if a.ndim == 2 else a.view(np.recarray)
        case _:
            return lucid.Tensor(a)


def reranked(rng: Rng, a: Any) -> Any:
    a = np.asarray(a)
    return one(rng, a[None], a[..., None], a.reshape(-1), a[..., :0], a[:0], a[:, 1:] if a.ndim > 1 else a[1:], a[1:], np.zeros((), a.dtype),
               np.concatenate([a, a], -1) if a.ndim else a, np.concatenate([a, a]) if a.ndim else a, a.sum(), a.T)  # fmt: skip


def retyped(rng: Rng, a: Any) -> Any:
    dtype = one(rng, "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "c8", "?", "O", "U3", "S3", ">i4", ">i8", ">f4", "M8[s]", "m8[s]")
    with np.errstate(all="ignore"):
        return np.asarray(a).astype(dtype)


def contained(rng: Rng, a: Any) -> Any:
    """Return the numbers in something other than an array."""
    a = np.asarray(a)
    nested = a.tolist()
    ragged = [*nested, [1]] if isinstance(nested, list) else [nested, [nested]]
    itself: list[Any] = [1]
    itself.append(itself)
    return one(rng, nested, tuple(nested) if a.ndim else nested, ragged, str(nested), iter([nested]), {"ids": nested}, [nested, None], [[nested]],
               [nested, "a"], Exporting(a, "array"), Exporting(a, "dlpack"), lucid.Tensor(a) if a.dtype.kind in "iuf" else a, a.tobytes(), itself,
               memoryview(np.ascontiguousarray(a)))  # fmt: skip


def is_huge(a: np.ndarray[Any, Any]) -> bool:
    return max(a.size, *a.shape, 0) > 10**6


def huge(rng: Rng, a: Any) -> Any:
    """Return an array that takes no memory and must not make anyone take any."""
    zero = np.zeros((), np.asarray(a).dtype)
    rank = max(1, np.ndim(a))
    shape = one(rng, (1 << 20,) * rank, (1 << 40,) + (1,) * (rank - 1), (1,) * (rank - 1) + (1 << 40,), (0,) + (1 << 40,) * (rank - 1),
                (1 << 40,) * (rank - 1) + (0,), (1 << 31,) + (1,) * (rank - 1))  # fmt: skip
    try:
        return np.broadcast_to(zero, shape)
    except ValueError:  # more than NumPy can address
        return np.broadcast_to(zero, (1 << 15,) * rank)


def poisoned(rng: Rng, a: Any) -> Any:
    """Return the array with one value that does not belong."""
    a = np.array(a)
    if a.size == 0 or a.dtype.kind not in "iuf":
        return a
    if a.dtype.kind == "f":
        bad: Any = one(rng, NAN, INF, -INF, 3e38, -3e38, 1e-45, 0.0)
    else:
        info = np.iinfo(a.dtype)
        inside = [i for i in (*INTEGERS, info.min, info.max) if info.min <= i <= info.max]
        bad = one(rng, *inside)
    a[tuple(int(rng.integers(n)) for n in a.shape)] = bad
    return a


def spoiled(rng: Rng, a: Any) -> Any:
    """Return an array with something wrong, or only odd, about it."""
    for _ in range(int(rng.integers(1, 3))):
        if not isinstance(a, np.ndarray) or is_huge(a):
            break
        change = one(rng, poisoned, poisoned, poisoned, relaid, relaid, reranked, retyped, retyped, contained, huge, lambda rng, a: junk(rng))
        try:
            a = change(rng, a)
        except (TypeError, ValueError, OverflowError, IndexError, RuntimeError):  # no such array
            return junk(rng)
    return a


def mixed(rng: Rng, value: Any, *others: Any) -> Any:
    return one(rng, *others, value) if rng.random() < 0.8 else junk(rng)


def spoiled_packed(rng: Rng, weight: PackedWeight) -> Any:
    """Return a packed weight that is not what it says."""
    n, k = weight.shape
    panels = weight.panels
    shape = one(rng, (n, k), (n + 1000, k), (n * 1000, k), (n, k + 1), (n, 10 * k), (1, k), (0, k), (n, 0), (n,), (n, k, 1), (-n, k), (2.5, k),
                (1 << 40, k), None)  # fmt: skip
    panels = one(rng, panels, panels, panels[:1], panels[:0], panels[:, :1], panels[:, :, :1], panels[0], panels.astype("f8"), panels.reshape(-1),
                 None, panels.tolist(), relaid(rng, panels), np.asfortranarray(panels), panels[::-1], lucid.Tensor(panels))  # fmt: skip
    return one(rng, junk(rng), weight.unpack(), spoiled(rng, weight.unpack()), *[PackedWeight(one(rng, "float32", "int8", None), panels, None, shape)] * 4)


# -------------------------------------------------------------------------------- what can be called


@dataclass
class Call:
    """A call that is right, and how each argument can be made wrong."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    spoilers: dict[str, Callable[[Rng, Any], Any]] = field(default_factory=dict)
    check: Callable[[Any, dict[str, Any]], None] = lambda result, arguments: None
    also_allowed: tuple[type[Exception], ...] = ()


def is_finite(value: Any) -> bool:
    """Whether the numbers in an argument are such that a result must be finite, too."""
    if isinstance(value, PackedWeight):
        return is_finite(value.panels)
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, (int, float)):
        return isinstance(value, int) or abs(value) <= 1e6
    if isinstance(value, lucid.Tensor):
        value = value.array
    if isinstance(value, (list, tuple)) or hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        try:
            value = np.asarray(value) if not hasattr(value, "__dlpack__") or hasattr(value, "__array__") else np.from_dlpack(value)
        except Exception:
            return False
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f":
            return value.dtype.kind in "biu"
        return is_huge(value) or bool((np.abs(value.astype(np.float64)) <= 1e6).all())
    return True


def want(condition: Any, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def arrays_in(result: Any) -> list[np.ndarray[Any, Any]]:
    if isinstance(result, lucid.Tensor):
        return [result.numpy()]
    if isinstance(result, np.ndarray):
        return [result]
    if isinstance(result, (tuple, list)):
        return [array for part in result for array in arrays_in(part)]
    return []


def batch_shape(arguments: dict[str, Any]) -> tuple[int, int]:
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    given = ids if ids is not None else embeds
    return tuple((np.from_dlpack(given) if hasattr(given, "__dlpack__") and not hasattr(given, "__array__") else np.asarray(given)).shape[:2])  # type: ignore[return-value]


def returns(dtype: Any, shape_of: Callable[[dict[str, Any]], tuple[int, ...]]) -> Callable[[Any, dict[str, Any]], None]:
    """Return a check that a Tensor of this dtype and shape came back."""

    def check(result: Any, arguments: dict[str, Any]) -> None:
        want(isinstance(result, lucid.Tensor), f"a {type(result).__name__} came back, not a Tensor")
        want(result.dtype == dtype, f"a Tensor of {result.dtype} came back")
        want(result.shape == shape_of(arguments), f"a Tensor of shape {result.shape} came back, not {shape_of(arguments)}")

    return check


class World:
    """The models that are called, and the calls."""

    def __init__(self, folder: str) -> None:
        lucid.manual_seed(1)
        config = {"vocab_size": V, "num_attention_heads": HEADS, "intermediate_size": F, "max_position_embeddings": P, "type_vocab_size": TYPES}
        make = models.BERTConfig.sized
        self.eval = models.BERTForMaskedLM(make(2, C, **config)).eval()
        self.train = models.BERTForMaskedLM(make(1, C, **config, tie_word_embedding=False, hidden_act="gelu_new"))
        self.backbone = models.BERT(make(1, C, **config)).eval()
        self.headless = models.BERT(make(1, C, **config, add_pooling_layer=False))
        self.tokenizer = models.BERTTokenizerFast(WORDS)
        self.eval.tokenizer = self.tokenizer
        self.folder = folder
        self.calls = [getattr(self, name) for name in dir(self) if name.startswith(("api_", "op_"))]
        # The models' own methods are what users call.
        self.weights = [8 if name.__name__.startswith("api_model") else 2 for name in self.calls]

    def fingerprint(self) -> Any:
        """What no wrong call may change."""
        state = [parameter.numpy().tobytes() for parameter in (*self.eval.parameters(), *self.train.parameters(), *self.backbone.parameters())]
        return state, self.eval([[1, 2, 3]]).numpy().tobytes(), self.eval.fill_mask("the [MASK]", targets=["sun", "east"]), repr(self.eval), repr(self.train)

    # ------------------------------------------------------------------ models on ids

    def batch(self, rng: Rng) -> Call:
        shape = (int(rng.integers(0, 4)), int(rng.integers(0, P + 1)))
        has_embeds = rng.random() < 0.25
        arguments: dict[str, Any] = {
            "input_ids": None if has_embeds else rng.integers(0, V, shape),
            "attention_mask": one(rng, None, rng.integers(0, 2, shape), rng.random(shape) < 0.7, np.zeros(shape, int), np.ones(shape)),
            "token_type_ids": one(rng, None, rng.integers(0, TYPES, shape)),
            "position_ids": one(rng, None, rng.integers(0, P, shape)),
            "inputs_embeds": rng.standard_normal((*shape, C)).astype("f4") if has_embeds else None,
        }

        def spoil(rng: Rng, value: Any) -> Any:
            return spoiled(rng, rng.integers(0, P, shape) if value is None else value)

        return Call(lambda **_: None, arguments, dict.fromkeys(arguments, spoil))

    def model(self, rng: Rng, method: str) -> Call:
        call = self.batch(rng)
        call.function = getattr(one(rng, self.eval, self.train), method)
        return call

    def api_model_forward(self, rng: Rng) -> Call:
        call = self.model(rng, "forward")
        call.check = returns(np.float32, lambda arguments: (*batch_shape(arguments), V))
        return with_seed(rng, call)

    def api_model_backbone(self, rng: Rng) -> Call:
        call = self.batch(rng)
        call.function = one(rng, self.backbone, self.headless)

        def check(result: Any, arguments: dict[str, Any]) -> None:
            returns(np.float32, lambda arguments: (*batch_shape(arguments), C))(result[0], arguments)
            if result[1] is not None:
                returns(np.float32, lambda arguments: (batch_shape(arguments)[0], C))(result[1], arguments)

        call.check = check
        return with_seed(rng, call)

    def api_model_backward(self, rng: Rng) -> Call:
        """Train mode, forward and back: gradients as finite as what came in, of the parameters' shapes."""
        call = self.labelled(rng, "get_loss")
        self.train.zero_grad()
        gradient = one(rng, None, None, 1.0, np.float32(2), np.zeros(3), NAN, "a", [1.0], junk(rng))

        def use(**arguments: Any) -> Any:
            loss = self.train.get_loss(**arguments)
            loss.backward(gradient)
            return [lucid.Tensor(p.grad) for p in self.train.parameters() if p.grad is not None and np.all(np.isfinite(np.asarray(gradient or 1.0)))]

        call.function = use
        call.also_allowed = (RuntimeError,)
        return with_seed(rng, call)

    def api_model_traced(self, rng: Rng) -> Call:
        call = self.batch(rng)
        call.function = one(rng, self.eval, self.backbone)
        for name in ("output_hidden_states", "output_attentions"):
            call.arguments[name] = bool(rng.integers(2))
            call.spoilers[name] = lambda rng, value: mixed(rng, value, *NUMBERS, "no")
        return call

    def api_model_predict(self, rng: Rng) -> Call:
        call = self.model(rng, "predict_token_ids")

        def check(result: Any, arguments: dict[str, Any]) -> None:
            returns(np.int64, batch_shape)(result, arguments)
            want(((result.numpy() >= 0) & (result.numpy() < V)).all(), "a predicted id is outside the vocabulary")

        call.check = check
        return call

    def labelled(self, rng: Rng, method: str) -> Call:
        call = self.model(rng, method)
        given = call.arguments["input_ids"] if call.arguments["input_ids"] is not None else call.arguments["inputs_embeds"]
        labels = rng.integers(0, V, given.shape[:2])
        is_asked = rng.random(labels.shape) < 0.5
        if call.arguments["attention_mask"] is not None and rng.random() < 0.8:
            is_asked &= np.asarray(call.arguments["attention_mask"]) != 0
        call.arguments["labels"] = np.where(is_asked, labels, -100)
        call.spoilers["labels"] = spoiled
        call.arguments["ignore_index"] = -100
        call.spoilers["ignore_index"] = lambda rng, value: mixed(rng, value, *INTEGERS, *NUMBERS)
        return call

    def api_model_loss(self, rng: Rng) -> Call:
        call = self.labelled(rng, "get_loss")
        call.arguments["reduction"] = one(rng, "mean", "sum", None)
        call.spoilers["reduction"] = lambda rng, value: mixed(rng, value, "none", "Mean", "", "max", 0, np.array(["mean"]))

        def check(result: Any, arguments: dict[str, Any]) -> None:
            n_cells = math.prod(batch_shape(arguments))
            returns(np.float32, lambda arguments: (n_cells,) if arguments["reduction"] is None else ())(result, arguments)

        call.check = check
        return with_seed(rng, call)

    def api_model_accuracy(self, rng: Rng) -> Call:
        call = self.labelled(rng, "get_accuracy")

        def check(result: Any, arguments: dict[str, Any]) -> None:
            returns(np.float32, lambda arguments: ())(result, arguments)
            want(0 <= result.item() <= 1, f"an accuracy of {result.item()}")

        call.check = check
        return call

    def api_model_mask(self, rng: Rng) -> Call:
        batch = self.batch(rng).arguments
        shape = (2, 5) if batch["input_ids"] is None else batch["input_ids"].shape
        call = Call(
            one(rng, self.eval, self.train).create_masked_lm_inputs,
            {
                "input_ids": rng.integers(0, V, shape),
                "attention_mask": one(rng, None, rng.integers(0, 2, shape)),
                "special_tokens_mask": one(rng, None, rng.integers(0, 2, shape), rng.random(shape) < 0.3),
            },
            {name: lambda rng, value: spoiled(rng, rng.integers(0, 2, shape) if value is None else value) for name in
             ("input_ids", "attention_mask", "special_tokens_mask")},
        )  # fmt: skip
        add_masking(rng, call)

        def check(result: Any, arguments: dict[str, Any]) -> None:
            for part in result:
                returns(np.int64, batch_shape)(part, arguments)

        call.check = check
        return with_seed(rng, call)

    # ---------------------------------------------------------------- models on texts

    def texts(self, rng: Rng) -> Any:
        several = ["the sun rises in the east .", "a [MASK] b", "", "sunsing", "x" * 5, "[MASK] [MASK]"]
        return one(rng, one(rng, *several), [one(rng, *several) for _ in range(int(rng.integers(0, 4)))])

    def spoiled_texts(self, rng: Rng, value: Any) -> Any:
        return mixed(rng, value, [], "", [""], "\ud800", ["a", None], ["a", 5], ["a", ["b"]], ("a", "b"), "a " * 50, ["a"] * 3, b"a", 5,
                     np.array(["a", "b"]), {"a": 1}, (text for text in "ab"), "\0", "[CLS] [SEP] [PAD] [UNK]", "á" * 200)  # fmt: skip

    def text_call(self, rng: Rng, method: str) -> Call:
        larger = models.BERTTokenizerFast([*WORDS, *(f"w{i}" for i in range(2 * V))])
        spoil_tokenizer = lambda rng, value: mixed(rng, value, larger, WORDS, models.BERTTokenizerFast, "bert-base-uncased", self.folder)  # noqa: E731
        return Call(
            getattr(self.eval, method),
            {"tokenizer": self.tokenizer, "text_a": self.texts(rng), "text_b": None, "device": "cpu"},
            {"tokenizer": spoil_tokenizer, "text_a": self.spoiled_texts, "text_b": self.spoiled_texts, "device": spoiled_device},
        )

    def api_model_loss_from_text(self, rng: Rng) -> Call:
        call = self.text_call(rng, "get_loss_from_text")
        add_masking(rng, call)
        call.arguments["reduction"] = one(rng, "mean", "sum", None)
        call.spoilers["reduction"] = lambda rng, value: mixed(rng, value, "none", "", 0)
        return with_seed(rng, call)

    def api_model_predict_from_text(self, rng: Rng) -> Call:
        return self.text_call(rng, "predict_token_ids_from_text")

    def api_model_fill_mask(self, rng: Rng) -> Call:
        def check(result: Any, arguments: dict[str, Any]) -> None:
            rows = [result] if isinstance(arguments["texts"], str) else result
            for fill in (fill for row in rows for mask in row for fill in mask):
                want(0 <= fill.score <= 1 + 1e-6, f"a probability of {fill.score}")

        return Call(
            self.eval.fill_mask,
            {"texts": one(rng, "the [MASK] rises", ["a [MASK]", "[MASK] [MASK]"]), "top_k": 3, "targets": None, "tokenizer": None},
            {
                "texts": self.spoiled_texts,
                "top_k": lambda rng, value: mixed(rng, value, *INTEGERS, *NUMBERS),
                "targets": lambda rng, value: mixed(rng, value, [], ["sun"], ["sun", "sun"], ["nowhere"], "sun", [5], [None], ["the sun"], {"sun": 1}, (),
                                                    np.array(["sun", "east"]), [""], ["[MASK]"], iter(["sun"]), 5, b"sun"),
                "tokenizer": lambda rng, value: mixed(rng, self.tokenizer, WORDS, 5),
            },
            check,
        )  # fmt: skip

    # ------------------------------------------------------------------------ tokenizer

    def api_tokenizer(self, rng: Rng) -> Call:
        ids = rng.integers(0, len(WORDS), 4)
        text = one(rng, "the sun", "a [MASK]")
        name, arguments = one(
            rng, ("tokenize", {"text": text}), ("encode", {"text": text, "text_pair": None, "max_length": 8, "truncation": True}),
            ("encode_plus", {"text_a": text, "text_b": text, "max_length": 8, "truncation": True, "return_offsets": True}),
            ("encode_batch", {"texts": [text, text], "padding": True, "max_length": 8, "truncation": True}),
            ("encode_pretraining_inputs", {"text_a": text, "text_b": None, "return_tensor": True, "device": "cpu"}),
            ("decode", {"ids": ids, "skip_special_tokens": True}), ("batch_decode", {"ids": [ids, ids]}), ("convert_ids_to_tokens", {"ids": ids}),
            ("convert_tokens_to_ids", {"tokens": ["the", "x"]}), ("convert_tokens_to_string", {"tokens": ["the", "##s"]}),
            ("build_inputs_with_special_tokens", {"ids_a": [5, 6], "ids_b": [7]}),
        )  # fmt: skip
        spoil = lambda rng, value: small_spoiled(rng, value) if isinstance(value, np.ndarray) else mixed(rng, value, "", [], *INTEGERS, ["a", None], [[1], [2**70]])  # noqa: E731
        return Call(getattr(self.tokenizer, name), arguments, dict.fromkeys(arguments, spoil))

    def api_tokenizer_new(self, rng: Rng) -> Call:
        arguments = {"vocab": WORDS, "unk_token": "[UNK]", "mask_token": "[MASK]", "lowercase": True, "wordpieces_prefix": "##",
                     "max_input_chars_per_word": 100}  # fmt: skip
        spoil = lambda rng, value: mixed(rng, value, "x", [], {}, {"a": 1}, {"[UNK]": -1}, WORDS[1:], [*WORDS, "the"], [*WORDS, 5], 0, 1001, "[CLS]", "\n",
                                         {word: i + 1 for i, word in enumerate(WORDS)}, {word: i for i, word in enumerate(WORDS)}, 2**70)  # noqa: E731  # fmt: skip
        return Call(models.BERTTokenizerFast, arguments, dict.fromkeys(arguments, spoil))

    # ----------------------------------------------------------------- models as objects

    def api_config(self, rng: Rng) -> Call:
        whole = vars(models.BERTConfig.sized(1, C, vocab_size=V, num_attention_heads=HEADS))
        names = rng.permutation(list(whole))[:3]
        spoil = lambda rng, value: mixed(rng, value, *INTEGERS, *NUMBERS, "gelu", "relu", "x", None)  # noqa: E731
        return Call(
            lambda **changes: one(rng, models.BERT, models.BERTForMaskedLM)(models.BERTConfig(**{**whole, **changes})),
            {str(name): whole[name] for name in names},
            {str(name): spoil for name in names},
        )

    def api_factory(self, rng: Rng) -> Call:
        factory = one(rng, models.bert_for_masked_lm_tiny, models.bert_for_masked_lm_mini, models.BERTConfig.base, models.BERTConfig.large)
        names = ["vocab_size", "hidden_act", "pad_token_id", "max_position_embeddings", "hidden_size", "num_hidden_layers", "nonsense"]
        name = one(rng, *names)
        value = {"hidden_act": "gelu", "hidden_size": 128, "num_hidden_layers": 3}.get(name, 30)
        return Call(factory, {name: value}, {name: lambda rng, value: mixed(rng, value, *INTEGERS, *NUMBERS)})

    def api_new_model(self, rng: Rng) -> Call:
        spoil = lambda rng, value: mixed(rng, value, self.tokenizer, {"vocab_size": 5}, models.BERTConfig)  # noqa: E731
        return Call(one(rng, models.BERT, models.BERTForMaskedLM), {"config": self.eval.config}, {"config": spoil})

    def api_set_embeddings(self, rng: Rng) -> Call:
        model = models.BERTForMaskedLM(self.eval.config)
        table, decoder = nn.Embedding(V, C, nn.init.zeros), nn.Linear(C, V, nn.init.zeros)
        others = (table, decoder, nn.Embedding(V + 1, C, nn.init.zeros), nn.Linear(V, C, nn.init.zeros), nn.LayerNorm(C, 1e-5), nn.Module(), None)
        spoil = lambda rng, value: mixed(rng, value, *others)  # noqa: E731
        if rng.random() < 0.5:
            return Call(model.set_input_embeddings, {"table": table}, {"table": spoil})
        return Call(model.set_output_embeddings, {"decoder": decoder}, {"decoder": spoil})

    def api_resize(self, rng: Rng) -> Call:
        model = models.BERTForMaskedLM(self.eval.config)
        small_numbers = tuple(n for n in INTEGERS if n <= 2**16 or n > 2**32)  # 2**31 rows of 12 numbers are a table that one may want
        spoil = lambda rng, value: mixed(rng, value, *small_numbers, *NUMBERS)  # noqa: E731

        def use(n_words: Any) -> Any:
            before = repr(model), model.config
            try:
                model.resize_token_embeddings(n_words)
            except ALLOWED:
                want((repr(model), model.config) == before, "a refused size changed the model")
                raise
            return model([[1]])

        return Call(use, {"n_words": one(rng, V + 1, V, 5, 1)}, {"n_words": spoil})

    def api_optimizer(self, rng: Rng) -> Call:
        model = models.BERT(self.backbone.config)
        for parameter in model.parameters():
            parameter.grad = np.ones(parameter.shape, np.float32)
        arguments = {"params": model, "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "max_grad_norm": 1.0, "loss": 1.0,
                     "batch": None, "n_warmup": 2, "n_steps": 5, "decay": "linear", "final": 0.1}  # fmt: skip

        def use(loss: Any, batch: Any, n_warmup: Any, n_steps: Any, decay: Any, final: Any, **settings: Any) -> Any:
            optimizer = optim.AdamW(**settings)
            optim.Schedule(optimizer, n_warmup, n_steps, decay, final).step()
            optimizer.step(loss, batch=batch)
            optimizer.load_state_dict(optimizer.state_dict())
            return [lucid.Tensor(parameter) for parameter in model.parameters()]

        spoil = lambda rng, value: mixed(rng, value, *INTEGERS, *NUMBERS, (0.9,), (0.9, 1.0), (NAN, 0.5), (1, 2, 3), "cosine", [], [{"params": []}],  # noqa: E731
                                         [{"params": [5]}], [model.embeddings.layer_norm.bias] * 2, model.parameters(), lucid.Tensor(1.0))  # fmt: skip
        return Call(use, arguments, dict.fromkeys(arguments, spoil), also_allowed=(optim.NonFiniteError,))

    def api_load_state(self, rng: Rng) -> Call:
        model = models.BERTForMaskedLM(self.eval.config)
        state = dict(self.eval.state_dict())
        name = one(rng, *state)
        state[name] = state[name] if rng.random() < 0.2 else spoiled(rng, state[name])
        spoil = lambda rng, value: mixed(rng, value, {}, {"x": 1}, {name: None}, list(state.items()), {5: 5}, [1], "state")  # noqa: E731
        return Call(model.load_state_dict, {"state": state, "strict": bool(rng.integers(2))}, {"state": spoil, "strict": lambda rng, value: junk(rng)})

    def api_parameter(self, rng: Rng) -> Call:
        shape = one(rng, (), (3,), (2, 3))
        return Call(nn.Parameter(shape, nn.init.zeros).assign, {"values": np.ones(shape, np.float32)}, {"values": spoiled})

    def api_module_to(self, rng: Rng) -> Call:
        return Call(self.eval.to, {"device": "cpu"}, {"device": spoiled_device})

    def api_from_pretrained(self, rng: Rng) -> Call:
        spoil = lambda rng, value: mixed(rng, value, "", "/", "/dev/null", "\0", "x" * 5000, Path("nowhere"), b"bytes", "a\nb", "\ud800", 3, 2**40)  # noqa: E731
        kind = one(rng, models.BERT, models.BERTForMaskedLM, models.BERTTokenizerFast)
        return Call(kind.from_pretrained, {"folder": self.folder}, {"folder": spoil}, also_allowed=(OSError,))

    def api_save_pretrained(self, rng: Rng) -> Call:
        """Only to places where nothing can be made."""
        place = one(rng, "/dev/null", "/dev/null/x", "\0", f"{self.folder}/{'x' * 300}", f"{self.folder}/config.json", 5, None, [], "\ud800", object(), NAN)
        return Call(self.eval.save_pretrained, {"folder": place}, {}, also_allowed=(OSError,))

    # --------------------------------------------------------------------------- lucid

    def api_tensor(self, rng: Rng) -> Call:
        def use(data: Any, dtype: Any, device: Any, index: Any, target: Any) -> Any:
            tensor = lucid.Tensor(data, dtype, device)
            want(tensor.dtype.kind in "biuf", f"a Tensor of {tensor.dtype}")
            repr(tensor)
            tensor.tolist()
            part = tensor[index]
            moved = part.to(target)
            want(moved.dtype.kind in "biuf", f"to({target!r:.30}) made a Tensor of {moved.dtype}")
            return one(rng, tensor.item, tensor.__len__, tensor.__float__, tensor.__int__, tensor.__bool__, lambda: list(tensor))()

        data = one(rng, np.arange(6).reshape(2, 3), np.float32(1.5), [1.5, 2.5], [[1, 2]], 5)
        arguments = {"data": data, "dtype": None, "device": "cpu", "index": 0, "target": "cpu"}
        spoilers = {
            "data": lambda rng, value: small(spoiled(rng, np.asarray(value))),
            "dtype": lambda rng, value: mixed(rng, value, "f4", np.int8, "nonsense", object, str, "M8", "V4", complex, [("a", "f4")]),
            "device": spoiled_device,
            "index": lambda rng, value: mixed(rng, value, *INTEGERS, (0, 0), slice(None, None, -1), ..., np.array([0, -1]), [True, False], 1.5),
            "target": lambda rng, value: mixed(rng, value, "gpu", "f4", np.int64, "nonsense", object, None, str, complex),
        }
        return Call(use, arguments, spoilers, also_allowed=(OverflowError,))  # int(inf), as everywhere in Python

    def api_seeds(self, rng: Rng) -> Call:
        def use(seed: Any, calls: Any) -> None:
            state = random.get_state()
            try:
                lucid.manual_seed(seed)
                random.set_state(seed, calls)
                for _ in range(3):
                    random.resolve_seed(None)
            finally:
                random.set_state(*state)

        spoil = lambda rng, value: mixed(rng, value, *INTEGERS, *NUMBERS)  # noqa: E731
        return Call(use, {"seed": 3, "calls": 0}, {"seed": spoil, "calls": spoil})

    def api_threads(self, rng: Rng) -> Call:
        def use(n: Any) -> None:
            before = lucid.get_num_threads()
            try:
                lucid.set_num_threads(n)
                want(1 <= lucid.get_num_threads() <= 1024, f"{lucid.get_num_threads()} threads")
            finally:
                lucid.set_num_threads(before)

        return Call(use, {"n": 2}, {"n": lambda rng, value: mixed(rng, value, *INTEGERS, *NUMBERS)})

    # ------------------------------------------------------------------------------ ops

    def op_activation(self, rng: Rng) -> Call:
        names = ("gelu", "gelu_new", "relu", "silu", "tanh", "exp", "erf")
        name = one(rng, *names)
        x = rng.standard_normal((int(rng.integers(0, 4)), 5)).astype("f4")
        return Call(activation, {"x": x, "name": name}, {"x": small_spoiled, "name": lambda rng, value: mixed(rng, value, "", "GELU", 1, None)},
                    lambda result, arguments: want(result.shape == np.shape(arguments["x"]) or np.ndim(arguments["x"]) == 0, "shape"))  # fmt: skip

    def op_layer_norm(self, rng: Rng) -> Call:
        x = rng.standard_normal((int(rng.integers(0, 4)), C)).astype("f4")
        arguments = {"x": x, "gain": floats(rng, C), "bias": floats(rng, C), "residual": one(rng, None, x), "eps": 1e-5}
        return Call(positional(layer_norm, 4), arguments, spoilers_of(arguments))

    def op_linear(self, rng: Rng) -> Call:
        m, k, n = int(rng.integers(0, 6)), int(rng.integers(1, 9)), int(rng.integers(1, 60))
        weight = floats(rng, n, k)
        begin = int(rng.integers(0, n))
        columns = one(rng, None, (begin, int(rng.integers(begin, n + 1))))
        width = n if columns is None else columns[1] - columns[0]
        arguments = {"x": floats(rng, m, k), "weight": one(rng, weight, PackedWeight.pack(weight)), "bias": one(rng, None, floats(rng, n)),
                     "residual": one(rng, None, floats(rng, m, width)), "activation": one(rng, None, "gelu"), "columns": columns}  # fmt: skip
        spoilers = spoilers_of(arguments) | {
            "activation": lambda rng, value: mixed(rng, value, "", "GELU", 1),
            "columns": lambda rng, value: mixed(rng, value, (0, n + 1), (-1, n), (n, 0), (0, 2**40), (0.5, 1), (0,), (0, 1, 2), "ab", (None, 1), (0, 0),
                                                (NAN, 1), np.array([0, 1]), (0, 1.0), 5, (2**70, 2**70)),
        }  # fmt: skip
        return Call(positional(linear, 4), arguments, spoilers)

    def op_decoder(self, rng: Rng) -> Call:
        p, k, n = int(rng.integers(0, 5)), int(rng.integers(1, 9)), int(rng.integers(1, 60))
        weight = floats(rng, n, k)
        arguments = {"x": floats(rng, p, k), "weight": one(rng, weight, PackedWeight.pack(weight)), "bias": one(rng, None, floats(rng, n))}
        if rng.random() < 0.5:
            arguments["labels"] = rng.integers(0, n, p).astype("i4")
            return Call(positional(decoder_cross_entropy, 3), arguments, spoilers_of(arguments))
        arguments["k"] = int(rng.integers(1, n + 1))

        def check(result: Any, arguments: dict[str, Any]) -> None:
            want(((result[1] >= 0) & (result[1] < arguments["weight"].shape[0])).all(), "a word outside the vocabulary")

        return Call(positional(decoder_top_k, 3), arguments, spoilers_of(arguments), check)

    def op_cross_entropy(self, rng: Rng) -> Call:
        p, n = int(rng.integers(0, 5)), int(rng.integers(1, 60))
        labels = np.where(rng.random(p) < 0.3, -100, rng.integers(0, n, p)).astype("i4")
        arguments = {"logits": floats(rng, p, n), "labels": labels, "ignore_index": -100}
        return Call(positional(cross_entropy, 1), arguments, spoilers_of(arguments))

    def op_embedding(self, rng: Rng) -> Call:
        words = floats(rng, V, C)
        t = int(rng.integers(0, 6))
        arguments = {"words": one(rng, words, PackedWeight.pack(words)), "positions": floats(rng, P, C), "types": floats(rng, TYPES, C),
                     "gain": floats(rng, C), "bias": floats(rng, C), "ids": ints(rng, V, t), "position_ids": ints(rng, P, t),
                     "type_ids": ints(rng, TYPES, t), "eps": 1e-5}  # fmt: skip
        return Call(positional(embedding, 5), arguments, spoilers_of(arguments))

    def op_attention(self, rng: Rng) -> Call:
        lengths = rng.integers(0, 4, int(rng.integers(0, 4)))
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype("i4")
        t, width = int(starts[-1]), 2 * HEADS
        wraps = [np.array([0, 2**31 - 1, -2, t], "i4"), np.array([0, -(2**31), t], "i4"), np.array([0, 2**30, t], "i4"), starts[::-1], starts + 1]
        arguments: dict[str, Any] = {"queries": floats(rng, t, 3 * width), "keys_values": None, "n_heads": HEADS, "key_starts": starts,
                                     "query_starts": None, "dropout": None}  # fmt: skip
        if rng.random() < 0.5:
            arguments |= {"queries": floats(rng, t, width), "keys_values": floats(rng, t, 2 * width), "query_starts": starts}
        if rng.random() < 0.4:
            own = {"p": 0.3, "seed": 5, "stream": 1, "query_columns": ints(rng, 9, t), "key_columns": ints(rng, 9, t),
                   "examples": np.arange(len(lengths), dtype="i4")}  # fmt: skip
            for name in rng.permutation(list(own))[: int(rng.integers(0, 3))]:
                own[name] = spoilers_of(own)[name](rng, own[name])
            arguments["dropout"] = one(rng, AttentionDropout(**own), AttentionDropout(**own), AttentionDropout(**own), 0.1, own)
        spoilers = spoilers_of(arguments)
        for name in ("key_starts", "query_starts"):
            spoilers[name] = lambda rng, value: one(rng, *wraps, spoiled(rng, starts), spoiled(rng, starts))
        spoilers["dropout"] = lambda rng, value: junk(rng)
        return Call(positional(attention, 2), arguments, spoilers)

    def op_dropout(self, rng: Rng) -> Call:
        t = int(rng.integers(0, 6))
        arguments = {"x": floats(rng, t, C), "p": 0.3, "seed": 5, "stream": 1, "columns": ints(rng, 9, t), "examples": ints(rng, 9, t)}
        return Call(positional(dropout, 1), arguments, spoilers_of(arguments))

    def op_mlm_mask(self, rng: Rng) -> Call:
        n = int(rng.integers(0, 20))
        arguments = {"ids": rng.integers(0, V, n), "may_mask": rng.integers(0, 2, n).astype("u1"), "columns": ints(rng, 9, n), "examples": ints(rng, 9, n),
                     "special_ids": np.arange(5, dtype="i4"), "vocab_size": V, "mask_token_id": 4, "seed": 5, "mlm_probability": 0.5,
                     "mask_replace_prob": 0.4, "random_replace_prob": 0.5, "ignore_index": -100, "epoch": 0}  # fmt: skip

        def check(result: Any, arguments: dict[str, Any]) -> None:
            want(all(part.shape == arguments["ids"].shape and part.dtype == np.int64 for part in result), "shape")

        return Call(positional(mlm_mask, 1), arguments, spoilers_of(arguments), check)

    def op_total(self, rng: Rng) -> Call:
        x = floats(rng, int(rng.integers(0, 5)))
        op, arguments = one(rng, (total, {"x": x, "divisor": 2.0}), (scale, {"x": x, "factor": 2.0}), (reshape, {"x": x, "shape": (-1,)}))
        return Call(positional(op, 1), arguments, spoilers_of(arguments) | {"shape": lambda rng, value: mixed(rng, value, (), (2, 2), 5, (0.5,), (2**40,))})

    def op_attention_map(self, rng: Rng) -> Call:
        lengths = rng.integers(0, 4, int(rng.integers(0, 4)))
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype("i4")
        columns = np.concatenate([np.arange(n) for n in (0, *lengths)]).astype("i4")
        arguments = {"qkv": floats(rng, int(starts[-1]), 6 * HEADS), "n_heads": HEADS, "starts": starts, "columns": columns, "length": 4}
        spoilers = spoilers_of(arguments) | {"length": lambda rng, value: mixed(rng, value, -1, 0, 2, 1.5, NAN)}
        return Call(positional(attention_map, 1), arguments, spoilers)

    def op_adamw(self, rng: Rng) -> Call:
        x = floats(rng, 3, 4)
        if rng.random() < 0.3:
            return Call(sum_of_squares, {"x": x}, {"x": small_spoiled})
        arguments = {"weight": x, "d_weight": floats(rng, 3, 4), "m": floats(rng, 3, 4), "v": abs(floats(rng, 3, 4)), "lr": 1e-3, "betas": (0.9, 0.99),
                     "eps": 1e-8, "weight_decay": 0.01, "step": 1, "scale": 1.0}  # fmt: skip
        return Call(positional(adamw_step, 4), arguments, spoilers_of(arguments) | {"step": lambda rng, value: mixed(rng, value, 0, -1, 2**40)})

    def op_rows(self, rng: Rng) -> Call:
        t = int(rng.integers(1, 6))
        if rng.random() < 0.5:
            arguments = {"x": floats(rng, t, C), "rows": ints(rng, t, 3)}
            return Call(positional(gather_rows, 1), arguments, spoilers_of(arguments))
        arguments = {"x": floats(rng, t, C), "rows": np.arange(t, dtype="i4") + int(rng.integers(3)), "n_rows": t + 3}
        return Call(positional(scatter_rows, 1), arguments, spoilers_of(arguments) | {"n_rows": lambda rng, value: mixed(rng, value, 0, -1, t, 1.5, NAN)})


def floats(rng: Rng, *shape: int) -> Any:
    return rng.standard_normal(shape).astype("f4")


def ints(rng: Rng, limit: int, n: int) -> Any:
    return rng.integers(0, limit, n).astype("i4")


def small(value: Any) -> Any:
    """Return the value, or junk's place-holder where a function that copies would rightly need terabytes."""
    return None if isinstance(value, np.ndarray) and is_huge(value) else value


def small_spoiled(rng: Rng, value: Any) -> Any:
    return small(spoiled(rng, value))


def spoiled_device(rng: Rng, value: Any) -> Any:
    return mixed(rng, value, "gpu", "cuda", "CPU", "", "cuda:0", 0, np.array(["cpu"]))


def spoilers_of(arguments: dict[str, Any]) -> dict[str, Callable[[Rng, Any], Any]]:
    """Return how the arguments of an op are spoiled, by what they are."""

    def spoil(rng: Rng, value: Any) -> Any:
        if isinstance(value, PackedWeight):
            return spoiled_packed(rng, value)
        if isinstance(value, np.ndarray):
            if value.dtype == np.float32 and value.ndim == 2 and rng.random() < 0.1:
                return PackedWeight.pack(value)
            return small_spoiled(rng, value)
        return mixed(rng, value, *INTEGERS, *NUMBERS)

    return dict.fromkeys(arguments, spoil)


def positional(op: Callable[..., Any], n: int) -> Callable[..., Any]:
    """Return the op as a function of keywords only: the first `n` are its arrays."""
    return lambda **arguments: op(*list(arguments.values())[:n], **dict(list(arguments.items())[n:]))


def add_masking(rng: Rng, call: Call) -> None:
    """Add the settings of the masking of tokens to a call."""
    for name, value in {"mlm_probability": 0.5, "mask_replace_prob": 0.5, "random_replace_prob": 0.5}.items():
        call.arguments[name] = value
        call.spoilers[name] = lambda rng, value: mixed(rng, value, *NUMBERS, "0.5", [0.5], np.array([0.5, 0.5]))
    call.arguments |= {"mask_token_id": 4, "ignore_index": -100}
    for name in ("mask_token_id", "ignore_index"):
        call.spoilers[name] = lambda rng, value: mixed(rng, value, *INTEGERS, *NUMBERS)


def with_seed(rng: Rng, call: Call) -> Call:
    call.arguments["seed"] = one(rng, None, 0, 2**64 - 1)
    call.spoilers["seed"] = lambda rng, value: mixed(rng, value, *INTEGERS, *NUMBERS)
    return call


# -------------------------------------------------------------------------------------------- calls


def make_call(world: World, rng: Rng) -> tuple[str, Call]:
    """Return a call with no, one or several arguments spoiled, some left out and some too many."""
    weights = np.array(world.weights)
    make = world.calls[int(rng.choice(len(weights), p=weights / weights.sum()))]
    call: Call = make(rng)
    names = list(call.spoilers)
    if names:
        for name in {one(rng, *names) for _ in range(one(rng, 0, 1, 1, 1, 1, 2, 3))}:
            call.arguments[name] = call.spoilers[name](rng, call.arguments.get(name))
    if rng.random() < 0.02 and call.arguments:
        del call.arguments[one(rng, *call.arguments)]
        call.check = lambda result, arguments: None
    if rng.random() < 0.02:
        call.arguments["nonsense"] = junk(rng)
    return make.__name__.split("_", 1)[1] if make.__name__.startswith("api_") else make.__name__, call


def run_call(name: str, call: Call) -> str:
    """Make a call; return what came of it, or raise AssertionError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        is_finite_in = is_finite(call.arguments)
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error" if is_finite_in else "ignore")
            result = call.function(**call.arguments)
    except (*ALLOWED, *call.also_allowed) as error:
        want(str(error), f"a {type(error).__name__} without a word")
        outcome = type(error).__name__
    except AssertionError:
        raise
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    else:
        outcome = "returned"
        call.check(result, call.arguments)
        if is_finite_in:
            want(all(np.isfinite(part).all() for part in arrays_in(result)), "the result is not finite")
    seconds = time.perf_counter() - begin
    want(seconds < MOST_SECONDS, f"took {seconds:.1f} s")
    return outcome


def describe(call: Call) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, np.ndarray):
            text = f"{value.dtype}{value.shape}"
            return f"{type(value).__name__} {text} {value.tolist()}" if value.size <= 12 and not is_huge(value) else f"{type(value).__name__} {text}"
        return f"{type(value).__name__} {value!r:.120}"

    return "\n".join(f"    {name} = {shown(value):.300}" for name, value in call.arguments.items())


def place_of(error: BaseException) -> str:
    """Return the last line of lucid's own that an error came through."""
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    inside = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "/lucid/" in frame.filename]
    return inside[-1] if inside else "here"


def main(n_calls: int, seed: int, first: int = 0) -> int:
    """Make the calls; return the exit status."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    counts: Counter[str] = Counter()
    failures: dict[str, str] = {}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        world = World(folder)
        world.eval.save_pretrained(folder)
        before = world.fingerprint()
        for i in range(first, first + n_calls):
            rng = np.random.default_rng([seed, i])
            os.write(1, b"%d\n" % i)
            if i % 64 == 0 or i == first:
                faulthandler.dump_traceback_later(6 * MOST_SECONDS, exit=True)
            lucid.set_num_threads(1 if i % 8 else 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                name, call = make_call(world, rng)
            try:
                counts[f"{name} {run_call(name, call)}"] += 1
            except AssertionError as error:
                trace = "".join(traceback.format_exception(error)[-6:]) if n_calls == 1 else ""
                where = place_of(error)
                kind = re.sub(r"'.*?'|[0-9]+", "", str(error))[:60]
                failures.setdefault(f"{name} {where} {kind}", f"call {i}, {name}: {error!s:.300}\n    at {where}\n{describe(call)}\n{trace}")
        faulthandler.cancel_dump_traceback_later()
        if world.fingerprint() != before:
            failures["state"] = "a wrong call changed a model"
    for text in failures.values():
        print(text, file=sys.stderr)
    seconds = time.perf_counter() - begin
    print(json.dumps({"calls": n_calls, "seconds": round(seconds, 1), "failures": len(failures), "outcomes": dict(sorted(counts.items()))}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
