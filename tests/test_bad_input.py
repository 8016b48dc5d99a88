"""No input, however wrong, may crash the interpreter; and what is said of it helps.

The calls themselves are made up in bad_calls.py, which runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lucid
from lucid import models

V, C, P, TYPES = 50, 16, 9, 2
N_CALLS = int(os.environ.get("LUCID_BAD_CALLS", "2000"))


def run_python(arguments: list[str], timeout: float) -> "subprocess.CompletedProcess[str]":
    """Run Python in a process that finds the same lucid as this one."""
    paths = [str(Path(lucid.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, env=environment)


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
        done = run_python([str(script), str(n_calls), str(seed)], timeout=120 + n_calls / 20)
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
        outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        for name, n in report["outcomes"].items():
            function, outcome = name.split()
            outcomes[function]["returned" if outcome == "returned" else "refused"] += n
        # The calls matter only if each function refuses some of them and takes others.
        assert len(outcomes) >= 40
        for function, seen in outcomes.items():
            if seen.total() >= 50:
                assert seen["refused"] >= 5, f"{function} refused next to nothing"
                assert seen["returned"] >= 5 or function == "api_save_pretrained", f"{function} took next to nothing"
        assert 0.2 < sum(seen["returned"] for seen in outcomes.values()) / N_CALLS < 0.8

    def test_a_call_can_be_repeated(self):
        """The same call again, out of its run: so a failure can be looked at."""
        script = str(Path(__file__).parent / "bad_calls.py")
        reports = []
        for arguments in (("3", "7", "40"), ("1", "7", "40"), ("1", "7", "41"), ("1", "7", "42")):
            done = run_python([script, *arguments], timeout=120)
            assert done.returncode == 0
            lines = done.stdout.splitlines()
            assert lines[:-1] == [str(int(arguments[2]) + i) for i in range(int(arguments[0]))]
            reports.append(json.loads(lines[-1])["outcomes"])
        together: dict[str, int] = defaultdict(int)
        for report in reports[1:]:
            for name, n in report.items():
                together[name] += n
        assert together == reports[0]

    DAMAGE = """
import sys, time, ctypes
sys.path.insert(0, {tests!r})
import numpy, lucid, bad_calls
right = lucid.models.BERTForMaskedLM.predict_token_ids
def wrong(self, *inputs, **named):
    result = right(self, *inputs, **named)
    {damage}
    return result
make_call = bad_calls.make_call
def damaged(world, rng):
    lucid.models.BERTForMaskedLM.predict_token_ids = wrong
    return make_call(world, rng)
