"""Checkpoint folders as people have them: what is read, what is reported, what is refused, what is written."""

import json
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors.numpy
from safetensors import SafetensorError

import lucid
from lucid import FormatError
from lucid.models import BERT, BERTConfig, BERTForMaskedLM, BERTTokenizerFast
from lucid.models.checkpoint import load_tensors

Tensors = dict[str, np.ndarray[Any, Any]]
V, C, HEADS, LAYERS, F, P, TYPES = 11, 8, 2, 2, 12, 6, 2
CONFIG: dict[str, Any] = {
    "model_type": "bert", "vocab_size": V, "hidden_size": C, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    "intermediate_size": F, "max_position_embeddings": P, "type_vocab_size": TYPES,
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {
    "bert.embeddings.word_embeddings.weight": (V, C),
    "bert.embeddings.position_embeddings.weight": (P, C),
    "bert.embeddings.token_type_embeddings.weight": (TYPES, C),
    "bert.embeddings.LayerNorm.weight": (C,),
    "bert.embeddings.LayerNorm.bias": (C,),
    "cls.predictions.transform.dense.weight": (C, C),
    "cls.predictions.transform.dense.bias": (C,),
    "cls.predictions.transform.LayerNorm.weight": (C,),
    "cls.predictions.transform.LayerNorm.bias": (C,),
    "cls.predictions.bias": (V,),
}
for _i in range(LAYERS):
    for _name, _shape in {
        "attention.self.query": (C, C), "attention.self.key": (C, C), "attention.self.value": (C, C), "attention.output.dense": (C, C),
        "attention.output.LayerNorm": (C,), "intermediate.dense": (F, C), "output.dense": (C, F), "output.LayerNorm": (C,),
    }.items():  # fmt: skip
        SHAPES[f"bert.encoder.layer.{_i}.{_name}.weight"] = _shape
        SHAPES[f"bert.encoder.layer.{_i}.{_name}.bias"] = _shape[:1]
POOLER = {"bert.pooler.dense.weight": (C, C), "bert.pooler.dense.bias": (C,)}
HEAD = [name for name in SHAPES if name.startswith("cls.")]
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
BIAS, DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def drawn(shape: tuple[int, ...], *what: object) -> np.ndarray[Any, Any]:
    """Return the numbers that stand for something: others for another thing."""
    return np.random.default_rng(list(repr(what).encode())).standard_normal(shape).astype(np.float32)


def hugging_face() -> Tensors:
    """Return the tensors of a masked LM by today's names."""
    return {name: drawn(shape, name) for name, shape in SHAPES.items()}


def expected(tensors: Tensors) -> Tensors:
    """Return what `state_dict()` must hold for tensors by today's names: the names written out once more, by hand."""
    state = {
        "bert.embeddings.word_embeddings.weight": tensors[WORDS],
        "bert.embeddings.position_embeddings.weight": tensors["bert.embeddings.position_embeddings.weight"],
        "bert.embeddings.token_type_embeddings.weight": tensors["bert.embeddings.token_type_embeddings.weight"],
        "bert.embeddings.layer_norm.weight": tensors["bert.embeddings.LayerNorm.weight"],
        "bert.embeddings.layer_norm.bias": tensors["bert.embeddings.LayerNorm.bias"],
        "cls.predictions.transform.dense.weight": tensors["cls.predictions.transform.dense.weight"],
        "cls.predictions.transform.dense.bias": tensors["cls.predictions.transform.dense.bias"],
        "cls.predictions.transform.layernorm.weight": tensors["cls.predictions.transform.LayerNorm.weight"],
        "cls.predictions.transform.layernorm.bias": tensors["cls.predictions.transform.LayerNorm.bias"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }
    for i in range(LAYERS):
        layer = f"bert.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            state[f"{layer}.attention.qkv.{kind}"] = np.concatenate(
                [tensors[f"{layer}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            )
            state[f"{layer}.attention.dense.{kind}"] = tensors[f"{layer}.attention.output.dense.{kind}"]
            state[f"{layer}.attention.layer_norm.{kind}"] = tensors[f"{layer}.attention.output.LayerNorm.{kind}"]
            state[f"{layer}.feed_forward.dense_in.{kind}"] = tensors[f"{layer}.intermediate.dense.{kind}"]
            state[f"{layer}.feed_forward.dense_out.{kind}"] = tensors[f"{layer}.output.dense.{kind}"]
            state[f"{layer}.feed_forward.layer_norm.{kind}"] = tensors[f"{layer}.output.LayerNorm.{kind}"]
    return state


def assert_state(model: lucid.nn.Module, wanted: Tensors) -> None:
    """Raise unless the model's parameters are exactly these, to the bit."""
    state = model.state_dict()
    assert state.keys() == wanted.keys()
    for name, values in wanted.items():
        assert state[name].dtype == np.float32
        np.testing.assert_array_equal(state[name], values, err_msg=name, strict=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    path.mkdir()
    return path


def write_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def write(folder: Path, tensors: Tensors, file: str = "model.safetensors", **config: Any) -> Path:
    """Make a checkpoint folder."""
    write_config(folder, **config)
    safetensors.numpy.save_file(tensors, folder / file)
    return folder


def write_shards(folder: Path, tensors: Tensors, n_shards: int = 3, **config: Any) -> Path:
    """Make a checkpoint folder with the tensors dealt out to shards, as large models have it."""
    write_config(folder, **config)
    weight_map = {}
    for i in range(n_shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        part = dict(list(tensors.items())[i::n_shards])
        safetensors.numpy.save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def write_raw(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Write a safetensors file of any types."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def renamed(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    """Return the tensors under names in which the first of each pair is replaced by the second."""
    result = {}
    for name, values in tensors.items():
        for old, new in pairs:
            name = name.replace(old, new)
        result[name] = values
    return result


def without(tensors: Tensors, *names: str) -> Tensors:
    assert tensors.keys() >= set(names)
    return {name: values for name, values in tensors.items() if name not in names}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where the body hangs."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"not back after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class TestNames:
    """Spellings; a load warns of nothing here, since warnings are errors in this suite."""

    def test_plain(self, folder):
        model = BERTForMaskedLM.from_pretrained(write(folder, hugging_face()))
        assert_state(model, expected(hugging_face()))
        assert not model.training
        assert model.config.tie_word_embedding and not model.config.add_pooling_layer
        decoder, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        assert decoder is table
        report = model.load_report
        assert report is not None
        assert (report.missing, report.unexpected, report.ignored, report.notes, report.is_tied) == ((), (), (), (), True)
        assert report.n_loaded == len(list(model.parameters()))
        assert str(report) == f"loaded {report.n_loaded} parameters; decoder and word table are tied"

    def test_path_as_text(self, folder):
        assert_state(BERTForMaskedLM.from_pretrained(str(write(folder, hugging_face()))), expected(hugging_face()))

    @pytest.mark.parametrize("n_shards", [1, 3, 7])
    def test_shards(self, folder, n_shards):
        model = BERTForMaskedLM.from_pretrained(write_shards(folder, hugging_face(), n_shards))
        assert_state(model, expected(hugging_face()))

    def test_single_file_before_shards(self, folder):
        write_shards(folder, {name: values + 1 for name, values in hugging_face().items()})
        write(folder, hugging_face())
        assert_state(BERTForMaskedLM.from_pretrained(folder), expected(hugging_face()))

    SPELLINGS: ClassVar = {
        "gamma and beta": [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")],
        "lucid 2.14": [("LayerNorm", "layernorm"), ("cls.predictions.bias", "cls.predictions.decoder.bias")],
        "layer_norm": [("LayerNorm", "layer_norm")],
        "layernorm with gamma": [("LayerNorm.weight", "layernorm.gamma"), ("LayerNorm.bias", "layernorm.beta")],
        "data parallel": [("bert.", "module.bert."), ("cls.", "module.cls.")],
        "compiled": [("bert.", "_orig_mod.bert."), ("cls.", "_orig_mod.cls.")],
        "both wrappers": [("bert.", "module._orig_mod.bert."), ("cls.", "module._orig_mod.cls.")],
        "both wrappers, turned": [("bert.", "_orig_mod.module.bert."), ("cls.", "_orig_mod.module.cls.")],
        "no prefix": [("bert.", "")],
        "wrapped without prefix": [("bert.", "module."), ("cls.", "module.cls.")],
        "bias at the decoder": [("cls.predictions.bias", "cls.predictions.decoder.bias")],
    }

    @pytest.mark.parametrize("spelling", SPELLINGS)
    def test_old_spellings(self, folder, spelling):
        tensors = renamed(hugging_face(), *self.SPELLINGS[spelling])
        assert tensors.keys() != SHAPES.keys()
        assert_state(BERTForMaskedLM.from_pretrained(write(folder, tensors)), expected(hugging_face()))

    def test_old_spellings_in_shards(self, folder):
        """Whether there is a prefix is asked of all shards together: one of these holds no name with it."""
        tensors = renamed(hugging_face(), *self.SPELLINGS["gamma and beta"])
        order = sorted(tensors, key=lambda name: name.startswith("bert."))
        write_shards(folder, {name: tensors[name] for name in order}, n_shards=len(order))
        assert_state(BERTForMaskedLM.from_pretrained(folder), expected(hugging_face()))

    def test_everything_of_lucid_2_14(self, folder):
        """Its duplicates and buffers, too."""
        tensors = renamed(hugging_face(), *self.SPELLINGS["lucid 2.14"])
        extra = {
            "bert.output_embeddings.weight": drawn((V, C)), "bert.output_embeddings.bias": drawn((V,)),
            "bert.embeddings.position_ids": np.arange(P)[None], "bert.embeddings.token_type_ids": np.zeros((1, P), np.int64),
            "bert.pooler.dense.weight": drawn((C, C)), "bert.pooler.dense.bias": drawn((C,)),
            DECODER: tensors[WORDS].copy(),
        }  # fmt: skip
        model = BERTForMaskedLM.from_pretrained(write(folder, tensors | extra))
        assert_state(model, expected(hugging_face()))
        assert model.load_report.ignored == tuple(sorted(extra.keys() - {DECODER}))

    def test_not_needed_and_said_so(self, folder):
        extra = {
            "bert.pooler.dense.weight": drawn((C, C)), "bert.pooler.dense.bias": drawn((C,)),
            "cls.seq_relationship.weight": drawn((2, C)), "cls.seq_relationship.bias": drawn((2,)),
            "bert.embeddings.position_ids": np.arange(P)[None],
        }  # fmt: skip
        model = BERTForMaskedLM.from_pretrained(write(folder, hugging_face() | extra))
        assert_state(model, expected(hugging_face()))
        assert model.load_report.ignored == tuple(sorted(extra))
        assert model.load_report.unexpected == ()
        assert f"ignored, not needed: {', '.join(sorted(extra))}" in str(model.load_report)

    def test_unexpected_are_named_as_the_file_names_them(self, folder):
        extra = {f"module.extra.{i}": drawn((1,), i) for i in range(7)}
        tensors = renamed(hugging_face(), ("bert.", "module.bert."), ("cls.", "module.cls."))
        with pytest.warns(UserWarning) as caught:
            model = BERTForMaskedLM.from_pretrained(write(folder, tensors | extra))
        assert [str(warning.message) for warning in caught] == [
            f"checkpoint: the model has no place for {', '.join(f'module.extra.{i}' for i in range(5))} and 2 more"
        ]
        assert caught[0].filename == __file__
        assert_state(model, expected(hugging_face()))
        assert model.load_report.unexpected == tuple(sorted(extra))
        assert f"unexpected: {', '.join(sorted(extra))}" in str(model.load_report)

    @pytest.mark.parametrize("twice", ["bert.embeddings.LayerNorm.gamma", "module.bert.embeddings.LayerNorm.weight"])
    def test_one_tensor_under_two_names(self, folder, twice):
        write(folder, hugging_face() | {twice: drawn((C,))})
        with pytest.raises(FormatError) as caught:
            BERTForMaskedLM.from_pretrained(folder)
        assert "bert.embeddings.LayerNorm.weight" in str(caught.value) and twice in str(caught.value)

    def test_one_tensor_in_two_shards(self, folder):
        write_shards(folder, hugging_face())
        first = folder / "model-00001-of-00003.safetensors"
        safetensors.numpy.save_file(safetensors.numpy.load_file(first) | {QUERY: drawn((C, C))}, first)
        with pytest.raises(FormatError, match=r"model-0000.-of-00003.*self\.query\.weight.*model-00001-of-00003"):
            BERTForMaskedLM.from_pretrained(folder)


class TestParts:
    """Backbones under heads and heads without backbones."""

    def test_q_k_and_v_are_one_product(self, folder):
        """Rows 0 to C of the joined weight are the query's, then the key's, then the value's."""
        model = BERTForMaskedLM.from_pretrained(write(folder, hugging_face()))
        joined = model.state_dict()["bert.encoder.layer.1.attention.qkv.weight"]
        assert joined.shape == (3 * C, C)
        for i, part in enumerate(("query", "key", "value")):
            np.testing.assert_array_equal(joined[i * C : (i + 1) * C], hugging_face()[f"bert.encoder.layer.1.attention.self.{part}.weight"])

    @pytest.mark.parametrize("prefix", ["bert.", ""])
    def test_backbone_without_head(self, folder, prefix):
        """What BertModel saves: no head. An error by default; else the head starts at random, and the report says so."""
        bare = renamed(without(hugging_face(), *HEAD) | {name: drawn(shape, name) for name, shape in POOLER.items()}, ("bert.", prefix))
        write(folder, bare)
        with pytest.raises(FormatError) as caught:
            BERTForMaskedLM.from_pretrained(folder)
        assert str(caught.value) == (
            f"checkpoint: the checkpoint lacks {', '.join(sorted(HEAD))}. To let them start at random, pass strict=False."
        )
        lucid.manual_seed(7)
        model = BERTForMaskedLM.from_pretrained(folder, strict=False)
        assert model.load_report.missing == tuple(sorted(HEAD))
        assert model.load_report.ignored == tuple(f"{prefix}pooler.dense.{kind}" for kind in ("bias", "weight"))
        assert f"missing: {', '.join(sorted(HEAD))}" in str(model.load_report)
        lucid.manual_seed(7)
        fresh = BERTForMaskedLM(model.config).state_dict()
        loaded = expected(hugging_face())
        head = {name: values for name, values in fresh.items() if name.startswith("cls.")}
        assert_state(model, {name: head.get(name, values) for name, values in loaded.items()})
        assert head["cls.predictions.transform.dense.weight"].std() > 0

    @pytest.mark.parametrize("has_pooler", [False, True])
    @pytest.mark.parametrize("prefix", ["bert.", ""])
    def test_backbone(self, folder, has_pooler, prefix):
        """BERT reads a masked LM's folder and a BertModel's; it has a pooler where the folder has one."""
        tensors = hugging_face() if prefix else without(hugging_face(), *HEAD)
        pooler = {name: drawn(shape, name) for name, shape in POOLER.items()} if has_pooler else {}
        model = BERT.from_pretrained(write(folder, renamed(tensors | pooler, ("bert.", prefix))))
        wanted = {name.removeprefix("bert."): values for name, values in expected(hugging_face()).items() if name.startswith("bert.")}
        wanted |= {name.removeprefix("bert."): values for name, values in pooler.items()}
        assert_state(model, wanted)
        assert model.config.add_pooling_layer == has_pooler
        assert model.load_report.ignored == (tuple(sorted(HEAD)) if prefix else ())
        assert (model.load_report.missing, model.load_report.unexpected, model.load_report.is_tied) == ((), (), False)

    def test_half_a_pooler(self, folder):
        write(folder, hugging_face() | {"bert.pooler.dense.weight": drawn((C, C))})
        with pytest.raises(FormatError, match=r"lacks bert\.pooler\.dense\.bias\."):
            BERT.from_pretrained(folder)

    @pytest.mark.parametrize("name", sorted(SHAPES))
    def test_each_tensor_is_missed(self, folder, name):
        write(folder, without(hugging_face(), name))
        with pytest.raises(FormatError) as caught:
            BERTForMaskedLM.from_pretrained(folder)
        assert str(caught.value) == f"checkpoint: the checkpoint lacks {name}. To let them start at random, pass strict=False."

    def test_the_parts_of_q_k_and_v_that_are_there_are_used(self, folder):
        write(folder, without(hugging_face(), QUERY))
        model = BERTForMaskedLM.from_pretrained(folder, strict=False)
        assert model.load_report.missing == (QUERY,)
        assert model.load_report.unexpected == ()
        joined = model.state_dict()["bert.encoder.layer.1.attention.qkv.weight"]
        wanted = expected(hugging_face())["bert.encoder.layer.1.attention.qkv.weight"]
        np.testing.assert_array_equal(joined[C:], wanted[C:])
        assert joined[:C].std() > 0 and not np.array_equal(joined[:C], wanted[:C])


class TestTies:
    def test_equal_decoder(self, folder):
        model = BERTForMaskedLM.from_pretrained(write(folder, hugging_face() | {DECODER: hugging_face()[WORDS]}))
        assert_state(model, expected(hugging_face()))
        report = model.load_report
        assert report.is_tied and model.config.tie_word_embedding
        assert (report.unexpected, report.ignored, report.notes) == ((), (), ())

    def test_only_the_decoder(self, folder):
        tensors = without(hugging_face(), WORDS) | {DECODER: hugging_face()[WORDS]}
        assert_state(BERTForMaskedLM.from_pretrained(write(folder, tensors)), expected(hugging_face()))

    def test_other_decoder(self, folder):
        """Both there and different: config.json is wrong, and the numbers are right."""
        decoder = drawn((V, C), "decoder")
        write(folder, hugging_face() | {DECODER: decoder})
        with pytest.warns(UserWarning) as caught:
            model = BERTForMaskedLM.from_pretrained(folder)
        text = "config.json ties the decoder to the word table, but cls.predictions.decoder.weight differs from it: loaded untied"
        assert [str(warning.message) for warning in caught] == [text]
        assert caught[0].filename == __file__
        assert_state(model, expected(hugging_face()) | {DECODER: decoder})
        assert model.load_report.notes == (text,)
        assert text in str(model.load_report) and "not tied" in str(model.load_report)
        assert not model.load_report.is_tied and not model.config.tie_word_embedding

    def test_untied(self, folder):
        decoder = drawn((V, C), "decoder")
        model = BERTForMaskedLM.from_pretrained(write(folder, hugging_face() | {DECODER: decoder}, tie_word_embeddings=False))
        assert_state(model, expected(hugging_face()) | {DECODER: decoder})
        assert not model.load_report.is_tied and not model.config.tie_word_embedding

    def test_untied_without_decoder(self, folder):
        write(folder, hugging_face(), tie_word_embeddings=False)
        with pytest.raises(FormatError, match=r"lacks cls\.predictions\.decoder\.weight\."):
            BERTForMaskedLM.from_pretrained(folder)

    def test_both_biases_equal(self, folder):
        tensors = hugging_face() | {DECODER_BIAS: hugging_face()[BIAS]}
        model = BERTForMaskedLM.from_pretrained(write(folder, tensors))
        assert_state(model, expected(hugging_face()))
        assert (model.load_report.unexpected, model.load_report.ignored) == ((), ())

    def test_both_biases_different(self, folder):
        """Which one counts was tried on transformers 5.23: the decoder's."""
        other = drawn((V,), "other")
        write(folder, hugging_face() | {DECODER_BIAS: other})
        with pytest.warns(UserWarning, match=r"decoder\.bias and cls\.predictions\.bias differ"):
            model = BERTForMaskedLM.from_pretrained(folder)
        assert_state(model, expected(hugging_face() | {BIAS: other}))

    def test_untied_biases(self, folder):
        """Untied, transformers trains the decoder's bias and keeps the other as it was: no word about it."""
        extra = {DECODER: drawn((V, C), "decoder"), DECODER_BIAS: drawn((V,), "other")}
        model = BERTForMaskedLM.from_pretrained(write(folder, hugging_face() | extra, tie_word_embeddings=False))
        assert_state(model, expected(hugging_face() | {BIAS: extra[DECODER_BIAS]}) | {DECODER: extra[DECODER]})
        assert model.load_report.ignored == (BIAS,)


class TestTypes:
    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    def test_halves_and_doubles(self, folder, dtype):
        tensors = {name: values.astype(dtype) for name, values in hugging_face().items()}
        model = BERTForMaskedLM.from_pretrained(write(folder, tensors))
        assert_state(model, expected({name: values.astype(np.float32) for name, values in tensors.items()}))

    def test_brain_halves(self, folder):
        """bfloat16 is the upper half of a float32: what is cut off is zero afterwards."""
        upper = {name: values.view(np.uint32) & 0xFFFF0000 for name, values in hugging_face().items()}
        write_config(folder)
        raw = {name: ("BF16", bits.shape, (bits >> 16).astype("<u2").tobytes()) for name, bits in upper.items()}
        write_raw(folder / "model.safetensors", raw)
        model = BERTForMaskedLM.from_pretrained(folder)
        assert_state(model, expected({name: bits.view(np.float32) for name, bits in upper.items()}))

    def test_mixed(self, folder):
        kinds = (np.float16, np.float32, np.float64)
        tensors = {name: values.astype(kinds[i % 3]) for i, (name, values) in enumerate(hugging_face().items())}
        model = BERTForMaskedLM.from_pretrained(write(folder, tensors))
        assert_state(model, expected({name: values.astype(np.float32) for name, values in tensors.items()}))

    def test_values_that_are_not_finite_are_kept(self, folder):
        tensors = hugging_face()
        tensors[QUERY][0, :3] = np.nan, np.inf, -np.inf
        assert_state(BERTForMaskedLM.from_pretrained(write(folder, tensors)), expected(tensors))


class TestConfig:
    def load(self, folder: Path, content: str | bytes | dict[str, Any]) -> BERTConfig:
        """Return the configuration of a model that is loaded with this config.json."""
        write(folder, hugging_face())
        raw = json.dumps(content) if isinstance(content, dict) else content
        (folder / "config.json").write_bytes(raw.encode() if isinstance(raw, str) else raw)
        return BERTForMaskedLM.from_pretrained(folder).config

    def refusal(self, folder: Path, content: str | bytes | dict[str, Any]) -> str:
        with pytest.raises(FormatError) as caught:
            self.load(folder, content)
        return str(caught.value)

    def test_defaults(self, folder):
        """Of transformers' BertConfig; sizes that are not given are those of BERT-base."""
        config = self.load(folder, {key: CONFIG[key] for key in CONFIG if key != "type_vocab_size" and key != "model_type"})
        assert config == BERTConfig(
            vocab_size=V, hidden_size=C, num_attention_heads=HEADS, num_hidden_layers=LAYERS, intermediate_size=F, hidden_act="gelu",
            hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, max_position_embeddings=P, tie_word_embedding=True,
            type_vocab_size=2, initializer_range=0.02, layer_norm_eps=1e-12, use_cache=True, is_decoder=False, add_cross_attention=False,
            chunk_size_feed_forward=0, pad_token_id=0, bos_token_id=None, eos_token_id=None, classifier_dropout=None,
            add_pooling_layer=False,
        )  # fmt: skip
        text = self.refusal(folder, {"num_hidden_layers": LAYERS})
        assert text == f"model.safetensors: tensor {WORDS} has shape (11, 8), config.json makes it (30522, 768) (for {WORDS})"

    def test_every_value_is_read(self, folder):
        given = {
            "hidden_act": "gelu_new", "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0.25, "initializer_range": 0.5,
            "layer_norm_eps": 1e-5, "use_cache": False, "chunk_size_feed_forward": 3, "pad_token_id": 4, "bos_token_id": 5,
            "eos_token_id": 6, "classifier_dropout": 0.5, "type_vocab_size": 2,
        }  # fmt: skip
        config = self.load(folder, CONFIG | given)
        assert {name: getattr(config, name) for name in given} == given

    @pytest.mark.parametrize(
        "extra",
        [
            {"architectures": ["X"], "id2label": {"0": "a"}, "transformers_version": "9", "auto_map": {"AutoModel": "evil.Model"}},
            {"position_embedding_type": "absolute"},
            {"position_embedding_type": None},
            {"pad_token_id": None},
            {"torch_dtype": "bfloat16", "dtype": "float16", "gradient_checkpointing": False},
            {"__class__": "os.system", "custom": [{"deep": [1, 2, {"x": None}]}], "vocab_size ": 5},
        ],
    )
    def test_unknown_keys_are_data(self, folder, extra):
        assert self.load(folder, CONFIG | extra).vocab_size == V
        assert "evil" not in sys.modules

    def test_byte_order_mark(self, folder):
        assert self.load(folder, b"\xef\xbb\xbf" + json.dumps(CONFIG).encode()).hidden_size == C

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"model_type": "roberta"}, "config.json describes a model of type 'roberta'; lucid runs type 'bert'"),
            ({"model_type": None}, "config.json describes a model of type None; lucid runs type 'bert'"),
            ({"model_type": ["bert"]}, "config.json describes a model of type ['bert']; lucid runs type 'bert'"),
            ({"position_embedding_type": "relative_key"}, "config.json asks for 'relative_key' positions; lucid has absolute ones"),
            ({"position_embedding_type": 5}, "config.json asks for 5 positions; lucid has absolute ones"),
            (
                {"hidden_act": "mish"},
                "config.json: BERTConfig: hidden_act 'mish' is unknown; known: gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish, tanh",
            ),
            (
                {"is_decoder": True},
                "config.json: BERTConfig: is_decoder and add_cross_attention must be False: lucid runs BERT as an encoder",
            ),
            ({"num_attention_heads": 3}, "config.json: BERTConfig: hidden_size 8 must be a multiple of num_attention_heads 3"),
            ({"pad_token_id": V}, f"config.json: BERTConfig: pad_token_id must lie between 0 and {V - 1}, not {V}"),
            ({"pad_token_id": -1}, f"config.json: BERTConfig: pad_token_id must lie between 0 and {V - 1}, not -1"),
            ({"layer_norm_eps": 0}, "config.json: BERTConfig: layer_norm_eps must lie between 1e-30 and 1, not 0"),
            ({"hidden_dropout_prob": 1}, "config.json: BERTConfig: hidden_dropout_prob must be smaller than 1"),
            ({"tie_word_embeddings": "false"}, "config.json: tie_word_embeddings must be true or false, not 'false'"),
            ({"tie_word_embeddings": None}, "config.json: tie_word_embeddings must be true or false, not None"),
            ({"is_decoder": 0}, "config.json: is_decoder must be true or false, not 0"),
            ({"add_cross_attention": []}, "config.json: add_cross_attention must be true or false, not []"),
            ({"use_cache": "yes"}, "config.json: use_cache must be true or false, not 'yes'"),
        ],
    )
    def test_refused(self, folder, change, text):
        assert self.refusal(folder, CONFIG | change) == text

    @pytest.mark.parametrize(
        "key", ["vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "max_position_embeddings",
                "type_vocab_size"],
    )  # fmt: skip
    @pytest.mark.parametrize("value", [0, -1, 1 << 40, 10**30, "8", None, 8.0, True, [8], {"a": 8}])
    def test_sizes(self, folder, key, value):
        text = self.refusal(folder, CONFIG | {key: value})
        assert text.startswith("config.json: ") and key in text

    @pytest.mark.parametrize("key", ["hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps"])
    @pytest.mark.parametrize("value", [-0.1, 1e9, "0.1", None, True, [], float("nan"), float("inf")])
    def test_numbers(self, folder, key, value):
        text = self.refusal(folder, CONFIG | {key: value})
        assert text.startswith("config.json: ") and key in text

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            ("", "config.json is not JSON: "),
            ("{", "config.json is not JSON: "),
            ("{'a': 1}", "config.json is not JSON: "),
            (b"\xff\xfe{\x00}\x00", "config.json is not JSON: "),
            ('{"vocab_size": ' + "9" * 5000 + "}", "config.json is not JSON: "),
            ("[" * 100_000, "config.json is not JSON: "),
            ("[]", "config.json must hold a JSON object, not a list"),
            ("7", "config.json must hold a JSON object, not a int"),
            ("null", "config.json must hold a JSON object, not a NoneType"),
            (" " * ((16 << 20) + 1), f"config.json has {(16 << 20) + 1} bytes, more than {16 << 20}: too large for what it should hold"),
        ],
    )
    def test_no_json_object(self, folder, content, text):
        with within(5):
            assert self.refusal(folder, content).startswith(text)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
    @pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
    def test_not_a_file(self, folder, name, kind):
        """A pipe that nobody writes to must not be waited for."""
        write_shards(folder, hugging_face()) if "index" in name else write(folder, hugging_face())
        (folder / name).unlink()
        match kind:
            case "pipe":
                os.mkfifo(folder / name)
            case "folder":
                (folder / name).mkdir()
            case "device":
                (folder / name).symlink_to("/dev/zero")
        with within(5), pytest.raises(FormatError) as caught:
            BERTForMaskedLM.from_pretrained(folder)
        assert str(caught.value) == f"{name} is not a regular file"


class TestMissing:
    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere is no folder: give one that holds config\.json and model\.safetensors"):
            BERTForMaskedLM.from_pretrained(tmp_path / "nowhere")

    def test_a_file_for_a_folder(self, folder):
        write(folder, hugging_face())
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors is a file, no folder"):
            BERTForMaskedLM.from_pretrained(folder / "model.safetensors")

    @pytest.mark.parametrize("kind", [BERT, BERTForMaskedLM])
    def test_no_config(self, folder, kind):
        write(folder, hugging_face())
        (folder / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"config\.json is missing: a checkpoint folder holds config\.json and model"):
            kind.from_pretrained(folder)

    @pytest.mark.parametrize("kind", [BERT, BERTForMaskedLM])
    def test_no_weights(self, folder, kind):
        write_config(folder)
        with pytest.raises(FileNotFoundError, match=r"checkpoint holds neither model\.safetensors nor model\.safetensors\.index\.json;"):
            kind.from_pretrained(folder)

    def test_dangling_link(self, folder):
        """A cache of which only the links were copied: the file is named, not "no weights"."""
        write_config(folder)
        (folder / "model.safetensors").symlink_to("../blobs/0123")
        with pytest.raises(FileNotFoundError, match=r"checkpoint/model\.safetensors"):
            BERTForMaskedLM.from_pretrained(folder)

    @pytest.mark.parametrize("kind", [BERT, BERTForMaskedLM])
    @pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
    def test_pickle(self, folder, name, kind):
        """Refused with the way out, and not opened."""
        write_config(folder)
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
        with pytest.raises(FormatError) as caught:
            kind.from_pretrained(folder)
        assert str(caught.value) == (
            f"{name} is a pickle, which can run code when it is read; lucid reads safetensors only. Convert the folder once, where "
            "transformers and torch are installed: AutoModelForMaskedLM.from_pretrained(DIR).save_pretrained(DIR)"
        )

    def test_pickle_beside_safetensors(self, folder):
        write(folder, hugging_face())
        (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
        assert_state(BERTForMaskedLM.from_pretrained(folder), expected(hugging_face()))


class TestShardNames:
    LEAVING = (
        "", ".", "..", "../checkpoint2/model.safetensors", "../../etc/passwd", "./model.safetensors", "sub/model.safetensors", "sub/",
        "/etc/passwd", "/", "//", "/dev/zero", "/proc/self/environ", "a\0b", "\0", "..\\model.safetensors", "C:\\model.safetensors",
        "C:model.safetensors", "model.safetensors/.", "model.safetensors/", "~/model.safetensors", "file:///etc/passwd", "a/../b", "\n",
        "x\x1b[31m", "\ud800", "\udc80.safetensors", "x" * 256, "ä" * 200, "http://example.org/model.safetensors",
    )  # fmt: skip
    ABSENT = (
        "%2e%2e%2fmodel.safetensors",
        "MODEL-1.safetensors",
        "~",
        "..model",
        "...",
        "x" * 255,
        "-",
        "$HOME",
        "*",
        "model-1.safetensors ",
    )

    def make(self, folder: Path, name: Any) -> None:
        """A folder whose index sends one tensor to the shard of this name, with something to find outside."""
        write_config(folder)
        safetensors.numpy.save_file(without(hugging_face(), QUERY), folder / "model-1.safetensors")
        (folder.parent / "checkpoint2").mkdir()
        safetensors.numpy.save_file({QUERY: drawn((C, C))}, folder.parent / "checkpoint2" / "model.safetensors")
        weight_map = dict.fromkeys(without(hugging_face(), QUERY), "model-1.safetensors") | {QUERY: name}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def test_there_are_enough(self):
        assert len(self.LEAVING) + len(self.ABSENT) >= 40 and len(self.LEAVING) >= 20

    @pytest.mark.parametrize("name", LEAVING, ids=ascii)
    def test_name_that_leaves_the_folder(self, folder, opened, name):
        self.make(folder, name)
        with within(5), pytest.raises(FormatError) as caught, opened.files() as files:
            BERTForMaskedLM.from_pretrained(folder)
        assert str(caught.value) == f"model.safetensors.index.json names the shard {name!r}: a shard is a file in the same folder"
        assert {Path(os.fsdecode(file)).parent for file in files} == {folder}

    @pytest.mark.parametrize("name", ABSENT, ids=ascii)
    def test_name_that_is_not_there(self, folder, opened, name):
        """Names are names: nothing is decoded, expanded or matched without case."""
        self.make(folder, name)
        with within(5), pytest.raises(FormatError) as caught, opened.files() as files:
            BERTForMaskedLM.from_pretrained(folder)
        assert str(caught.value) == f"model.safetensors.index.json names the shard {name!r}, which is missing: fetch the folder again"
        assert {Path(os.fsdecode(file)).parent for file in files} == {folder}

    @pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
    def test_shard_that_is_no_file(self, folder, kind):
        self.make(folder, "model-2.safetensors")
        match kind:
            case "pipe":
                os.mkfifo(folder / "model-2.safetensors")
            case "folder":
                (folder / "model-2.safetensors").mkdir()
            case "device":
                (folder / "model-2.safetensors").symlink_to("/dev/zero")
        with within(5), pytest.raises(FormatError, match=r"^model-2\.safetensors is not a regular file\n"):
            BERTForMaskedLM.from_pretrained(folder)

    def test_shard_that_is_no_safetensors(self, folder):
        self.make(folder, "config.json")
        with pytest.raises(FormatError, match=r"^config\.json claims a header of \d+ bytes in a file of "):
            BERTForMaskedLM.from_pretrained(folder)

    def test_links_are_followed(self, tmp_path):
        """The hub's cache is made of links out of the folder: snapshots/REVISION/FILE -> ../../blobs/HASH."""
        blobs, snapshot = tmp_path / "models--x--y" / "blobs", tmp_path / "models--x--y" / "snapshots" / "0123"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        write_shards(blobs, hugging_face())
        for i, file in enumerate(sorted(blobs.iterdir())):
            file.rename(blobs / str(i))
            (snapshot / file.name).symlink_to(f"../../blobs/{i}")
        assert_state(BERTForMaskedLM.from_pretrained(snapshot), expected(hugging_face()))

    @pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": None}, {"weight_map": {QUERY: 5}},
                                       {"weight_map": {QUERY: None}}, {"weight_map": {QUERY: ["a"]}}])  # fmt: skip
    def test_index_without_map(self, folder, index):
        write_config(folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(FormatError) as caught:
            BERTForMaskedLM.from_pretrained(folder)
        assert str(caught.value) == "model.safetensors.index.json has no weight_map from tensor names to file names"

    def test_tensor_that_its_shard_lacks(self, folder):
        self.make(folder, "model-1.safetensors")
        with pytest.raises(FormatError, match=rf"lacks {QUERY}\."):
            BERTForMaskedLM.from_pretrained(folder)


class Opened:
    """Which files the interpreter opens, and whether it runs code: an audit hook, which cannot be taken back."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] | None = None
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if self._events is not None and event in ("open", "exec", "compile", "import", "pickle.find_class", "marshal.loads"):
            self._events.append((event, args[0] if args else None))

    @contextmanager
    def files(self) -> Iterator[list[Any]]:
        """Collect what is opened by name; afterwards, nothing may have been executed or imported."""
        self._events = []
        files: list[Any] = []
        try:
            yield files
        finally:
            events, self._events = self._events, None
            files += [name for event, name in events if event == "open" and not isinstance(name, int)]
            assert [event for event in events if event[0] != "open"] == []


@pytest.fixture(scope="session")
def opened() -> Opened:
    return Opened()


class TestWhatIsOpened:
    def test_only_the_folder_and_no_code(self, folder, opened):
        write_shards(folder, hugging_face(), auto_map={"AutoModel": "evil.Model"}, architectures=["os.system"])
        (folder / "evil.py").write_text("raise SystemExit")
        (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
        BERTForMaskedLM.from_pretrained(folder)
        with opened.files() as files:
            BERTForMaskedLM.from_pretrained(folder)
        names = {Path(os.fsdecode(file)) for file in files}
        assert names == {folder / "config.json", folder / "model.safetensors.index.json", *folder.glob("model-*.safetensors")}

    def test_the_trace_sees(self, folder, opened):
        """It would notice: an opened file, an import, a compilation."""
        with opened.files() as files:
            (folder / "x").write_text("")
        assert files == [str(folder / "x")]
        with pytest.raises(AssertionError), opened.files():
            eval("1 + 1")

    def test_descriptors_are_closed(self, folder):
        before = len(os.listdir("/proc/self/fd"))
        BERTForMaskedLM.from_pretrained(write_shards(folder, hugging_face()))
        safetensors.numpy.save_file({QUERY: drawn((C, C))}, folder / "model-00002-of-00003.safetensors")
        with pytest.raises(FormatError):
            BERTForMaskedLM.from_pretrained(folder)
        (folder / "model-00003-of-00003.safetensors").write_bytes(b"")
        with pytest.raises(FormatError):
            BERTForMaskedLM.from_pretrained(folder)
        assert len(os.listdir("/proc/self/fd")) == before


def model_of(**changes: Any) -> BERTForMaskedLM:
    """A model that has values of its own, all different."""
    model = BERTForMaskedLM(BERTConfig.sized(LAYERS, C, **SMALL | changes))
    for name, parameter in model.named_parameters():
        parameter.assign(drawn(parameter.shape, "own", name))
    return model.eval()


SMALL: dict[str, Any] = {
    "vocab_size": V, "num_attention_heads": HEADS, "intermediate_size": F, "max_position_embeddings": P, "type_vocab_size": TYPES,
    "add_pooling_layer": False,
}  # fmt: skip


def fingerprint(model: BERTForMaskedLM) -> tuple[Any, ...]:
    """Everything that loading could change."""
    decoder, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return {name: (p.version, p.numpy().tobytes()) for name, p in model.named_parameters()}, decoder is table, repr(model.config)


class TestWholeOrNotAtAll:
    """A load that fails leaves the model as it was: each parameter, the tie, the configuration."""

    def broken(self, folder: Path, damage: str) -> str:
        """Make a folder that is broken in one way; return what the error must name."""
        tensors = hugging_face()
        match damage:
            case "missing":
                write(folder, without(tensors, "cls.predictions.transform.LayerNorm.bias"))
                return "cls.predictions.transform.LayerNorm.bias"
            case "shape":
                tensors["bert.encoder.layer.1.output.dense.weight"] = drawn((F, C))
                write(folder, tensors)
                return (
                    "model.safetensors: tensor bert.encoder.layer.1.output.dense.weight has shape (12, 8), config.json makes it (8, 12) "
                    "(for bert.encoder.layer.1.feed_forward.dense_out.weight)"
                )
            case "shape of the query":
                write(folder, tensors | {QUERY: drawn((3 * C, C))})
                return f"tensor {QUERY} has shape (24, 8), config.json makes it (8, 8) (for bert.encoder.layer.1.attention.qkv.weight)"
            case "rank":
                write(folder, tensors | {BIAS: drawn((V, 1))})
                return f"model.safetensors: tensor {BIAS} has shape (11, 1), config.json makes it (11,) (for {DECODER_BIAS})"
            case "a word too many":
                write(folder, tensors | {WORDS: drawn((V + 1, C))})
                return f"model.safetensors: tensor {WORDS} has shape (12, 8), config.json makes it (11, 8) (for {WORDS})"
            case "shape of the tied decoder":
                write(folder, tensors | {DECODER: drawn((V + 1, C))})
                return f"model.safetensors: tensor {DECODER} has shape (12, 8), config.json makes it (11, 8) (for {DECODER})"
            case "shape of the second bias":
                write(folder, tensors | {DECODER_BIAS: tensors[BIAS], BIAS: drawn((1,))})
                return f"model.safetensors: tensor {BIAS} has shape (1,)"
            case "shape in a shard":
                write_shards(folder, tensors | {"bert.embeddings.LayerNorm.bias": drawn((C + 1,))})
                return "model-00002-of-00003.safetensors: tensor bert.embeddings.LayerNorm.bias has shape (9,), config.json makes it (8,)"
            case "old spelling of a wrong shape":
                write(folder, renamed(tensors | {"bert.embeddings.LayerNorm.bias": drawn((C + 1,))}, ("LayerNorm.bias", "LayerNorm.beta")))
                return "model.safetensors: tensor bert.embeddings.LayerNorm.beta has shape (9,)"
            case "integers":
                write(folder, tensors | {"bert.embeddings.LayerNorm.bias": np.arange(C)})
                return "tensor bert.embeddings.LayerNorm.bias holds I64, wanted floating-point numbers: save the model in float32"
            case "integers, last tensor":
                write(folder, tensors | {"cls.predictions.transform.dense.weight": np.ones((C, C), np.int8)})
                return "model.safetensors: tensor cls.predictions.transform.dense.weight holds I8"
            case "other decoder and a tensor cut short":
                write(folder, tensors | {DECODER: drawn((V, C), "decoder")})
                return "was cut short while tensor"
            case "cut short while open":
                write(folder, tensors)
                return "was cut short while tensor"
            case "a warning that is an error":
                write(folder, tensors | {"extra": drawn((1,)), DECODER: drawn((V, C), "decoder")})
                return "loaded untied"
            case "no safetensors":
                write(folder, tensors)
                (folder / "model.safetensors").write_bytes(b"PK\x03\x04 an archive of another kind")
                return "model.safetensors claims a header of"
            case "pointer of Git LFS":
                write(folder, tensors)
                (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
                return "git lfs pull"
        raise AssertionError(damage)

    DAMAGES = (
        "missing", "shape", "shape of the query", "rank", "a word too many", "shape of the tied decoder", "shape of the second bias",
        "shape in a shard", "old spelling of a wrong shape", "integers", "integers, last tensor", "other decoder and a tensor cut short",
        "cut short while open", "a warning that is an error", "no safetensors", "pointer of Git LFS",
    )  # fmt: skip

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_model_is_as_it_was(self, folder, damage, monkeypatch):
        text = self.broken(folder, damage)
        model = model_of()
        before = fingerprint(model)
        if "cut short" in text:
            self.cut_at_the_last_tensor(monkeypatch, folder / "model.safetensors")
        with warnings.catch_warnings(), pytest.raises((FormatError, UserWarning)) as caught:
            warnings.simplefilter("error" if "warning" in damage else "ignore")
            load_tensors(model, folder)
        assert text in str(caught.value)
        assert fingerprint(model) == before

    def cut_at_the_last_tensor(self, monkeypatch, path: Path) -> None:
        """Let the file end in the last tensor that is read, from the moment at which that tensor's turn has come."""
        n_tensors, fill, seen = len(safetensors.numpy.load_file(path)), lucid.models.checkpoint.SafetensorsFile._fill, set()

        def fill_from_cut_file(file: Any, out: Any, offset: int, name: str) -> None:
            if name not in seen:
                seen.add(name)
                if len(seen) == n_tensors:
                    os.truncate(path, file.entries[name].offset)
            fill(file, out, offset, name)

        monkeypatch.setattr(lucid.models.checkpoint.SafetensorsFile, "_fill", fill_from_cut_file)

    def test_every_truncation_of_the_file(self, folder):
        """A download that broke off, anywhere."""
        whole = (write(folder, hugging_face()) / "model.safetensors").read_bytes()
        n_header = int.from_bytes(whole[:8], "little")
        places = {0, 1, 7, 8, 9, n_header, 7 + n_header, 8 + n_header, 9 + n_header, len(whole) - 1, *range(0, len(whole), 97)}
        for place in places:
            (folder / "model.safetensors").write_bytes(whole[:place])
            with pytest.raises(FormatError, match=r"^model\.safetensors .*fetch or save it again\.\n"):
                BERTForMaskedLM.from_pretrained(folder)
        (folder / "model.safetensors").write_bytes(whole)
        assert_state(BERTForMaskedLM.from_pretrained(folder), expected(hugging_face()))

    def test_a_load_that_works_changes_everything(self, folder):
        """So the tests above can fail."""
        model = model_of()
        before = fingerprint(model)
        load_tensors(model, write(folder, hugging_face()))
        after = fingerprint(model)
        assert all(before[0][name] != values for name, values in after[0].items())

    def test_wrong_shape_is_an_error_without_strict_too(self, folder):
        self.broken(folder, "shape")
        with pytest.raises(FormatError, match="has shape"):
            BERTForMaskedLM.from_pretrained(folder, strict=False)


class TestTokenizer:
    SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def write_vocab(self, folder: Path, n_words: int) -> None:
        words = [*self.SPECIAL, *(f"word{i}" for i in range(n_words - 5))]
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))

    @pytest.mark.parametrize("n_words", [V, V - 1])
    @pytest.mark.parametrize("kind", [BERT, BERTForMaskedLM])
    def test_as_many_words_as_rows_or_fewer(self, folder, kind, n_words):
        write(folder, hugging_face())
        self.write_vocab(folder, n_words)
        model = kind.from_pretrained(folder)
        assert isinstance(model.tokenizer, BERTTokenizerFast) and model.tokenizer.vocab_size == n_words

    def test_special_tokens_are_the_tokenizers(self, folder):
        write(folder, hugging_face())
        assert BERTForMaskedLM.from_pretrained(folder).tokenizer is None
        self.write_vocab(folder, V)
        assert BERTForMaskedLM.from_pretrained(folder).special_token_ids == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("kind", [BERT, BERTForMaskedLM])
    def test_more_words_than_rows(self, folder, kind):
        write(folder, hugging_face())
        self.write_vocab(folder, V + 1)
        with pytest.raises(FormatError) as caught:
            kind.from_pretrained(folder)
        assert str(caught.value) == (
            f"checkpoint: the tokenizer has {V + 1} words, the word table {V} rows: they belong to different models"
        )

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
    def test_a_traceback_names_the_folder_once(self, folder, name):
        write(folder, hugging_face())
        self.write_vocab(folder, V)
        (folder / name).write_bytes(b"\xff")
        with pytest.raises(FormatError) as caught:
            BERTForMaskedLM.from_pretrained(folder)
        assert caught.value.__notes__ == [f"The folder is {folder}"]

    def test_added_tokens_count(self, folder):
        write(folder, hugging_face())
        self.write_vocab(folder, V)
        (folder / "added_tokens.json").write_text(json.dumps({"[NEW]": V}))
        with pytest.raises(FormatError, match=f"the tokenizer has {V + 1} words"):
            BERTForMaskedLM.from_pretrained(folder)

    @pytest.mark.parametrize(
        ("name", "content"), [("tokenizer.json", "{"), ("tokenizer.json", "[]"), ("vocab.txt", "a\nb\n"), ("vocab.txt", "")]
    )
    def test_broken(self, folder, name, content):
        write(folder, hugging_face())
        (folder / name).write_text(content)
        with pytest.raises(FormatError, match=name):
            BERTForMaskedLM.from_pretrained(folder)


