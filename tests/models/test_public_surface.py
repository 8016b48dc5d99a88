"""What DESIGN.md promises its users: the examples as they stand there, and every signature of its table."""

import dataclasses
import inspect
import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

import lucid
import lucid.models as models

FIXTURES = Path(__file__).parent / "fixtures"
VOCAB = (FIXTURES / "vocab.txt").read_text(encoding="utf-8").split()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    """Give a folder as `BERTTokenizerFast.save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("pretrained")
    models.BERTTokenizerFast(VOCAB).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder) -> models.BERTTokenizerFast:
    return models.BERTTokenizerFast.from_pretrained(tokenizer_folder)


@pytest.fixture
def tiny() -> models.BERTForMaskedLM:
    return models.bert_for_masked_lm_tiny(vocab_size=len(VOCAB))


class TestExamples:
    def test_ids(self):
        """The first half of the example, with the small model for speed."""
        input_ids = np.random.default_rng(0).integers(1000, 30000, (4, 24))
        model = models.bert_for_masked_lm_tiny()
        with redirect_stdout(io.StringIO()) as printed:
            print(model)
        assert printed.getvalue().startswith("BERTForMaskedLM(")
        masked_input_ids, labels = model.create_masked_lm_inputs(input_ids, seed=0)
        for tensor in (masked_input_ids, labels):
            assert isinstance(tensor, lucid.Tensor)
            assert (tensor.shape, tensor.dtype, tensor.device) == ((4, 24), np.int64, "cpu")
        is_asked = labels.numpy() != -100
        assert 0 < is_asked.sum() < 40
        np.testing.assert_array_equal(labels.numpy()[is_asked], input_ids[is_asked])
        np.testing.assert_array_equal(masked_input_ids.numpy()[~is_asked], input_ids[~is_asked])
        assert (masked_input_ids.numpy()[is_asked] == 103).any()

        loss = model.get_loss(labels=labels, input_ids=masked_input_ids)
        assert (loss.shape, loss.dtype, loss.device) == ((), np.float32, "cpu")
        assert abs(loss.item() - np.log(30522)) < 1  # an untrained model guesses
        acc = model.get_accuracy(labels=labels, input_ids=masked_input_ids)
        assert (acc.shape, acc.dtype, acc.device) == ((), np.float32, "cpu")
        assert 0 <= acc.item() <= 1

    def test_texts(self, tiny, tokenizer_folder):
        """The second half, on the CPU."""
        tokenizer = models.BERTTokenizerFast.from_pretrained(tokenizer_folder)
        loss = tiny.get_loss_from_text(tokenizer=tokenizer, text_a="The cat sat.", text_b="A dog slept.", device="cpu", seed=1)
        assert (loss.shape, loss.dtype) == ((), np.float32)
        assert loss.item() > 0
        pred_ids = tiny.predict_token_ids_from_text(tokenizer=tokenizer, text_a="the cat is [MASK].", device="cpu")
        assert (pred_ids.shape, pred_ids.dtype) == ((1, 7), np.int64)
        assert ((pred_ids.numpy() >= 0) & (pred_ids.numpy() < len(VOCAB))).all()

    @pytest.mark.parametrize(
        "use",
        [
            lambda model, tokenizer: model.get_loss_from_text(tokenizer=tokenizer, text_a="a cat", text_b="a dog", device="gpu"),
            lambda model, tokenizer: model.predict_token_ids_from_text(tokenizer=tokenizer, text_a="a [MASK].", device="gpu"),
            lambda model, tokenizer: tokenizer.encode_pretraining_inputs("a cat", return_tensor=True, device="gpu"),
            lambda model, tokenizer: model.to("gpu"),
            lambda model, tokenizer: lucid.Tensor([1, 2], device="gpu"),
            lambda model, tokenizer: lucid.Tensor([1, 2]).to("gpu"),
        ],
    )
    def test_gpu_says_what_is_missing(self, tiny, tokenizer, use):
        with pytest.raises(lucid.DeviceError, match=r"'gpu' is not available: \w+.*Use device='cpu'"):
            use(tiny, tokenizer)

    @pytest.mark.parametrize("device", ["cuda", "GPU", "", None, 0])
    def test_unknown_device(self, tiny, tokenizer, device):
        with pytest.raises(ValueError, match="use 'cpu' or 'gpu'"):
            tiny.predict_token_ids_from_text(tokenizer, "a [MASK].", device=device)
        with pytest.raises(ValueError, match="use 'cpu' or 'gpu'"):
            tiny.get_loss_from_text(tokenizer, "a cat", device=device)


class TestTree:
    def test_print(self):
        """Every module stands in the tree once, indented below its parent; equal layers stand there once."""
        tree = repr(models.bert_for_masked_lm_tiny(num_hidden_layers=3, vocab_size=300))
        assert tree.count("(") == tree.count(")")
        rows = re.findall(r"^( *)\(([\w-]+)\): (?:3 x )?(\w+)\(", tree, re.MULTILINE)
        got = [(len(indent) // 2, name, kind) for indent, name, kind in rows]
        dense = [("dense", "Linear"), ("layer_norm", "LayerNorm"), ("dropout", "Dropout")]
        wanted = [
            (1, "bert", "BERT"),
            (2, "embeddings", "BERTEmbeddings"),
            (3, "word_embeddings", "Embedding"),
            (3, "position_embeddings", "Embedding"),
            (3, "token_type_embeddings", "Embedding"),
            (3, "layer_norm", "LayerNorm"),
            (3, "dropout", "Dropout"),
            (2, "encoder", "BERTEncoder"),
            (3, "layer", "ModuleList"),
            (4, "0-2", "BERTLayer"),
            (5, "attention", "BERTAttention"),
            (6, "qkv", "Linear"),
            *((6, *row) for row in dense),
            (5, "feed_forward", "BERTFeedForward"),
            (6, "dense_in", "Linear"),
            (6, "dense_out", "Linear"),
            *((6, *row) for row in dense[1:]),
            (1, "cls", "BERTMaskedLMHead"),
            (2, "predictions", "BERTPredictions"),
            (3, "transform", "BERTPredictionTransform"),
            (4, "dense", "Linear"),
            (4, "layernorm", "LayerNorm"),
            (3, "decoder", "Linear"),
        ]
        assert got == wanted
        assert tree.startswith("BERTForMaskedLM(3 layers, 128 wide, 2 heads, 300 words\n")
        assert "(decoder): Linear(128, 300, bias=True)\n" in tree
        assert "(word_embeddings): Embedding(300, 128)\n" in tree

    def test_named_as_designed(self, tiny):
        predictions = tiny.cls.predictions
        assert isinstance(tiny.bert, models.BERT)
        assert predictions.transform.dense.weight.shape == (128, 128)
        assert predictions.transform.layernorm.weight.shape == (128,)
        assert predictions.decoder.weight is tiny.bert.embeddings.word_embeddings.weight
        assert predictions.decoder.bias.shape == (len(VOCAB),)


class TestFactories:
    SIZES = (
        ("tiny", 2, 128),
        ("mini", 4, 256),
        ("small", 4, 512),
        ("medium", 8, 512),
        ("base", 12, 768),
        ("large", 24, 1024),
    )

    @pytest.mark.parametrize(("name", "n_layers", "width"), SIZES)
    def test_sizes(self, name, n_layers, width):
        factory = getattr(models, f"bert_for_masked_lm_{name}")
        model = factory()
        assert isinstance(model, models.BERTForMaskedLM)
        config = model.config
        assert (config.num_hidden_layers, config.hidden_size) == (n_layers, width)
        assert (config.num_attention_heads, config.intermediate_size) == (width // 64, 4 * width)
        assert (config.vocab_size, config.hidden_act, config.tie_word_embedding) == (30522, "gelu", True)
        assert model.training
        overridden = factory(vocab_size=50, hidden_act="gelu_new", tie_word_embedding=False)
        assert (overridden.config.vocab_size, overridden.config.hidden_act) == (50, "gelu_new")
        assert overridden.cls.predictions.decoder.weight is not overridden.bert.embeddings.word_embeddings.weight
        with pytest.raises(TypeError, match="has no n_layers"):
            factory(n_layers=3)

    def test_base_has_109_514_298_parameters(self):
        model = models.bert_for_masked_lm_base()
        assert model.parameter_size == 109_514_298
        assert sum(int(np.prod(parameter.shape)) for parameter in model.parameters()) == 109_514_298

    @pytest.mark.parametrize(
        ("name", "n_layers", "width", "n_parameters"), [("base", 12, 768, 109_482_240), ("large", 24, 1024, 335_141_888)]
    )
    def test_backbones(self, name, n_layers, width, n_parameters):
        backbone = getattr(models, f"bert_{name}")()
        assert isinstance(backbone, models.BERT)
        assert (backbone.config.num_hidden_layers, backbone.config.hidden_size) == (n_layers, width)
        assert backbone.pooler is not None
        assert backbone.parameter_size == n_parameters  # as counted for the BERT of transformers
        assert getattr(models, f"bert_{name}")(add_pooling_layer=False).pooler is None

    def test_config_classmethods(self):
        assert models.BERTConfig.base().num_hidden_layers == 12
        assert models.BERTConfig.large(vocab_size=99).vocab_size == 99
        assert models.BERTConfig.large().hidden_size == 1024

    @pytest.mark.parametrize(
        "override", [{"num_hidden_layers": 3}, {"hidden_size": 48, "num_attention_heads": 3}, {"intermediate_size": 5}]
    )
    def test_every_size_may_be_overridden(self, override):
        for config in (models.BERTConfig.base(**override), models.bert_for_masked_lm_tiny(**override).config):
            assert {name: getattr(config, name) for name in override} == override


REQUIRED = inspect.Parameter.empty
INPUTS = (
    ("input_ids", None),
    ("attention_mask", None),
    ("token_type_ids", None),
    ("position_ids", None),
    ("inputs_embeds", None),
)
MASKING = (("mlm_probability", 0.15), ("mask_replace_prob", 0.8), ("random_replace_prob", 0.1), ("ignore_index", -100))
SEED = (("seed", None),)
INNER = (("output_hidden_states", False), ("output_attentions", False))
NO_DEFAULT_CONFIG = (
    *("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "tie_word_embedding"),
    *("type_vocab_size", "initializer_range", "layer_norm_eps", "use_cache", "is_decoder", "add_cross_attention"),
    "chunk_size_feed_forward",
)
CONFIG = (
    *((name, REQUIRED) for name in NO_DEFAULT_CONFIG),
    ("pad_token_id", 0),
    ("bos_token_id", None),
    ("eos_token_id", None),
    ("classifier_dropout", None),
    ("add_pooling_layer", True),
)
TOKENIZER = (
    ("vocab", None),
    ("vocab_file", None),
    ("unk_token", "[UNK]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
    ("sep_token", "[SEP]"),
    ("lowercase", True),
    ("wordpieces_prefix", "##"),
    ("max_input_chars_per_word", 100),
    ("clean_text", True),
)
TEXTS = (("tokenizer", REQUIRED), ("text_a", REQUIRED), ("text_b", None))
LM = models.BERTForMaskedLM

# What, its positional parameters, its keyword-only ones.
SIGNATURES = {
    "BERTConfig": (models.BERTConfig, CONFIG, ()),
    "BERT": (models.BERT, (("config", REQUIRED),), ()),
    "BERT.forward": (models.BERT.forward, INPUTS, (*INNER, *SEED)),
    "BERTForMaskedLM": (LM, (("config", REQUIRED),), ()),
    "forward": (LM.forward, INPUTS, (*INNER, *SEED)),
    "get_loss": (
        LM.get_loss,
        (("labels", REQUIRED), *INPUTS),
        (("ignore_index", -100), ("reduction", "mean"), *SEED),
    ),
    "create_masked_lm_inputs": (
        LM.create_masked_lm_inputs,
        (("input_ids", REQUIRED), ("attention_mask", None), ("special_tokens_mask", None)),
        (("mask_token_id", 103), *MASKING, *SEED),
    ),
    "predict_token_ids": (LM.predict_token_ids, INPUTS, ()),
    "get_accuracy": (LM.get_accuracy, (("labels", REQUIRED), *INPUTS), (("ignore_index", -100),)),
    "get_loss_from_text": (
        LM.get_loss_from_text,
        TEXTS,
        (("device", "cpu"), ("mask_token_id", None), *MASKING, ("reduction", "mean"), *SEED),
    ),
    "predict_token_ids_from_text": (LM.predict_token_ids_from_text, TEXTS, (("device", "cpu"),)),
    "fill_mask": (
        LM.fill_mask,
        (("texts", REQUIRED), ("top_k", 5), ("targets", None)),
        (("joint", False), ("beam_width", 8), ("tokenizer", None)),
    ),
    "BERTTokenizerFast": (models.BERTTokenizerFast, TOKENIZER, ()),
    "encode_pretraining_inputs": (
        models.BERTTokenizerFast.encode_pretraining_inputs,
        (("text_a", REQUIRED), ("text_b", None), ("return_tensor", False), ("device", "cpu")),
        (),
    ),
}


class TestSignatures:
    @pytest.mark.parametrize("name", SIGNATURES)
    def test_signature(self, name):
        subject, positional, keyword_only = SIGNATURES[name]
        parameters = [p for p in inspect.signature(subject).parameters.values() if p.name != "self"]
        kinds = {p.kind for p in parameters}
        assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
        assert tuple((p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD) == positional
        assert tuple((p.name, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY) == keyword_only

    @pytest.mark.parametrize(
        "name",
        [
            *(f"bert_for_masked_lm_{size}" for size in ("tiny", "mini", "small", "medium", "base", "large")),
            *("bert_base", "bert_large", "BERTConfig.base", "BERTConfig.large"),
        ],
    )
    def test_takes_config_overrides_only(self, name):
        factory = models
        for part in name.split("."):
            factory = getattr(factory, part)
        (parameter,) = inspect.signature(factory).parameters.values()
        assert parameter.kind is inspect.Parameter.VAR_KEYWORD

    def test_config_is_a_dataclass(self):
        assert dataclasses.is_dataclass(models.BERTConfig)
        assert [field.name for field in dataclasses.fields(models.BERTConfig)] == [name for name, _ in CONFIG]

    @pytest.mark.parametrize("kind", [models.BERT, models.BERTForMaskedLM])
    def test_methods(self, kind):
        names = ("forward", "get_input_embeddings", "set_input_embeddings", "get_output_embeddings", "set_output_embeddings", "tie_weights")
        for name in (*names, "state_dict", "load_state_dict", "named_parameters", "train", "eval", "to", "save_pretrained"):
            assert inspect.isfunction(getattr(kind, name)), name
        assert inspect.ismethod(kind.from_pretrained)
        assert next(iter(inspect.signature(kind.from_pretrained).parameters)) == "folder_or_hub_id"

    def test_tokenizer_methods(self):
        kind = models.BERTTokenizerFast
        for name in ("tokenize", "convert_tokens_to_ids", "convert_ids_to_tokens", "convert_tokens_to_string", "encode", "decode"):
            assert inspect.isfunction(getattr(kind, name)), name
        for name in ("encode_plus", "encode_pretraining_inputs", "build_inputs_with_special_tokens", "save_pretrained"):
            assert inspect.isfunction(getattr(kind, name)), name
        assert inspect.ismethod(kind.from_pretrained)

    def test_tokenizer_attributes(self, tokenizer):
        assert tokenizer.vocab_size == len(VOCAB)
        assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]

    def test_results_are_tensors(self, tiny):
        sequence, pooled = models.BERT(models.BERTConfig.sized(1, 64, vocab_size=20))([[1, 2, 3]])
        assert (sequence.shape, pooled.shape) == ((1, 3, 64), (1, 64))
        logits = tiny([[1, 2, 3]])
        assert (logits.shape, logits.dtype) == ((1, 3, len(VOCAB)), np.float32)
        predicted = tiny.predict_token_ids([[1, 2, 3]])
        assert (predicted.shape, predicted.dtype) == ((1, 3), np.int64)
        for tensor in (sequence, pooled, logits, predicted):
            assert isinstance(tensor, lucid.Tensor)


class TestInputKinds:
    """Token inputs may be arrays, nested lists or tensors, of any integer type and layout."""

    IDS = np.random.default_rng(1).integers(0, len(VOCAB), (3, 6))

    @pytest.mark.parametrize(
        "make",
        [
            lambda ids: ids.tolist(),
            lambda ids: tuple(map(tuple, ids.tolist())),
            lambda ids: lucid.Tensor(ids),
            lambda ids: ids.astype(np.int32),
            lambda ids: ids.astype(np.uint8),
            lambda ids: ids.astype(np.uint64),
            lambda ids: np.asfortranarray(ids),
            lambda ids: np.repeat(ids, 2, axis=1)[:, ::2],
            lambda ids: np.ascontiguousarray(ids[::-1, ::-1])[::-1, ::-1],
            lambda ids: np.ascontiguousarray(ids.astype(">i8")),
        ],
        ids=["lists", "tuples", "tensor", "int32", "uint8", "uint64", "fortran", "strided", "reversed", "big-endian"],
    )
    def test_ids(self, make):
        model = models.bert_for_masked_lm_tiny(vocab_size=len(VOCAB)).eval()
        given = make(self.IDS)
        before = np.array(given)
        mask = make(np.ones_like(self.IDS))
        wanted = model(self.IDS).numpy()
        np.testing.assert_array_equal(model(given, mask, make(np.zeros_like(self.IDS))).numpy(), wanted)
        loss = model.get_loss(given, given).item()
        assert loss == model.get_loss(self.IDS, self.IDS).item()
        np.testing.assert_array_equal(np.array(given), before)

    def test_read_only(self):
        model = models.bert_for_masked_lm_tiny(vocab_size=len(VOCAB)).eval()
        ids = self.IDS.copy()
        ids.flags.writeable = False
        np.testing.assert_array_equal(model(ids, ids >= 0).numpy(), model(self.IDS).numpy())
        assert model.create_masked_lm_inputs(ids, mask_token_id=4, seed=1)[0].shape == ids.shape


@pytest.mark.parametrize(
    "name", ["Tensor", "manual_seed", "set_num_threads", "get_num_threads", "show_config", "models", "nn", "DeviceError", "FormatError"]
)
def test_top_level_names(name):
    assert getattr(lucid, name) is not None
    assert name in lucid.__all__


def test_import_is_light():
    """`import lucid` brings none of the heavy or optional packages, and `lucid.models` no framework."""
    code = "import sys, lucid; print(*sys.modules); import lucid.models; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    first, second = (set(line.split()) for line in result.stdout.splitlines())
    assert not first & {"cupy", "typer", "rich", "tokenizers", "safetensors", "torch", "transformers"}
    assert not second & {"cupy", "typer", "rich", "torch", "transformers"}


def test_numbers_of_a_configuration_may_be_numpys(tmp_path: Path) -> None:
    config = models.BERTConfig.sized(1, 64, vocab_size=np.int64(50), hidden_dropout_prob=np.float32(0.5), pad_token_id=np.int32(0))
    assert config == models.BERTConfig.sized(1, 64, vocab_size=50, hidden_dropout_prob=0.5)
    assert (type(config.vocab_size), type(config.hidden_dropout_prob), type(config.pad_token_id)) == (int, float, int)
    models.BERTForMaskedLM(config).save_pretrained(tmp_path)
    assert models.BERTForMaskedLM.from_pretrained(tmp_path).config.vocab_size == 50


@pytest.mark.parametrize("target", [None, "cuda", object, "U3"])
def test_tensors_go_to_devices_and_dtypes_only(target: object) -> None:
    with pytest.raises(TypeError):
        lucid.Tensor([1.0]).to(target)
