"""lucid's models beside transformers' on the same checkpoints: a trained one, and random ones of many sizes.

The bounds are the project's promise. Attention of the reference is the plain one ("eager"), and only real tokens are compared:
at padding lucid gives zeros and the reference gives what nobody reads. `pytest -rP` shows how close each case came.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lucid.models as models
from lucid.models import BERT, BERTForMaskedLM
from lucid.nn import Linear
from lucid.nn.init import normal

pytest.importorskip("torch", reason="torch is the reference; it is not installed")
pytest.importorskip("transformers", reason="transformers is the reference; it is not installed")

import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

SPLADE_TINY = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "splade-tiny"

# Weights larger than the usual 0.02 make small models care about what they are given: the two GELUs differ visibly, say.
ODD = {"vocab_size": 1021, "hidden_size": 78, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 1201}
ODD |= {"initializer_range": 0.1}
TINY = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 512}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    "tiny, untied, gelu_new": {**TINY, "tie_word_embeddings": False, "hidden_act": "gelu_new", "initializer_range": 0.08},
    "mini": {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 1024},
    "odd": ODD,
    "odd, untied": {**ODD, "tie_word_embeddings": False},
    "odd, gelu_new": {**ODD, "hidden_act": "gelu_new"},
    "odd, relu": {**ODD, "hidden_act": "relu"},
    "odd, silu": {**ODD, "hidden_act": "silu"},
    "odd, unusual": {**ODD, "initializer_range": 0.02, "layer_norm_eps": 1e-2, "type_vocab_size": 5, "max_position_embeddings": 600},
    "base": {},
}
INPUTS = ("full", "right", "left", "holes", "one token", "512", "types", "positions", "embeds")
CASES = [(name, inputs) for name in ("splade-tiny", *CHECKPOINTS) for inputs in INPUTS if name != "base"]
CASES += [("base", inputs) for inputs in ("one token", "holes", "512")]


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def randomise(net: Any, seed: int) -> Any:
    """Make biases and gains random too, which are 0 and 1 in a new model, so that none can be mistaken for another."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.normal_(1, 0.1)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.05)
    return net


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Give a function from a checkpoint's name to its folder; random ones are written once, by transformers."""
    written: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name == "splade-tiny":
            if not SPLADE_TINY.is_dir():
                pytest.skip("the shared checkpoint splade-tiny is not there")
            return SPLADE_TINY
        if name not in written:
            seed = list(CHECKPOINTS).index(name)
            torch.manual_seed(1000 + seed)
            net = randomise(BertForMaskedLM(BertConfig(**CHECKPOINTS[name])), seed)
            written[name] = tmp_path_factory.mktemp("checkpoint")
            net.save_pretrained(written[name])
        return written[name]

    yield get
    for folder in written.values():
        shutil.rmtree(folder)  # the base size has 440 MB


def reference_of(folder: Path, kind: Any = BertForMaskedLM) -> Any:
    """Load a folder with transformers; nothing may be missing or left over."""
    net, info = kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return net.eval()


@pytest.fixture(scope="module")
def pair_of(folder_of: Callable[[str], Path]) -> Callable[[str], tuple[BERTForMaskedLM, Any]]:
    """Give a function from a checkpoint's name to lucid's model and the reference; the last pair is kept."""
    kept: dict[str, tuple[BERTForMaskedLM, Any]] = {}

    def get(name: str) -> tuple[BERTForMaskedLM, Any]:
        if name not in kept:
            kept.clear()
            folder = folder_of(name)
            kept[name] = BERTForMaskedLM.from_pretrained(folder), reference_of(folder)
        return kept[name]

    return get