bad_calls.make_call = damaged
sys.exit(bad_calls.main(150, 5))
"""

    @pytest.mark.parametrize(
        ("damage", "what"),
        [
            ("raise SystemError('broken')", "model_predict: SystemError: broken"),
            ("1 / 0", "model_predict: ZeroDivisionError: division by zero"),
            ("self.nothing", "model_predict: AttributeError: 'BERTForMaskedLM' object has no attribute 'nothing'"),
            ("raise MemoryError('8 TiB')", "model_predict: MemoryError: 8 TiB"),
            ("raise KeyboardInterrupt('enough')", "model_predict: KeyboardInterrupt: enough"),
            ("raise ValueError", "model_predict: a ValueError without a word"),
            ("numpy.float32(1) / numpy.float32(0)", "model_predict: RuntimeWarning: divide by zero"),
            ("result = result.numpy()", "model_predict: a ndarray came back, not a Tensor"),
            ("result = lucid.Tensor(result, 'i4')", "model_predict: a Tensor int32("),
            ("result = lucid.Tensor(result.numpy()[..., None])", "model_predict: a Tensor int64("),
            ("result = lucid.Tensor(result.numpy() - 1)", "model_predict: a predicted id is outside the vocabulary"),
            ("bad_calls.MOST_SECONDS = 0.1; time.sleep(0.2)", "model_predict: took 0.2 s"),
            ("self.cls.predictions.decoder.bias.assign(numpy.ones(bad_calls.V))", "a wrong call changed a model or the seed"),
            ("lucid.manual_seed(5)", "a wrong call changed a model or the seed"),
            ("ctypes.string_at(0)", "Fatal Python error: Segmentation fault"),
            ("ctypes.CDLL(None).abort()", "Fatal Python error: Aborted"),
        ],
    )
    def test_damage_is_noticed(self, damage, what):
        """The run fails where lucid is broken: so it can fail."""
        done = run_python(["-c", self.DAMAGE.format(tests=str(Path(__file__).parent), damage=damage)], timeout=120)
        assert done.returncode != 0
        assert what in done.stderr

    def test_hang_is_noticed(self):
        code = self.DAMAGE.replace("import numpy, lucid, bad_calls", "import numpy, lucid, bad_calls; bad_calls.MOST_SECONDS = 0.2")
        done = run_python(["-c", code.format(tests=str(Path(__file__).parent), damage="while True: pass")], timeout=120)
        assert done.returncode == 1
        assert "Timeout" in done.stderr and "in wrong" in done.stderr
        assert done.stdout.splitlines()[-1].isdigit()


SHAPE = (2, 4)
IDS = np.arange(8).reshape(SHAPE) + 5
NO_LABELS = np.full(SHAPE, -100)
BAD_VALUES = (-1, -100, -(2**31), -(2**63), 2**31 - 1, 2**31, 2**32, 2**32 + 3, 2**63 - 1)
METHODS = ("forward", "get_loss", "get_accuracy", "predict_token_ids")


def call(model: models.BERTForMaskedLM, method: str, **arguments: Any) -> Any:
    """Call a method on a batch of (2, 4) with these arguments in place of good ones."""
    if method in ("get_loss", "get_accuracy"):
        arguments = {"labels": NO_LABELS, **arguments}
    if "inputs_embeds" not in arguments:
        arguments = {"input_ids": IDS, **arguments}
    return getattr(model, method)(**arguments)


def with_value(base: np.ndarray[Any, Any], value: int) -> np.ndarray[Any, Any]:
    array = np.array(base, np.int64)
    array[1, 2] = value
    return array


class TestOutOfRange:
    """IndexError names the number, its place and the limit."""

    TABLES = (
        ("input_ids", V, "the word table has that many rows"),
        ("token_type_ids", TYPES, "the segment table has that many rows"),
        ("position_ids", P, "the position table has that many rows"),
    )

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(("name", "limit", "what"), TABLES)
    @pytest.mark.parametrize("value", [None, *BAD_VALUES])
    def test_tables(self, model, method, name, limit, what, value):
        value = limit if value is None else value
        with pytest.raises(IndexError) as caught:
            call(model, method, **{name: with_value(np.zeros(SHAPE), value)})
        assert str(caught.value) == f"{name}[1, 2] is {value}, outside [0, {limit}): {what}"

    @pytest.mark.parametrize("method", ["get_loss", "get_accuracy"])
    @pytest.mark.parametrize("value", [V, *(value for value in BAD_VALUES if value != -100)])
    def test_labels(self, model, method, value):
        with pytest.raises(IndexError) as caught:
            call(model, method, labels=with_value(NO_LABELS, value))
        assert str(caught.value) == f"labels[1, 2] is {value}, outside [0, {V}): a word of the vocabulary, or ignore_index -100"

    @pytest.mark.parametrize("value", [V, *BAD_VALUES])
    def test_masking(self, model, value):
        with pytest.raises(IndexError) as caught:
            model.create_masked_lm_inputs(with_value(IDS, value), mask_token_id=4)
        assert str(caught.value) == f"input_ids[1, 2] is {value}, outside [0, {V}): the vocabulary has that many words"
        with pytest.raises(IndexError) as caught:
            model.create_masked_lm_inputs(IDS, mask_token_id=value)
        assert str(caught.value) == f"mask_token_id {value} is outside the vocabulary, [0, {V})"

    @pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", ">i4", ">i8", "u1", "u2", "u4", "u8", ">u8"])
    @pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
    def test_every_type_of_integer(self, model, dtype, name):
        limit = {"input_ids": V, "token_type_ids": TYPES, "position_ids": P}[name]
        for value in {limit, np.iinfo(dtype).max, np.iinfo(dtype).min} - {0}:
            array = np.zeros(SHAPE, dtype)
            array[0, 3] = value
            with pytest.raises(IndexError) as caught:
                call(model, "forward", **{name: array})
            if value >= 2**63:
                assert str(caught.value) == f"{name} holds {value}, which is no 64-bit integer"
            else:
                assert str(caught.value).startswith(f"{name}[0, 3] is {value}, outside [0, {limit}): ")

    @pytest.mark.parametrize("value", [V, *BAD_VALUES])
    def test_not_looked_at_under_mask_0(self, model, value):
        mask = np.ones(SHAPE, int)
        mask[1, 2] = 0
        good = call(model, "forward", attention_mask=mask)
        odd = call(
            model, "forward", input_ids=with_value(IDS, value), attention_mask=mask, token_type_ids=with_value(np.zeros(SHAPE), value)
        )
        np.testing.assert_array_equal(odd.numpy(), good.numpy())


class TestWrongArguments:
    @pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids", "labels"])
    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "?", "O", "U3", "S3", "M8[s]", "m8[s]"])
    def test_types(self, model, name, dtype):
        with pytest.raises(TypeError) as caught:
            call(model, "get_loss", **{name: np.ones(SHAPE, "i8").astype(dtype)})
        assert f"must hold integers, not {np.dtype(dtype)}" in str(caught.value) or f"holds numbers, not {np.dtype(dtype)}" in str(
            caught.value
        )

    @pytest.mark.parametrize("shape", [(), (8,), (2, 4, 1), (1, 2, 4)])
    def test_ranks(self, model, shape):
        with pytest.raises(ValueError) as caught:
            model(np.ones(shape, int))
        hint = "; give input_ids[None] for one sequence" if shape == (8,) else ""
        assert str(caught.value) == f"input_ids must have shape (batch, sequence), not {shape}{hint}"

    @pytest.mark.parametrize("name", ["token_type_ids", "position_ids", "labels", "attention_mask"])
    @pytest.mark.parametrize("shape", [(2, 3), (1, 4), (4, 2), (2, 5), (0, 4), (2, 0)])
    def test_shapes(self, model, name, shape):
        """Nothing is broadcast."""
        with pytest.raises(ValueError) as caught:
            call(model, "get_loss", **{name: np.ones(shape, int)})
        assert str(caught.value) == f"{name} has shape {shape}, the batch has shape (2, 4)"

    def test_ragged(self, model):
        with pytest.raises(
            ValueError, match=r"^nested lists of unequal lengths: pad them to one length, or give the texts to a text method$"
        ):
            model([[1, 2, 3], [1]])

    def test_too_long(self, model):
        with pytest.raises(ValueError) as caught:
            model(np.ones((1, P + 1), int))
        assert str(caught.value) == f"a sequence has {P + 1} tokens, the position table only {P} rows: shorten or split the text"

    @pytest.mark.parametrize("bad", [2, -1, 0.5, float("nan"), float("inf")])
    def test_masks(self, model, bad):
        mask = np.ones(SHAPE, type(bad))
        mask[0, 1] = bad
        with pytest.raises(ValueError, match=r"^attention_mask must hold 0 \(padding\) and 1 \(token\) only$"):
            call(model, "forward", attention_mask=mask)

    @pytest.mark.parametrize("method", ["get_loss", "get_accuracy"])
    def test_label_under_padding(self, model, method):
        mask = np.ones(SHAPE, int)
        mask[1, 2] = 0
        with pytest.raises(ValueError) as caught:
            call(model, method, labels=with_value(NO_LABELS, 7), attention_mask=mask)
        assert str(caught.value) == "labels[1, 2] is 7, but attention_mask is 0 there: set that label to -100"

    @pytest.mark.parametrize("reduction", ["none", "Mean", "", 0, False])
    def test_reduction(self, model, reduction):
        with pytest.raises(ValueError) as caught:
            call(model, "get_loss", reduction=reduction)
        assert str(caught.value) == f"reduction must be 'mean', 'sum' or None, not {reduction!r}"

    def test_both_or_neither(self, model):
        for arguments in ({}, {"input_ids": IDS, "inputs_embeds": np.zeros((*SHAPE, C), "f4")}):
            with pytest.raises(ValueError, match=r"^give exactly one of input_ids and inputs_embeds$"):
                model(**arguments)

    @pytest.mark.parametrize("name", ["mlm_probability", "mask_replace_prob", "random_replace_prob"])
    @pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf"), float("-inf")])
    def test_probabilities(self, model, name, p):
        with pytest.raises(ValueError) as caught:
            model.create_masked_lm_inputs(IDS, mask_token_id=4, **{name: p})
        assert str(caught.value) == f"{name} must lie between 0 and 1, not {p}"

    def test_probabilities_together(self, model):
        with pytest.raises(ValueError, match=r"must not exceed 1, they make 1\.2"):
            model.create_masked_lm_inputs(IDS, mask_token_id=4, mask_replace_prob=0.7, random_replace_prob=0.5)

    @pytest.mark.parametrize(
        ("seed", "kind"), [(-1, ValueError), (2**64, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)]
    )
    def test_seeds(self, model, seed, kind):
        for use in (lambda: lucid.manual_seed(seed), lambda: model.create_masked_lm_inputs(IDS, mask_token_id=4, seed=seed)):
            with pytest.raises(kind, match=r"^a seed is an integer from 0 to 2\*\*64 - 1, not "):
                use()

    @pytest.mark.parametrize(
        ("n", "kind"), [(0, ValueError), (-1, ValueError), (1025, ValueError), (2.0, TypeError), ("2", TypeError), (True, TypeError)]
    )
    def test_threads(self, n, kind):
        before = lucid.get_num_threads()
        with pytest.raises(kind, match="set_num_threads wants"):
            lucid.set_num_threads(n)
        assert lucid.get_num_threads() == before

    @pytest.mark.parametrize("tokenizer", [None, "bert-base-uncased", models.BERTTokenizerFast, object()])
    @pytest.mark.parametrize("text", ["the sun", ["the sun"], []])
    @pytest.mark.parametrize("method", ["get_loss_from_text", "predict_token_ids_from_text"])
    def test_tokenizers(self, model, tokenizer, text, method):
        """Also where there is no text to use it on."""
        with pytest.raises((TypeError, ValueError), match="tokenizer"):
            getattr(model, method)(tokenizer, text)

    @pytest.mark.parametrize("top_k", [0, -1, V + 1, 2**63])
    def test_top_k(self, model, top_k):
        with pytest.raises(ValueError) as caught:
            model.fill_mask("the [MASK]", top_k=top_k)
        assert str(caught.value) == f"top_k must lie between 1 and the {V} words of the model, not {top_k}"

    @pytest.mark.parametrize("targets", [[], "sun", ["sun", "moon"], [""]])
    def test_targets(self, model, targets):
        with pytest.raises(ValueError, match="target"):
            model.fill_mask("the [MASK]", targets=targets)

    def test_device(self, model):
        with pytest.raises(ValueError, match=r"^device 'cuda' is unknown: use 'cpu' or 'gpu'$"):
            model.to("cuda")
        with pytest.raises(ValueError, match=r"^device 'cuda' is unknown"):
            model.predict_token_ids_from_text(model.tokenizer, "the", device="cuda")


class TestOddButRight:
    @pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0), (1, 0), (0, 1)])
    def test_empty_batches(self, model, shape):
        """Valid, with empty results."""
        ids, labels = np.zeros(shape, int), np.full(shape, -100)
        backbone = models.BERT(models.BERTConfig.sized(1, C, vocab_size=V, num_attention_heads=2, max_position_embeddings=P)).eval()
        for mask in (None, np.ones(shape, int)):
            assert model(ids, mask).shape == (*shape, V)
            assert model(inputs_embeds=np.zeros((*shape, C), "f4"), attention_mask=mask).shape == (*shape, V)
            sequence, pooled = backbone(ids, mask)
            assert sequence.shape == (*shape, C) and pooled.shape == (shape[0], C) and not pooled.numpy().any()
            assert model.predict_token_ids(ids, mask).shape == shape
            assert model.get_loss(labels, ids, mask).item() == 0
            assert model.get_loss(labels, ids, mask, reduction=None).shape == (0,)
            assert model.get_accuracy(labels, ids, mask).item() == 0
            assert [part.shape for part in model.create_masked_lm_inputs(ids, mask, mask_token_id=4)] == [shape, shape]

    def test_empty_lists(self, model):
        assert model([[], []]).shape == (2, 0, V)

    def test_no_texts(self, model):
        assert model.fill_mask([]) == []
        assert model.predict_token_ids_from_text(model.tokenizer, []).shape[0] == 0
        assert model.get_loss_from_text(model.tokenizer, []).item() == 0

    def test_rows_without_tokens(self, model):
        """Zeros, and nothing that is not a number; the other rows are what they are alone."""
        mask = np.array([[0, 0, 0, 0], [1, 1, 0, 1]])
        logits = model(IDS, mask).numpy()
        assert not logits[mask == 0].any()
        np.testing.assert_array_equal(logits[1], model(IDS[1:], mask[1:]).numpy()[0])
        assert model.get_loss(NO_LABELS, IDS, np.zeros(SHAPE, int)).item() == 0
        backbone = models.BERT(models.BERTConfig.sized(1, C, vocab_size=V, num_attention_heads=2, max_position_embeddings=P)).eval()
        sequence, pooled = backbone(IDS, mask)
        assert not sequence.numpy()[mask == 0].any() and not pooled.numpy()[0].any() and pooled.numpy()[1].all()

    @pytest.mark.parametrize(
        "relay",
        [
            lambda a: a.tolist(),
            lambda a: tuple(map(tuple, a.tolist())),
            np.asfortranarray,
            lambda a: np.repeat(a, 2, axis=0)[::2],
            lambda a: np.repeat(a, 3, axis=1)[:, ::3],
            lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
            lambda a: a.T.copy().T,
            lambda a: a.astype(">i8"),
            lambda a: a.astype("u1") if a.min() >= 0 else a.astype("i1"),
            lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),  # neither aligned nor to be written
            lambda a: a.view(np.memmap),
            lucid.Tensor,
            lambda a: memoryview(np.ascontiguousarray(a)),
        ],
    )
    def test_layouts(self, model, relay):
        """However the numbers lie, the result has the same bits, and the numbers are left alone."""
        labels = with_value(NO_LABELS, 7)
        arrays = {
            "input_ids": IDS,
            "attention_mask": np.ones(SHAPE, int),
            "token_type_ids": IDS % 2,
            "position_ids": IDS % P,
            "labels": labels,
        }
        wanted = model.get_loss(**arrays, reduction=None).numpy()
        given = {name: relay(array) for name, array in arrays.items()}
        for array in given.values():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        np.testing.assert_array_equal(model.get_loss(**given, reduction=None).numpy(), wanted)
        for name, array in given.items():
            np.testing.assert_array_equal(np.asarray(array), arrays[name])

    def test_embeddings_that_are_not_finite(self, model):
        """They reach the tokens of their own sequence, and no other."""
        embeds = np.random.default_rng(0).standard_normal((3, 4, C)).astype("f4")
        clean = model(inputs_embeds=embeds).numpy()
        for bad in (np.nan, np.inf, -np.inf, 3e38):
            embeds[1, 2, 3] = bad
            logits = model(inputs_embeds=embeds).numpy()
            np.testing.assert_array_equal(logits[[0, 2]], clean[[0, 2]])
            ids = model.predict_token_ids(inputs_embeds=embeds).numpy()
            assert ((ids >= 0) & (ids < V)).all()

    def test_nothing_to_mask(self, model):
        """Only special tokens, or a probability of 0: no label, and the ids as they were."""
        for arguments in ({"input_ids": np.zeros(SHAPE, int)}, {"input_ids": IDS, "mlm_probability": 0.0}):
            masked, labels = model.create_masked_lm_inputs(**arguments, mask_token_id=4)
            np.testing.assert_array_equal(masked.numpy(), arguments["input_ids"])
            assert (labels.numpy() == -100).all()

    @pytest.mark.parametrize("kind", [bool, np.int8, np.float32])
    def test_special_tokens_mask(self, model, kind):
        """A mask of any type that holds 0 and 1, as attention_mask."""
        special = np.ones(SHAPE, kind)
        special[1, 2] = 0
        masked, labels = model.create_masked_lm_inputs(
            IDS, None, special, mask_token_id=4, mlm_probability=1.0, mask_replace_prob=1.0, random_replace_prob=0
        )
        np.testing.assert_array_equal(labels.numpy(), with_value(NO_LABELS, IDS[1, 2]))
        np.testing.assert_array_equal(masked.numpy(), with_value(IDS, 4))

    def test_word_table_with_more_rows_than_the_tokenizer_has_words(self, model):
        """As in checkpoints whose word table is padded to a round number: the rows beyond have no name."""
        assert model.tokenizer.vocab_size < V
        (fills,) = model.fill_mask("the [MASK] sun", top_k=V)
        assert sorted(fill.token for fill in fills) == list(range(V))
        for fill in fills:
            if fill.token >= model.tokenizer.vocab_size:
                assert fill.token_str == "[UNK]"

    def test_texts_that_are_too_long(self, model):
        with pytest.raises(ValueError, match=f"13 tokens with .*position table {P} rows"):
            model.get_loss_from_text(model.tokenizer, "the " * 10 + "[MASK]")


class TestWhatWouldCrash:
    """Each in a process of its own: unchecked, these read memory that is not there."""

    HEAD = """