class TestSaving:
    @pytest.mark.parametrize("tie", [True, False])
    @pytest.mark.parametrize("is_packed", [False, True])
    def test_round_trip(self, tmp_path, tie, is_packed):
        """The same bits, whether the parameters lie row-major or in panels."""
        model = model_of(tie_word_embedding=tie, hidden_act="gelu_new", layer_norm_eps=1e-5, pad_token_id=3, hidden_dropout_prob=0.3)
        if is_packed:
            model([[1, 2, 3]])
        before = model.state_dict()
        model.save_pretrained(tmp_path)
        again = BERTForMaskedLM.from_pretrained(tmp_path)
        assert_state(again, before)
        assert again.config == model.config
        assert again.load_report.is_tied == tie
        assert (again.load_report.missing, again.load_report.unexpected) == ((), ())
        np.testing.assert_array_equal(again([[1, 2, 3]]).numpy(), model([[1, 2, 3]]).numpy())

    def test_names_and_values_are_those_of_hugging_face(self, folder, tmp_path):
        """What was read is written as it was: Q, K and V apart again."""
        BERTForMaskedLM.from_pretrained(write(folder, hugging_face())).save_pretrained(tmp_path / "new")
        saved = safetensors.numpy.load_file(tmp_path / "new" / "model.safetensors")
        assert saved.keys() == SHAPES.keys()
        for name, values in hugging_face().items():
            np.testing.assert_array_equal(saved[name], values, strict=True)
        with safetensors.safe_open(tmp_path / "new" / "model.safetensors", "numpy") as file:
            assert file.metadata() == {"format": "pt"}

    def test_untied_names(self, tmp_path):
        model = model_of(tie_word_embedding=False)
        model.save_pretrained(tmp_path)
        saved = safetensors.numpy.load_file(tmp_path / "model.safetensors")
        assert saved.keys() == SHAPES.keys() | {DECODER, DECODER_BIAS}
        np.testing.assert_array_equal(saved[DECODER], model.get_output_embeddings().weight.numpy())
        np.testing.assert_array_equal(saved[DECODER_BIAS], saved[BIAS])

    def test_config_json(self, tmp_path):
        model_of(pad_token_id=None).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text()) == CONFIG | {
            "architectures": ["BertForMaskedLM"], "dtype": "float32", "position_embedding_type": "absolute", "tie_word_embeddings": True,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
            "layer_norm_eps": 1e-12, "use_cache": False, "is_decoder": False, "add_cross_attention": False, "chunk_size_feed_forward": 0,
            "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "classifier_dropout": None,
        }  # fmt: skip

    @pytest.mark.parametrize("has_pooler", [False, True])
    def test_backbone(self, tmp_path, has_pooler):
        model = BERT(BERTConfig.sized(LAYERS, C, **SMALL | {"add_pooling_layer": has_pooler}))
        model.save_pretrained(tmp_path)
        again = BERT.from_pretrained(tmp_path)
        assert_state(again, model.state_dict())
        assert again.config == model.config
        assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertModel"]
        names = safetensors.numpy.load_file(tmp_path / "model.safetensors").keys()
        assert names == {name for name in SHAPES if name.startswith("bert.")} | (POOLER.keys() if has_pooler else set())

    def test_tokenizer_goes_with_it(self, folder, tmp_path):
        write(folder, hugging_face())
        TestTokenizer().write_vocab(folder, V)
        model = BERTForMaskedLM.from_pretrained(folder)
        model.save_pretrained(tmp_path / "new")
        again = BERTForMaskedLM.from_pretrained(tmp_path / "new")
        assert again.fill_mask("word1 [MASK]") == model.fill_mask("word1 [MASK]")

    def test_missing_parents_are_made(self, tmp_path):
        model = model_of()
        model.save_pretrained(str(tmp_path / "a" / "b" / "c"))
        assert_state(BERTForMaskedLM.from_pretrained(tmp_path / "a" / "b" / "c"), model.state_dict())

    def test_a_file_stands_in_the_way(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        for place in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(OSError, match="file"):
                model_of().save_pretrained(place)
        assert (tmp_path / "file").read_text() == "mine"

    def test_nothing_is_left_over(self, tmp_path):
        model_of().save_pretrained(tmp_path)
        model_of().save_pretrained(tmp_path)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]

    def test_files_are_readable_as_the_umask_says(self, tmp_path):
        before = os.umask(0o022)
        try:
            model_of().save_pretrained(tmp_path)
        finally:
            os.umask(before)
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o644}

    FAILURES = ("half a file", "library", "config", "flush", "no space")

    @pytest.mark.parametrize("failure", FAILURES)
    def test_writing_fails(self, tmp_path, monkeypatch, failure):
        """The older model stays whole, and nothing else is left in the folder."""
        old = model_of()
        old.save_pretrained(tmp_path)
        files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        new = model_of(tie_word_embedding=False, hidden_act="relu")

        def half(tensors: Any, path: Any, metadata: Any) -> None:
            Path(path).write_bytes(b"half a file")
            raise SafetensorError("no space left") if failure == "library" else OSError(28, "No space left on device")

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch, limited(2000 if failure == "no space" else None):
            if failure in ("half a file", "library"):
                patch.setattr(safetensors.numpy, "save_file", half)
            if failure == "config":
                patch.setattr(Path, "write_text", refuse)
            if failure == "flush":
                patch.setattr(os, "fsync", refuse)
            with pytest.raises(OSError, match=r"cannot be written|space|error|large"):
                new.save_pretrained(tmp_path)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
        assert_state(BERTForMaskedLM.from_pretrained(tmp_path), old.state_dict())
        new.save_pretrained(tmp_path)
        assert_state(BERTForMaskedLM.from_pretrained(tmp_path), new.state_dict())

    def test_two_threads_save_to_one_folder(self, tmp_path):
        models = [model_of(), model_of()]
        for parameter in models[1].parameters():
            parameter.assign(-parameter.numpy())
        errors: list[BaseException] = []

        def save(model: BERTForMaskedLM) -> None:
            try:
                for _ in range(20):
                    model.save_pretrained(tmp_path)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=save, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        saved = BERTForMaskedLM.from_pretrained(tmp_path).state_dict()
        table = saved[WORDS].tobytes()
        last = next(model for model in models if model.state_dict()[WORDS].tobytes() == table)
        for name, values in last.state_dict().items():
            np.testing.assert_array_equal(saved[name], values)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@contextmanager
def limited(n_bytes: int | None) -> Iterator[None]:
    """Let no file of this process grow beyond `n_bytes`: a disk that is full, as the kernel sees it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if n_bytes is None else n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