def make_inputs(kind: str, config: Any) -> dict[str, np.ndarray]:
    """Give a batch for a configuration of transformers."""
    rng = np.random.default_rng(INPUTS.index(kind))
    shape = {"one token": (3, 1), "512": (2, 512), "positions": (2, 9)}.get(kind, (4, 33))
    inputs = {"input_ids": rng.integers(0, config.vocab_size, shape)}
    lengths = np.array([33, 20, 1, 7])
    if kind in ("right", "types", "embeds"):
        inputs["attention_mask"] = (np.arange(33) < lengths[:, None]).astype(np.int64)
    elif kind == "left":
        inputs["attention_mask"] = (np.arange(33)[::-1] < lengths[:, None]).astype(np.int64)
    elif kind == "holes":
        inputs["attention_mask"] = (rng.random(shape) < 0.6).astype(np.int64)
    elif kind == "512":
        inputs["attention_mask"] = np.ones(shape, np.int64)
        inputs["attention_mask"][1, 300:] = 0
    if kind == "types":
        inputs["token_type_ids"] = rng.integers(0, config.type_vocab_size, shape)
    elif kind == "positions":
        inputs["position_ids"] = rng.integers(0, config.max_position_embeddings, shape)
    elif kind == "embeds":
        del inputs["input_ids"]
        inputs["inputs_embeds"] = (0.05 * rng.standard_normal((*shape, config.hidden_size))).astype(np.float32)
    return inputs


def make_labels(inputs: dict[str, np.ndarray], vocab_size: int) -> np.ndarray:
    """Give labels at about a third of the real tokens, and at the first of them."""
    rng = np.random.default_rng(100)
    shape = next(iter(inputs.values())).shape[:2]
    is_real = real_cells(inputs)
    is_asked = is_real & (rng.random(shape) < 0.3)
    is_asked.reshape(-1)[np.flatnonzero(is_real)[0]] = True
    return np.where(is_asked, rng.integers(0, vocab_size, shape), -100)


def real_cells(inputs: dict[str, np.ndarray]) -> np.ndarray:
    shape = next(iter(inputs.values())).shape[:2]
    return inputs.get("attention_mask", np.ones(shape, np.int64)) == 1


def tensors(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def logits_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference in units of max(5, the largest logit)."""
    return float(np.abs(got - wanted).max() / max(5, np.abs(wanted).max()))


def row_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest ||difference|| / ||reference|| of a row."""
    return float((np.linalg.norm(got - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)).max())


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[f"{name}: {kind}" for name, kind in CASES])
def test_masked_lm(pair_of, name, kind):
    ours, theirs = pair_of(name)
    inputs = make_inputs(kind, theirs.config)
    labels, is_real = make_labels(inputs, theirs.config.vocab_size), real_cells(inputs)
    with torch.no_grad():
        output = theirs(**tensors(inputs), labels=torch.from_numpy(labels), output_hidden_states=True)
    wanted, wanted_loss = output.logits.numpy()[is_real], output.loss.item()

    logits = ours(**inputs).numpy()
    assert logits.shape == output.logits.shape
    got = logits[is_real]
    hidden = ours.bert(**inputs)[0].numpy()[is_real]
    loss = ours.get_loss(labels, **inputs).item()
    errors = {
        "max_logit": float(np.abs(wanted).max()),
        "logits": logits_error(got, wanted),
        "hidden": row_error(hidden, output.hidden_states[-1].numpy()[is_real]),
        "loss": abs(loss - wanted_loss),
    }
    print(f"parity: {name}: {kind}:", ", ".join(f"{key} {value:.2e}" for key, value in errors.items()))
    assert errors["logits"] <= 4e-6
    assert errors["hidden"] <= 1e-4
    assert errors["loss"] <= 1e-5 + 1e-6 * abs(wanted_loss)

    second, first = np.partition(wanted, -2, axis=1)[:, -2:].T
    is_clear = first - second > 1e-4
    assert is_clear.mean() > 0.8
    predicted = ours.predict_token_ids(**inputs).numpy()[is_real]
    np.testing.assert_array_equal(predicted[is_clear], wanted.argmax(axis=1)[is_clear])
    np.testing.assert_array_equal(got.argmax(axis=1)[is_clear], wanted.argmax(axis=1)[is_clear])