import numpy as np, lucid.models as models
from lucid.ops.attention import attention
from lucid.ops.embedding import embedding
from lucid.ops.linear import PackedWeight, linear
model = models.BERTForMaskedLM(models.BERTConfig.sized(1, 16, vocab_size=50, num_attention_heads=2, max_position_embeddings=9)).eval()
f, i, z, w = np.zeros((5, 8), "f4"), np.array([1, 2**30], "i4"), np.zeros(2, "i4"), PackedWeight.pack(np.ones((10, 8), "f4"))
masked = np.ma.array([[1, 2**30]], mask=[[0, 1]])  # min and max do not see the second number, kernels would
def look_up(words, ids):
    return embedding(words, f, f, f[0], f[0], ids=ids, position_ids=z, type_ids=z, eps=1e-5)
def like(weight, shape):
    return PackedWeight("float32", weight.panels, None, shape)
def wide(dtype, *shape):
    return np.broadcast_to(np.ones((), dtype), shape)
"""

    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            ("model(masked)", "TypeError"),
            ("model([[1, 2]], position_ids=masked)", "TypeError"),
            ("model([[1, 2]], token_type_ids=masked)", "TypeError"),
            ("model.get_loss(masked, [[1, 2]])", "TypeError"),
            ("look_up(f, np.ma.array(i, mask=[0, 1]))", "TypeError"),
            ("look_up(f, i)", "IndexError"),
            ("look_up(like(w, (10**6, 8)), z + 9999)", "ValueError"),
            ("linear(f, like(w, (10**6, 8)))", "ValueError"),
            ("linear(np.ones((3, 10**6), 'f4'), like(w, (10, 10**6)))", "ValueError"),
            ("linear(f, PackedWeight('float32', None, None, (10, 8)))", "TypeError"),
            ("attention(np.ones((5, 24), 'f4'), n_heads=2, key_starts=np.array([0, 2**31 - 1, -2, 5], 'i4'))", "ValueError"),
            ("model(wide('i4', 1 << 20, 1 << 20))", "ValueError"),
            ("model(wide('i8', 1 << 40, 0))", "ValueError"),
            ("model(inputs_embeds=wide('f4', 1 << 20, 1 << 20, 16))", "ValueError"),
            ("model.create_masked_lm_inputs(wide('i8', 1 << 20, 1 << 20))", "ValueError"),
            ("model.create_masked_lm_inputs(wide('i8', 0, 1 << 40))", "ValueError"),
        ],
    )
    def test_raises(self, code, kind):
        done = run_python(["-c", self.HEAD + code], timeout=120)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"{kind}: ")

    def test_the_same_calls_work_when_they_are_right(self):
        """So the cases above fail for their own reasons."""
        code = (
            "assert model(wide('i4', 2, 3)).shape == (2, 3, 50)\n"
            "assert model(inputs_embeds=wide('f4', 2, 3, 16)).shape == (2, 3, 50)\n"
            "assert model.get_loss(masked.data % 9, [[1, 2]]).shape == ()\n"
            "assert look_up(f, i % 2).shape == look_up(w, z + 9).shape == (2, 8)\n"
            "assert linear(f, like(w, (10, 8))).shape == (5, 10)\n"
            "assert attention(np.ones((5, 24), 'f4'), n_heads=2, key_starts=np.array([0, 2, 2, 5], 'i4')).shape == (5, 8)\n"
        )
        done = run_python(["-c", self.HEAD + code], timeout=120)
        assert done.returncode == 0, done.stderr
