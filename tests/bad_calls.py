"""Wrong calls of everything public: run as ``python tests/bad_calls.py N SEED [FIRST]``.

Call number i of a seed is always the same call, so ``1 SEED i`` repeats it. Its number goes to stdout before it
is made: the last number is that of a call that killed the process. A call must return a result that makes sense,
or raise one of `ALLOWED`; the last line is a JSON object of how often each function did which.
"""

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

os.environ["HF_HUB_OFFLINE"] = "1"  # a wrong name must not go out to the network

import numpy as np
from bad_values import EDGES, INF, NAN, NUMBERS, Rng, Spoiler, by_kind, instead, is_finite, is_huge, junk, one, small, spoiled

import lucid
from lucid import models, nn, optim, random
from lucid.ops.activation import activation
from lucid.ops.adamw import adamw_step, sum_of_squares
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
from lucid.ops.reshape import reshape
from lucid.ops.rows import gather_rows, scatter_rows
from lucid.ops.total import scale, total

ALLOWED = (TypeError, ValueError, IndexError, KeyError, lucid.DeviceError)  # lucid.FormatError is a ValueError
MOST_SECONDS = 10
MOST_BYTES = 4 << 30  # of address space: a call that asks for terabytes must not get them
V, C, HEADS, F, P, TYPES = 40, 12, 2, 20, 7, 2
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sun", "rises", "in", "east", "##s", "##ing", ".", ",", "a", "b", "c"]
SIZES = {"vocab_size": V, "num_attention_heads": HEADS, "intermediate_size": F, "max_position_embeddings": P, "type_vocab_size": TYPES}
TEXTS = ["the sun rises in the east .", "a [MASK] b", "", "sunsing", "x" * 5, "[MASK] [MASK]"]
ODD_TEXTS = (
    [],
    "",
    [""],
    "\ud800",
    ["a", None],
    ["a", 5],
    ["a", ["b"]],
    ("a", "b"),
    "a " * 50,
    ["a"] * 3,
    b"a",
    5,
    np.array(["a", "b"]),
    "\0",
    {"a": 1},
)
NO_PLACES = ("/dev/null", "/dev/null/x", "\0", "x" * 5000, "\ud800", 5, None, [], object(), NAN, b"bytes")