def test_losses_of_single_tokens(pair_of):
    """`reduction=None` beside the reference's cross-entropy, token by token."""
    ours, theirs = pair_of("odd")
    inputs = make_inputs("right", theirs.config)
    labels = make_labels(inputs, theirs.config.vocab_size)
    with torch.no_grad():
        logits = theirs(**tensors(inputs)).logits
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels.ravel()), reduction="none").numpy()
    np.testing.assert_allclose(ours.get_loss(labels, **inputs, reduction=None).numpy(), wanted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu", "silu"])
def test_backbone(tmp_path, hidden_act):
    """A folder of `BertModel`, whose tensors have no prefix: last hidden state and pooled output."""
    torch.manual_seed(5)
    randomise(BertModel(BertConfig(**ODD, hidden_act=hidden_act)), 6).save_pretrained(tmp_path / "theirs")
    theirs, ours = reference_of(tmp_path / "theirs", BertModel), BERT.from_pretrained(tmp_path / "theirs")
    for kind in ("full", "right", "holes", "types"):
        inputs = make_inputs(kind, theirs.config)
        is_real = real_cells(inputs)
        with torch.no_grad():
            wanted = theirs(**tensors(inputs))
        hidden, pooled = ours(**inputs)
        error = row_error(hidden.numpy()[is_real], wanted.last_hidden_state.numpy()[is_real])
        has_first = is_real[:, 0]  # the reference pools column 0, also where it is padding
        assert has_first.any()
        pooled_error = row_error(pooled.numpy()[has_first], wanted.pooler_output.numpy()[has_first])
        print(f"parity: backbone, {hidden_act}: {kind}: hidden {error:.2e}, pooled {pooled_error:.2e}")
        assert error <= 1e-4
        assert pooled_error <= 1e-4

    ours.save_pretrained(tmp_path / "ours")
    check_same_tensors(theirs, reference_of(tmp_path / "ours", BertModel))


def test_a_masked_lms_folder_as_a_backbone(folder_of):
    """It has no pooler, so there is no pooled output."""
    folder = folder_of("odd")
    ours = BERT.from_pretrained(folder)
    with torch.no_grad():
        wanted = reference_of(folder).bert(torch.arange(20)[None]).last_hidden_state.numpy()
    hidden, pooled = ours(np.arange(20)[None])
    assert pooled is None
    assert row_error(hidden.numpy(), wanted) <= 1e-4


def check_same_tensors(a: Any, b: Any) -> None:
    """Check that two of the reference's models hold the same numbers, to the bit."""
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) or is_unused(name, a.config), name


def is_unused(name: str, config: Any) -> bool:
    """Return whether it is the second bias of an untied decoder, which the reference stores and does not use."""
    return name == "cls.predictions.bias" and not config.tie_word_embeddings


def check_same_logits(a: Any, b: Any) -> None:
    for kind in ("right", "types"):
        inputs = tensors(make_inputs(kind, a.config))
        with torch.no_grad():
            assert torch.equal(a(**inputs).logits, b(**inputs).logits)


class TestSaved:
    """What lucid saves, transformers loads: with the same logits, to the bit where the reference ran both."""

    @pytest.mark.parametrize("name", ["splade-tiny", "tiny, untied, gelu_new", "odd", "odd, untied", "odd, unusual"])
    def test_round_trip(self, folder_of, tmp_path, name):
        before = reference_of(folder_of(name))
        ours = BERTForMaskedLM.from_pretrained(folder_of(name))
        ours(np.array([[1, 2, 3]]))  # weights are packed now
        ours.save_pretrained(tmp_path)
        after = reference_of(tmp_path)
        check_same_tensors(before, after)
        check_same_logits(before, after)
        is_tied = before.get_output_embeddings().weight is before.get_input_embeddings().weight
        assert is_tied == ("untied" not in name)
        assert (after.get_output_embeddings().weight is after.get_input_embeddings().weight) == is_tied
        ignored = {"_name_or_path", "dtype", "transformers_version", "architectures", "position_embedding_type"}
        kept = {key: value for key, value in before.config.to_dict().items() if key not in ignored}
        assert {key: after.config.to_dict().get(key) for key in kept} == kept

    def test_tokenizer_goes_along(self, folder_of, tmp_path):
        ours = BERTForMaskedLM.from_pretrained(folder_of("splade-tiny"))
        ours.save_pretrained(tmp_path)
        text = "A naïve [MASK] isn't here."
        wanted = AutoTokenizer.from_pretrained(SPLADE_TINY)(text)["input_ids"]
        assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == wanted
        assert BERTForMaskedLM.from_pretrained(tmp_path).tokenizer.encode(text) == wanted

    @pytest.mark.parametrize("how", ["tied", "untied", "untied later", "another decoder", "another decoder in a tied model", "pooler"])
    def test_made_by_lucid(self, tmp_path, how):
        """A model that never was in a folder."""
        sizes = {"vocab_size": 1021, "initializer_range": 0.05, "hidden_act": "gelu_new"}
        is_untied = how in ("untied", "another decoder")
        ours = models.bert_for_masked_lm_tiny(**sizes, tie_word_embedding=not is_untied, add_pooling_layer=how == "pooler").eval()
        rng = np.random.default_rng(3)
        for _, parameter in ours.named_parameters():
            parameter.assign(parameter.numpy() + 0.05 * rng.standard_normal(parameter.shape))
        if how == "untied later":
            ours.untie_weights()
            decoder = ours.get_output_embeddings().weight
            decoder.assign(decoder.numpy() + 0.1 * rng.standard_normal(decoder.shape))
        elif "another decoder" in how:
            ours.set_output_embeddings(Linear(128, 1021, normal(0.05, seed=1)))
        ours.save_pretrained(tmp_path)
        theirs = reference_of(tmp_path)
        for kind in ("full", "left", "types", "embeds"):
            inputs = make_inputs(kind, theirs.config)
            is_real = real_cells(inputs)
            with torch.no_grad():
                wanted = theirs(**tensors(inputs)).logits.numpy()
            assert logits_error(ours(**inputs).numpy()[is_real], wanted[is_real]) <= 4e-6

    def test_reference_then_lucid_then_reference(self, folder_of, tmp_path):
        """Both write the folder in turn; the file of the second reference equals that of the first."""
        BERTForMaskedLM.from_pretrained(folder_of("odd, untied")).save_pretrained(tmp_path / "ours")
        theirs = reference_of(tmp_path / "ours")
        theirs.save_pretrained(tmp_path / "theirs")
        first, last = (load_file(folder / "model.safetensors") for folder in (folder_of("odd, untied"), tmp_path / "theirs"))
        assert first.keys() == last.keys()
        for name, array in first.items():
            assert np.array_equal(array, last[name]) or is_unused(name, theirs.config), name


class TestFoldersAsPeopleHaveThem:
    """The same numbers under other names and in other files give the same logits."""

    @pytest.mark.parametrize("how", ["gamma and beta", "sharded", "half precision", "bfloat16", "decoder stored"])
    def test_rewritten(self, folder_of, tmp_path, how):
        source = folder_of("odd")
        theirs = reference_of(source)
        if how == "sharded":
            theirs.save_pretrained(tmp_path, max_shard_size="300KB")
            assert (tmp_path / "model.safetensors.index.json").exists()
        elif how in ("half precision", "bfloat16"):
            theirs = theirs.to(torch.float16 if how == "half precision" else torch.bfloat16)
            theirs.save_pretrained(tmp_path)
            theirs = theirs.float()
        else:
            arrays = load_file(source / "model.safetensors")
            if how == "gamma and beta":
                renamed = {
                    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
                    for name, array in arrays.items()
                }
                assert renamed.keys() != arrays.keys()
                arrays = renamed
            else:
                arrays["cls.predictions.decoder.weight"] = arrays["bert.embeddings.word_embeddings.weight"].copy()
                arrays["cls.predictions.decoder.bias"] = arrays["cls.predictions.bias"].copy()
            save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
            shutil.copy(source / "config.json", tmp_path)
        ours = BERTForMaskedLM.from_pretrained(tmp_path)
        assert ours.load_report.is_tied
        inputs = make_inputs("right", theirs.config)
        is_real = real_cells(inputs)
        with torch.no_grad():
            wanted = theirs(**tensors(inputs)).logits.numpy()[is_real]
        assert logits_error(ours(**inputs).numpy()[is_real], wanted) <= 4e-6