@dataclass
class Call:
    """A call that is right, and how each argument can be made wrong."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    spoilers: dict[str, Spoiler] = field(default_factory=dict)
    check: Callable[[Any, dict[str, Any]], None] = lambda result, arguments: None
    also_allowed: tuple[type[Exception], ...] = ()

    def add(self, spoiler: Spoiler, **arguments: Any) -> None:
        """Add arguments that are spoiled in this way."""
        self.arguments |= arguments
        self.spoilers |= dict.fromkeys(arguments, spoiler)


def want(condition: Any, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def shape_of(arguments: dict[str, Any]) -> tuple[int, ...]:
    """Return (B, S) of the batch that was given."""
    given = arguments["input_ids"] if arguments.get("input_ids") is not None else arguments["inputs_embeds"]
    return np.asarray(getattr(given, "values", given)).shape[:2]


def want_tensor(result: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    want(isinstance(result, lucid.Tensor), f"a {type(result).__name__} came back, not a Tensor")
    want((result.dtype, result.shape) == (dtype, shape), f"a Tensor {result.dtype}{result.shape} came back, not {dtype.__name__}{shape}")


def floats(rng: Rng, *shape: int) -> Any:
    return rng.standard_normal(shape).astype("f4")


def ints(rng: Rng, limit: int, n: int) -> Any:
    return rng.integers(0, limit, n).astype("i4")


def starts_of(lengths: Any) -> Any:
    return np.concatenate([[0], np.cumsum(lengths)]).astype("i4")


def op_call(op: Callable[..., Any], n_arrays: int, **arguments: Any) -> Call:
    """Return a call of an op, whose arrays come first and by place."""

    def use(**given: Any) -> Any:
        return op(*list(given.values())[:n_arrays], **dict(list(given.items())[n_arrays:]))

    return Call(use, arguments, dict.fromkeys(arguments, by_kind))


class World:
    """The models that are called, and the calls: each method makes one."""

    def __init__(self, folder: str) -> None:
        lucid.manual_seed(1)
        make = models.BERTConfig.sized
        self.eval = models.BERTForMaskedLM(make(2, C, **SIZES)).eval()
        self.train = models.BERTForMaskedLM(make(1, C, **SIZES, tie_word_embedding=False, hidden_act="gelu_new"))
        self.backbone = models.BERT(make(1, C, **SIZES)).eval()
        self.headless = models.BERT(make(1, C, **SIZES, add_pooling_layer=False))
        self.tokenizer = self.eval.tokenizer = models.BERTTokenizerFast(WORDS)
        self.other_tokenizer = models.BERTTokenizerFast([*WORDS, *(f"w{i}" for i in range(2 * V))])
        self.folder = folder
        self.eval.save_pretrained(folder)
        self.makers = [getattr(self, name) for name in sorted(dir(self)) if name.startswith(("model_", "api_", "op_"))]
        weights = np.array([4.0 if maker.__name__.startswith("model_") else 1.0 for maker in self.makers])
        self.shares = weights / weights.sum()

    def fingerprint(self) -> Any:
        """Return what no wrong call may change."""
        parameters = [p for model in (self.eval, self.train, self.backbone, self.headless) for p in model.parameters()]
        results = self.eval([[1, 2, 3]]).numpy().tobytes(), self.eval.fill_mask("the [MASK]", targets=["sun", "east"])
        return [p.numpy().tobytes() for p in parameters], results, repr(self.eval), repr(self.train), random.get_state()[0]

    # ------------------------------------------------------------------------------------- models on ids

    def batch(self, rng: Rng, function: Callable[..., Any]) -> Call:
        shape = (int(rng.integers(0, 4)), int(rng.integers(0, P + 1)))
        masks = (None, rng.integers(0, 2, shape), rng.random(shape) < 0.7, np.zeros(shape, int), np.ones(shape))
        call = Call(function, {})
        call.add(
            lambda rng, value: spoiled(rng, rng.integers(0, P, shape) if value is None else value),
            input_ids=rng.integers(0, V, shape),
            attention_mask=one(rng, *masks),
            token_type_ids=one(rng, None, rng.integers(0, TYPES, shape)),
            position_ids=one(rng, None, rng.integers(0, P, shape)),
            inputs_embeds=None,
        )
        if rng.random() < 0.25:
            call.arguments |= {"input_ids": None, "inputs_embeds": floats(rng, *shape, C)}
        return call

    def labelled(self, rng: Rng, function: Callable[..., Any]) -> Call:
        call = self.batch(rng, function)
        mask = call.arguments["attention_mask"]
        labels = rng.integers(0, V, shape_of(call.arguments))
        is_asked = rng.random(labels.shape) < 0.5
        if mask is not None and rng.random() < 0.9:
            is_asked &= mask != 0
        call.add(spoiled, labels=np.where(is_asked, labels, -100))
        call.add(instead(*NUMBERS), ignore_index=-100)
        return call

    def add_seed(self, rng: Rng, call: Call) -> Call:
        call.add(instead(*NUMBERS), seed=one(rng, None, 0, 2**64 - 1))
        return call

    def add_masking(self, call: Call) -> None:
        call.add(instead(*NUMBERS, "0.5", [0.5], np.array([0.5, 0.5])), mlm_probability=0.5, mask_replace_prob=0.5, random_replace_prob=0.5)
        call.add(instead(*NUMBERS, V - 1, V), mask_token_id=4, ignore_index=-100)

    def model_forward(self, rng: Rng) -> Call:
        call = self.batch(rng, one(rng, self.eval, self.train))
        call.check = lambda result, arguments: want_tensor(result, np.float32, (*shape_of(arguments), V))
        return self.add_seed(rng, call)

    def model_backbone(self, rng: Rng) -> Call:
        def check(result: Any, arguments: dict[str, Any]) -> None:
            want_tensor(result[0], np.float32, (*shape_of(arguments), C))
            if result[1] is not None:
                want_tensor(result[1], np.float32, (shape_of(arguments)[0], C))

        call = self.batch(rng, one(rng, self.backbone, self.headless))
        call.check = check
        return self.add_seed(rng, call)

    def model_traced(self, rng: Rng) -> Call:
        call = self.batch(rng, one(rng, self.eval, self.backbone))
        call.add(instead(*NUMBERS, "no"), output_hidden_states=bool(rng.integers(2)), output_attentions=bool(rng.integers(2)))
        return call

    def model_predict(self, rng: Rng) -> Call:
        def check(result: Any, arguments: dict[str, Any]) -> None:
            want_tensor(result, np.int64, shape_of(arguments))
            want(((result.numpy() >= 0) & (result.numpy() < V)).all(), "a predicted id is outside the vocabulary")

        call = self.batch(rng, one(rng, self.eval, self.train).predict_token_ids)
        call.check = check
        return call

    def model_loss(self, rng: Rng) -> Call:
        def check(result: Any, arguments: dict[str, Any]) -> None:
            want_tensor(result, np.float32, (math.prod(shape_of(arguments)),) if arguments["reduction"] is None else ())

        call = self.labelled(rng, one(rng, self.eval, self.train).get_loss)
        call.add(instead("none", "Mean", "", "max", 0, np.array(["mean"])), reduction=one(rng, "mean", "sum", None))
        call.check = check
        return self.add_seed(rng, call)

    def model_backward(self, rng: Rng) -> Call:
        """In train mode, forward and back."""

        def use(gradient: Any, **arguments: Any) -> Any:
            self.train.zero_grad()
            self.train.get_loss(**arguments).backward(gradient)
            for parameter in self.train.parameters():
                want(parameter.grad is None or parameter.grad.shape == parameter.shape, "a gradient of another shape than its parameter")
            return [lucid.Tensor(p.grad) for p in self.train.parameters() if p.grad is not None]

        call = self.labelled(rng, use)
        call.add(instead(1.0, np.float32(2), np.zeros(3), NAN, "a", [1.0], 1j, np.array(1 + 2j)), gradient=None)
        call.also_allowed = (RuntimeError,)
        return self.add_seed(rng, call)

    def model_accuracy(self, rng: Rng) -> Call:
        def check(result: Any, arguments: dict[str, Any]) -> None:
            want_tensor(result, np.float32, ())
            want(0 <= result.item() <= 1, f"an accuracy of {result.item()}")

        call = self.labelled(rng, one(rng, self.eval, self.train).get_accuracy)
        call.check = check
        return call

    def model_mask(self, rng: Rng) -> Call:
        def check(result: Any, arguments: dict[str, Any]) -> None:
            for part in result:
                want_tensor(part, np.int64, shape_of(arguments))

        shape = (int(rng.integers(0, 4)), int(rng.integers(0, P + 1)))
        call = Call(one(rng, self.eval, self.train).create_masked_lm_inputs, {}, check=check)
        masks = (None, rng.integers(0, 2, shape), rng.random(shape) < 0.3)
        call.add(
            lambda rng, value: spoiled(rng, rng.integers(0, 2, shape) if value is None else value),
            input_ids=rng.integers(0, V, shape),
            attention_mask=one(rng, *masks),
            special_tokens_mask=one(rng, *masks),
        )
        self.add_masking(call)
        return self.add_seed(rng, call)

    # ----------------------------------------------------------------------------------- models on texts

    def on_texts(self, rng: Rng, function: Callable[..., Any]) -> Call:
        call = Call(function, {})
        call.add(instead(self.other_tokenizer, WORDS, models.BERTTokenizerFast, "bert-base-uncased"), tokenizer=self.tokenizer)
        call.add(instead(*ODD_TEXTS), text_a=one(rng, one(rng, *TEXTS), [one(rng, *TEXTS) for _ in range(int(rng.integers(0, 4)))]))
        call.add(instead(*ODD_TEXTS, *TEXTS), text_b=None)
        call.add(instead("gpu", "cuda", "CPU", "", 0, np.array(["cpu"])), device="cpu")
        return call

    def model_loss_from_text(self, rng: Rng) -> Call:
        call = self.on_texts(rng, self.eval.get_loss_from_text)
        self.add_masking(call)
        call.add(instead("none", "", 0), reduction=one(rng, "mean", "sum", None))
        return self.add_seed(rng, call)

    def model_predict_from_text(self, rng: Rng) -> Call:
        return self.on_texts(rng, self.eval.predict_token_ids_from_text)

    def model_fill_mask(self, rng: Rng) -> Call:
        def check(result: Any, arguments: dict[str, Any]) -> None:
            for row in [result] if isinstance(arguments["texts"], str) else result:
                want(all(0 <= fill.score <= 1 + 1e-6 for mask in row for fill in mask), "a probability above 1")

        call = Call(self.eval.fill_mask, {}, check=check)
        call.add(instead(*ODD_TEXTS, *TEXTS), texts=one(rng, "the [MASK] rises", ["a [MASK]", "[MASK] [MASK]"]))
        call.add(instead(*NUMBERS, V, V + 1), top_k=3)
        wrong = (
            [],
            ["nowhere"],
            "sun",
            [5],
            [None],
            ["the sun"],
            {"sun": 1},
            (),
            np.array(["sun", "east"]),
            [""],
            ["[MASK]"],
            iter(["sun"]),
            b"sun",
        )
        call.add(instead(["sun"], ["sun", "sun"], *wrong), targets=None)
        call.add(instead(self.tokenizer, self.other_tokenizer, WORDS), tokenizer=None)
        return call

    # ----------------------------------------------------------------------------------------- tokenizer

    def api_tokenizer(self, rng: Rng) -> Call:
        ids = rng.integers(0, len(WORDS), 4)
        text = one(rng, "the sun", "a [MASK]")
        limit = {"max_length": 8, "truncation": True}
        name, arguments = one(
            rng,
            ("tokenize", {"text": text}),
            ("encode", {"text": text, "text_pair": None, **limit}),
            ("encode_plus", {"text_a": text, "text_b": text, "return_offsets": True, "return_word_ids": False, **limit}),
            ("encode_batch", {"texts": [text, text], "padding": True, **limit}),
            ("encode_pretraining_inputs", {"text_a": text, "text_b": None, "return_tensor": True, "device": "cpu"}),
            ("decode", {"ids": ids, "skip_special_tokens": True}),
            ("batch_decode", {"ids": [ids, ids]}),
            ("convert_ids_to_tokens", {"ids": ids}),
            ("convert_tokens_to_ids", {"tokens": ["the", "x"]}),
            ("convert_tokens_to_string", {"tokens": ["the", "##s"]}),
            ("build_inputs_with_special_tokens", {"ids_a": [5, 6], "ids_b": [7]}),
        )
        wrong = instead("", [], *EDGES, ["a", None], [[1], [2**70]], ["a", "a"], "\ud800")
        call = Call(getattr(self.tokenizer, name), {})
        for name, value in arguments.items():
            call.add(small if isinstance(value, np.ndarray) else wrong, **{name: value})
        return call

    def api_tokenizer_new(self, rng: Rng) -> Call:
        shifted = {word: i + 1 for i, word in enumerate(WORDS)}
        call = Call(models.BERTTokenizerFast, {})
        call.add(
            instead("x", [], {}, {"a": 1}, {"[UNK]": -1}, WORDS[1:], [*WORDS, "the"], [*WORDS, 5], shifted, *EDGES, "[CLS]", "\n"),
            vocab=WORDS,
            unk_token="[UNK]",
            mask_token="[MASK]",
            lowercase=True,
            wordpieces_prefix="##",
            max_input_chars_per_word=100,
        )
        return call

    # --------------------------------------------------------------------------------- models as objects

    def api_config(self, rng: Rng) -> Call:
        whole = vars(models.BERTConfig.sized(1, C, **SIZES))
        kind = one(rng, models.BERT, models.BERTForMaskedLM)
        call = Call(lambda **changes: kind(models.BERTConfig(**{**whole, **changes})), {})
        call.add(instead(*NUMBERS, "gelu", "relu", "x"), **{str(name): whole[name] for name in rng.permutation(list(whole))[:3]})
        return call

    def api_factory(self, rng: Rng) -> Call:
        factory = one(rng, models.bert_for_masked_lm_tiny, models.bert_for_masked_lm_mini, models.BERTConfig.base, models.BERTConfig.large)
        values = {"vocab_size": 30, "hidden_act": "relu", "pad_token_id": 3, "hidden_size": 128, "num_hidden_layers": 3, "nonsense": 1}
        name = one(rng, *values)
        return Call(factory, {name: values[name]}, {name: instead(*NUMBERS)})

    def api_new_model(self, rng: Rng) -> Call:
        wrong = instead(self.tokenizer, {"vocab_size": 5}, models.BERTConfig)
        return Call(one(rng, models.BERT, models.BERTForMaskedLM), {"config": self.eval.config}, {"config": wrong})

    def api_set_embeddings(self, rng: Rng) -> Call:
        model = models.BERTForMaskedLM(self.eval.config)
        table, decoder = nn.Embedding(V, C, nn.init.zeros), nn.Linear(C, V, nn.init.zeros)
        others = (table, decoder, nn.Embedding(V + 1, C, nn.init.zeros), nn.Linear(V, C, nn.init.zeros), nn.LayerNorm(C, 1e-5), nn.Module())
        if rng.random() < 0.5:
            return Call(model.set_input_embeddings, {"table": table}, {"table": instead(*others)})
        return Call(model.set_output_embeddings, {"decoder": decoder}, {"decoder": instead(*others)})

    def api_resize(self, rng: Rng) -> Call:
        model = models.BERTForMaskedLM(self.eval.config)

        def use(n_words: Any) -> Any:
            before = repr(model), model.config
            try:
                model.resize_token_embeddings(n_words)
            except ALLOWED:
                want((repr(model), model.config) == before, "a refused size changed the model")
                raise
            return model([[0]])

        # Not 2**24 to 2**32 rows, which one may want and would get.
        sizes = [n for n in NUMBERS if not (isinstance(n, int) and 2**16 < n <= 2**32)]
        return Call(use, {"n_words": one(rng, V + 1, V, 5, 1)}, {"n_words": instead(*sizes)})

    def api_load_state(self, rng: Rng) -> Call:
        state = dict(self.eval.state_dict())
        name = one(rng, *state)
        state[name] = state[name] if rng.random() < 0.2 else spoiled(rng, state[name])
        call = Call(models.BERTForMaskedLM(self.eval.config).load_state_dict, {})
        call.add(instead({}, {"x": 1}, {name: None}, list(state.items()), {5: 5}, [1], "state"), state=state)
        call.add(instead(0, "no"), strict=bool(rng.integers(2)))
        return call

    def api_parameter(self, rng: Rng) -> Call:
        shape = one(rng, (), (3,), (2, 3))
        return Call(nn.Parameter(shape, nn.init.zeros).assign, {"values": np.ones(shape, np.float32)}, {"values": spoiled})

    def api_module_to(self, rng: Rng) -> Call:
        return Call(self.eval.to, {"device": "cpu"}, {"device": instead("gpu", "cuda", "CPU", "", "cuda:0", 0, np.array(["cpu"]))})

    def api_from_pretrained(self, rng: Rng) -> Call:
        kind = one(rng, models.BERT, models.BERTForMaskedLM, models.BERTTokenizerFast)
        call = Call(lambda folder: kind.from_pretrained(folder), {}, also_allowed=(OSError,))
        call.add(instead("", "/", Path("nowhere"), "org/name", "a/b/c", "a\nb", "-", *NO_PLACES), folder=self.folder)
        return call

    def api_save_pretrained(self, rng: Rng) -> Call:
        place = one(rng, *NO_PLACES, f"{self.folder}/{'x' * 300}", f"{self.folder}/config.json")  # where nothing can be made
        return Call(self.eval.save_pretrained, {"folder": place}, also_allowed=(OSError,))

    def api_optimizer(self, rng: Rng) -> Call:
        model = models.BERT(self.headless.config)
        for parameter in model.parameters():
            parameter.grad = np.ones(parameter.shape, np.float32)

        def use(loss: Any, batch: Any, divisor: Any, n_warmup: Any, n_steps: Any, decay: Any, final: Any, **settings: Any) -> Any:
            optimizer = optim.AdamW(**settings)
            schedule = optim.Schedule(optimizer, n_warmup, n_steps, decay, final)
            schedule.load_state_dict(schedule.state_dict())
            schedule.step()
            optimizer.step(loss, batch=batch, divisor=divisor)
            optimizer.load_state_dict(optimizer.state_dict())
            return [lucid.Tensor(parameter) for parameter in model.parameters()]

        call = Call(use, {}, also_allowed=(optim.NonFiniteError, RuntimeError))
        bias = model.embeddings.layer_norm.bias
        call.add(instead([], [{"params": []}], [{"params": [5]}], [bias] * 2, model.parameters(), [bias]), params=model)
        call.add(instead((0.9,), (0.9, 1.0), (NAN, 0.5), (1, 2, 3), *NUMBERS), betas=(0.9, 0.999))
        call.add(instead(*NUMBERS), lr=1e-3, eps=1e-8, weight_decay=0.01, max_grad_norm=1.0)
        call.add(instead(*NUMBERS, lucid.Tensor(1.0)), loss=1.0, batch=None, divisor=3, n_warmup=2, n_steps=5, decay="linear", final=0.1)
        return call

    # --------------------------------------------------------------------------------------------- lucid

    def api_tensor(self, rng: Rng) -> Call:
        def use(data: Any, dtype: Any, device: Any, index: Any, target: Any) -> Any:
            tensor = lucid.Tensor(data, dtype, device)
            want(tensor.dtype.kind in "biuf", f"a Tensor of {tensor.dtype}")
            repr(tensor), tensor.tolist()
            moved = tensor.to(target)
            want(moved.dtype.kind in "biuf", f"to({target!r:.30}) made a Tensor of {moved.dtype}")
            part = tensor[index]
            return one(rng, part.item, part.__len__, part.__float__, part.__int__, part.__bool__, part.numpy, lambda: list(part))()

        call = Call(use, {}, also_allowed=(OverflowError,))  # int(inf), as everywhere in Python
        data = one(rng, np.arange(6).reshape(2, 3), np.ones(1, np.float32), [1.5, 2.5], [[1, 2]])
        call.add(lambda rng, value: small(rng, np.asarray(value)), data=data)
        call.add(instead("f4", np.int8, "nonsense", object, str, "M8", "V4", complex, [("a", "f4")]), dtype=None)
        call.add(instead("gpu", "cuda", "CPU", "", 0), device="cpu")
        call.add(instead(*EDGES, (0, 0), slice(None, None, -1), ..., np.array([0, -1]), [True, False], 1.5), index=0)
        call.add(instead("gpu", "f4", np.int64, "nonsense", object, None, str, complex), target="cpu")
        return call

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

        return Call(use, {"seed": 3, "calls": 0}, {"seed": instead(*NUMBERS), "calls": instead(*NUMBERS)})

    def api_threads(self, rng: Rng) -> Call:
        def use(n: Any) -> None:
            before = lucid.get_num_threads()
            try:
                lucid.set_num_threads(n)
                want(1 <= lucid.get_num_threads() <= 1024, f"{lucid.get_num_threads()} threads")
            finally:
                lucid.set_num_threads(before)

        return Call(use, {"n": 2}, {"n": instead(*NUMBERS)})

    # ----------------------------------------------------------------------------------------------- ops

    def op_activation(self, rng: Rng) -> Call:
        call = op_call(activation, 1, x=floats(rng, int(rng.integers(0, 4)), 5))
        call.add(instead("", "GELU", 1), name=one(rng, "gelu", "gelu_new", "relu", "silu", "tanh", "exp", "erf"))
        call.check = lambda result, arguments: want(result.shape == np.shape(arguments["x"]), "another shape came back")
        return call

    def op_layer_norm(self, rng: Rng) -> Call:
        x = floats(rng, int(rng.integers(0, 4)), C)
        return op_call(layer_norm, 4, x=x, gain=floats(rng, C), bias=floats(rng, C), residual=one(rng, None, x), eps=1e-5)

    def op_linear(self, rng: Rng) -> Call:
        m, k, n = int(rng.integers(0, 6)), int(rng.integers(1, 9)), int(rng.integers(1, 60))
        begin = int(rng.integers(0, n))
        columns = one(rng, None, (begin, int(rng.integers(begin, n + 1))))
        width = n if columns is None else columns[1] - columns[0]
        weight, residual = floats(rng, n, k), floats(rng, m, width)
        weights = (weight, PackedWeight.pack(weight))
        call = op_call(
            linear,
            4,
            x=floats(rng, m, k),
            weight=one(rng, *weights),
            bias=one(rng, None, floats(rng, n)),
            residual=one(rng, None, residual),
        )
        call.add(instead("", "GELU", 1), activation=one(rng, None, "gelu"))
        wrong = (
            (0, n + 1),
            (-1, n),
            (n, 0),
            (0, 2**40),
            (0.5, 1),
            (0,),
            (0, 1, 2),
            "ab",
            (None, 1),
            (0, 0),
            (NAN, 1),
            (0, 1.0),
            (2**70, 2**70),
        )
        call.add(instead(*wrong, np.array([0, 1])), columns=columns)
        return call

    def op_decoder(self, rng: Rng) -> Call:
        p, k, n = int(rng.integers(0, 5)), int(rng.integers(1, 9)), int(rng.integers(1, 60))
        weight = floats(rng, n, k)
        arrays = {"x": floats(rng, p, k), "weight": one(rng, weight, PackedWeight.pack(weight)), "bias": one(rng, None, floats(rng, n))}
        if rng.random() < 0.5:
            if rng.random() < 0.5:
                return op_call(decoder_loss, 3, **arrays, labels=ints(rng, n, p), divisor=p + 1)
            return op_call(decoder_cross_entropy, 3, **arrays, labels=ints(rng, n, p))

        def check(result: Any, arguments: dict[str, Any]) -> None:
            want(((result[1] >= 0) & (result[1] < arguments["weight"].shape[0])).all(), "a word outside the vocabulary")

        call = op_call(decoder_top_k, 3, **arrays, k=int(rng.integers(1, n + 1)))
        call.check = check
        return call

    def op_cross_entropy(self, rng: Rng) -> Call:
        p, n = int(rng.integers(0, 5)), int(rng.integers(1, 60))
        labels = np.where(rng.random(p) < 0.3, -100, rng.integers(0, n, p)).astype("i4")
        return op_call(cross_entropy, 1, logits=floats(rng, p, n), labels=labels, ignore_index=-100)

    def op_embedding(self, rng: Rng) -> Call:
        words, t = floats(rng, V, C), int(rng.integers(0, 6))
        tables = {"words": one(rng, words, PackedWeight.pack(words)), "positions": floats(rng, P, C), "types": floats(rng, TYPES, C)}
        ids = {"ids": ints(rng, V, t), "position_ids": ints(rng, P, t), "type_ids": ints(rng, TYPES, t)}
        return op_call(embedding, 5, **tables, gain=floats(rng, C), bias=floats(rng, C), **ids, eps=1e-5)

    def op_attention(self, rng: Rng) -> Call:
        lengths = rng.integers(0, 4, int(rng.integers(0, 4)))
        starts, width = starts_of(lengths), 2 * HEADS
        t = int(starts[-1])
        arrays = {"queries": floats(rng, t, 3 * width), "keys_values": None}
        if is_split := rng.random() < 0.5:
            arrays = {"queries": floats(rng, t, width), "keys_values": floats(rng, t, 2 * width)}
        call = op_call(attention, 2, **arrays, n_heads=HEADS)
        wrapped = [np.array([0, 2**31 - 1, -2, t], "i4"), np.array([0, -(2**31), t], "i4"), np.array([0, 2**30, t], "i4")]

        def wrong(rng: Rng, value: Any) -> Any:
            return one(rng, *wrapped, starts[::-1], starts + 1, *(small(rng, starts) for _ in range(6)))

        call.add(wrong, key_starts=starts, query_starts=starts if is_split else None)
        own = {"p": 0.3, "seed": 5, "stream": 1, "query_columns": ints(rng, 9, t), "key_columns": ints(rng, 9, t)}
        own["examples"] = np.arange(len(lengths), dtype="i4")

        def spoil(rng: Rng, value: Any) -> Any:
            name = one(rng, *own)
            return one(rng, junk(rng), 0.1, own, *(AttentionDropout(**{**own, name: by_kind(rng, own[name])}) for _ in range(4)))

        call.add(spoil, dropout=one(rng, None, AttentionDropout(**own)))
        return call

    def op_encoder(self, rng: Rng) -> Call:
        lengths = rng.integers(0, 4, int(rng.integers(0, 4)))
        starts, inner = starts_of(lengths), int(rng.integers(1, 60))
        pack, width = PackedWeight.pack, 2 * HEADS
        own = {
            "n_heads": HEADS,
            "activation": one(rng, "gelu", "relu", "tanh"),
            "qkv": pack(floats(rng, 3 * width, width)),
            "qkv_bias": floats(rng, 3 * width),
            "dense": pack(floats(rng, width, width)),
            "dense_bias": floats(rng, width),
            "attention_gain": floats(rng, width),
            "attention_bias": floats(rng, width),
            "attention_eps": 1e-5,
            "dense_in": pack(floats(rng, inner, width)),
            "in_bias": floats(rng, inner),
            "dense_out": pack(floats(rng, width, inner)),
            "out_bias": floats(rng, width),
            "gain": floats(rng, width),
            "bias": floats(rng, width),
            "eps": 1e-5,
        }

        def use(changes: Any, x: Any, starts: Any, layers: Any, rows: Any, row_starts: Any) -> Any:
            layers = [LayerWeights(**{**own, **changes})] if layers is None else layers
            return encoder(x, layers=layers, starts=starts, rows=rows, row_starts=row_starts)

        def spoil(rng: Rng, value: Any) -> Any:
            name = one(rng, *own)
            return {name: one(rng, junk(rng), by_kind(rng, own[name]), one(rng, *own.values()), pack(floats(rng, 3, 2)))}

        call = Call(use, {})
        call.add(spoil, changes={})
        call.add(by_kind, x=floats(rng, int(starts[-1]), width), starts=starts)
        call.add(instead([], [None], [own], (), "", 1), layers=None)
        asked = np.arange(int(starts[-1]), dtype="i4"), starts
        call.add(by_kind, **dict(zip(("rows", "row_starts"), one(rng, (None, None), asked), strict=True)))
        return call

    def op_attention_map(self, rng: Rng) -> Call:
        lengths = rng.integers(0, 4, int(rng.integers(0, 4)))
        starts = starts_of(lengths)
        columns = np.concatenate([np.arange(n) for n in (0, *lengths)]).astype("i4")
        call = op_call(attention_map, 1, qkv=floats(rng, int(starts[-1]), 6 * HEADS), n_heads=HEADS, starts=starts, columns=columns)
        call.add(instead(-1, 0, 2, 1.5, NAN), length=4)
        return call

    def op_dropout(self, rng: Rng) -> Call:
        t = int(rng.integers(0, 6))
        return op_call(dropout, 1, x=floats(rng, t, C), p=0.3, seed=5, stream=1, columns=ints(rng, 9, t), examples=ints(rng, 9, t))

    def op_mlm_mask(self, rng: Rng) -> Call:
        def check(result: Any, arguments: dict[str, Any]) -> None:
            want(all(part.shape == arguments["ids"].shape and part.dtype == np.int64 for part in result), "another shape or type came back")

        n = int(rng.integers(0, 20))
        places = {"may_mask": rng.integers(0, 2, n).astype("u1"), "columns": ints(rng, 9, n), "examples": ints(rng, 9, n)}
        call = op_call(
            mlm_mask, 1, ids=rng.integers(0, V, n), **places, special_ids=np.arange(5, dtype="i4"), vocab_size=V, mask_token_id=4
        )
        probabilities = {"mlm_probability": 0.5, "mask_replace_prob": 0.4, "random_replace_prob": 0.5}
        call.add(by_kind, seed=5, **probabilities, ignore_index=-100, epoch=0)
        call.check = check
        return call

    def op_rows(self, rng: Rng) -> Call:
        t = int(rng.integers(1, 6))
        if rng.random() < 0.5:
            return op_call(gather_rows, 1, x=floats(rng, t, C), rows=ints(rng, t, 3))
        call = op_call(scatter_rows, 1, x=floats(rng, t, C), rows=np.arange(t, dtype="i4") + int(rng.integers(3)))
        call.add(instead(0, -1, t, 1.5, NAN), n_rows=t + 3)
        return call

    def op_total(self, rng: Rng) -> Call:
        op, name, value = one(rng, (total, "divisor", 2.0), (scale, "factor", 2.0), (reshape, "shape", (-1,)))
        call = op_call(op, 1, x=floats(rng, int(rng.integers(0, 5))))
        call.add(instead((), (2, 2), 5, (0.5,), (2**40,)) if name == "shape" else instead(0, -1, 1e-3, 1000, NAN, INF), **{name: value})
        return call

    def op_adamw(self, rng: Rng) -> Call:
        if rng.random() < 0.3:
            return op_call(sum_of_squares, 1, x=floats(rng, 3, 4))
        weights = {"weight": floats(rng, 3, 4), "d_weight": floats(rng, 3, 4), "m": floats(rng, 3, 4), "v": abs(floats(rng, 3, 4))}
        return op_call(adamw_step, 4, **weights, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01, step=1, scale=1.0)


# ---------------------------------------------------------------------------------------------------- calls


def make_call(world: World, rng: Rng) -> tuple[str, Call]:
    """Return a call with no, one or several arguments spoiled, at times one left out or one too many."""
    maker = world.makers[int(rng.choice(len(world.makers), p=world.shares))]
    call: Call = maker(rng)
    n_spoiled = one(rng, 0, 1, 1, 1, 1, 2, 3)
    for name in rng.permutation(list(call.spoilers))[:n_spoiled]:
        call.arguments[name] = call.spoilers[name](rng, call.arguments[name])
    if rng.random() < 0.02 and call.arguments:
        del call.arguments[one(rng, *call.arguments)]
        call.check = lambda result, arguments: None
    if rng.random() < 0.02:
        call.arguments["nonsense"] = junk(rng)
    return maker.__name__, call


def arrays_in(result: Any) -> list[np.ndarray[Any, Any]]:
    if isinstance(result, (tuple, list)):
        return [part for piece in result for part in arrays_in(piece)]
    return [np.asarray(result)] if isinstance(result, (lucid.Tensor, np.ndarray)) else []


def run_call(call: Call) -> str:
    """Make a call; return what came of it, or raise AssertionError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        has_finite_input = is_finite(call.arguments)
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error" if has_finite_input else "ignore")
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
        if has_finite_input:
            want(all(np.isfinite(part).all() for part in arrays_in(result)), "the result is not finite")
    seconds = time.perf_counter() - begin
    want(seconds < MOST_SECONDS, f"took {seconds:.1f} s")
    return outcome


def describe(call: Call) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, np.ndarray):
            text = f"{value.dtype}{value.shape}"
            return f"{type(value).__name__} {text} {value.tolist() if value.size <= 12 and not is_huge(value) else ''}"
        return f"{type(value).__name__} {value!r:.120}"

    return "".join(f"    {name} = {shown(value):.300}\n" for name, value in call.arguments.items())


def place_of(error: BaseException) -> str:
    """Return the last line of lucid's own that an error came through."""
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    inside = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "/lucid/" in frame.filename]
    return inside[-1] if inside else "no line of lucid"


def main(n_calls: int, seed: int, first: int = 0) -> int:
    """Make the calls; return the exit status."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    outcomes: Counter[str] = Counter()
    failures: set[str] = set()
    begin, work = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        world = World(folder)
        before = world.fingerprint()
        for i in range(first, first + n_calls):
            rng = np.random.default_rng([seed, i])
            os.write(1, b"%d\n" % i)
            if i % 64 == 0 or i == first:
                faulthandler.dump_traceback_later(12 * MOST_SECONDS, exit=True)
            lucid.set_num_threads(1 if i % 8 else 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                name, call = make_call(world, rng)
            try:
                outcomes[f"{name} {run_call(call)}"] += 1
            except AssertionError as error:
                where, kind = place_of(error), re.sub(r"'.*?'|[0-9]+", "", str(error))[:60]
                if (failure := f"{name} {where} {kind}") not in failures:
                    failures.add(failure)
                    trace = "".join(traceback.format_exception(error)) if n_calls == 1 else ""
                    print(f"call {i}, {name}: {error!s:.300}\n    at {where}\n{describe(call)}{trace}", file=sys.stderr, flush=True)
        faulthandler.cancel_dump_traceback_later()
        if world.fingerprint() != before:
            failures.add("state")
            print("a wrong call changed a model or the seed", file=sys.stderr)
    seconds = {"seconds": round(time.perf_counter() - begin, 1), "processor_seconds": round(time.process_time() - work, 1)}
    print(json.dumps({"calls": n_calls, **seconds, "failures": len(failures), "outcomes": dict(sorted(outcomes.items()))}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
