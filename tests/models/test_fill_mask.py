"""`fill_mask`: guesses, targets of several pieces, masks filled together, texts longer than the position table."""

import itertools
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import lucid
import lucid.models as models
from lucid.models.bert import questions
from lucid.models.bert.windows import share_windows, window_around
from lucid.text.joining import Joiner

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB = [*SPECIAL, "the", "sun", "rises", "in", "east", ".", "el", "##ec", "##tron", "##ic", "new", "york", "a", "b", "##s"]
ID = {token: i for i, token in enumerate(VOCAB)}
MASK, CLS, SEP = ID["[MASK]"], ID["[CLS]"], ID["[SEP]"]
POSITIONS = 24


def make_model(vocab: list[str] = VOCAB, **overrides) -> models.BERTForMaskedLM:
    """A model whose random weights are large enough for words to differ."""
    lucid.manual_seed(1)
    sizes = {
        "vocab_size": len(vocab),
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.4,
    }
    model = models.BERTForMaskedLM(models.BERTConfig.base(**{**sizes, **overrides})).eval()
    for parameter in model.parameters():
        assert parameter.array is not None  # drawn now, under this seed
    model.tokenizer = models.BERTTokenizerFast(vocab=vocab)
    return model


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These arrays are so small that a second thread only costs time."""
    lucid.set_num_threads(1)
    yield
    lucid.set_num_threads(None)


@pytest.fixture(scope="module")
def model() -> models.BERTForMaskedLM:
    return make_model()


def log_probs(model, ids: list[int], place: int) -> np.ndarray:
    """What the model says of one place of [CLS] ids [SEP], by the road that users of ids take."""
    logits = model([[CLS, *ids, SEP]]).numpy()[0, place + 1].astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def texts_of_all_lengths() -> list[str]:
    rng = np.random.default_rng(0)
    words = VOCAB[5:11]
    texts = []
    for n in [1, 17, 3, 20, 2, 8, 21, 5, 13, 1, 9, 40, 4, 60]:
        text = [words[i] for i in rng.integers(0, len(words), n)]
        for place in rng.integers(0, n, 1 + n // 6):
            text[place] = "[MASK]"
        texts.append(" ".join(text))
    return texts


class TestGuesses:
    def test_are_the_best_words_by_their_probability(self, model):
        fills = model.fill_mask("the [MASK] rises in the [MASK] .", top_k=4)
        ids = [ID["the"], MASK, ID["rises"], ID["in"], ID["the"], MASK, ID["."]]
        assert [len(guesses) for guesses in fills] == [4, 4]
        for place, guesses in zip([1, 5], fills, strict=True):
            wanted = log_probs(model, ids, place)
            assert [fill.token for fill in guesses] == np.argsort(-wanted, kind="stable")[:4].tolist()
            for fill in guesses:
                assert fill.log_prob == pytest.approx(wanted[fill.token], abs=1e-5)
                assert fill.score == math.exp(fill.log_prob)
                assert (fill.token_str, fill.tokens, fill.n_pieces) == (VOCAB[fill.token], (fill.token,), 1)
                assert fill.target is None and fill.window is None
                filled = [*ids[:place], fill.token, *ids[place + 1 :]]
                assert fill.sequence == model.tokenizer.decode(
                    [i for i in filled if VOCAB[i] not in ("[CLS]", "[SEP]", "[PAD]")], skip_special_tokens=False
                )

    def test_all_words_together_are_certain(self, model):
        (guesses,) = model.fill_mask("a [MASK]", top_k=len(VOCAB))
        assert sum(fill.score for fill in guesses) == pytest.approx(1, abs=1e-6)
        assert len({fill.token for fill in guesses}) == len(VOCAB)

    @pytest.mark.parametrize("settings", [{}, {"targets": ["sun", "electron", "new york"]}, {"joint": True, "top_k": 3}])
    def test_depend_on_their_text_alone(self, model, settings, monkeypatch):
        texts = texts_of_all_lengths()
        together = model.fill_mask(texts, **settings)
        assert together == [model.fill_mask(text, **settings) for text in texts]
        assert together[::-1] == model.fill_mask(texts[::-1], **settings)
        monkeypatch.setattr(questions, "TOKENS_AT_ONCE", 30)
        monkeypatch.setattr(questions, "_MOST_LOGITS", 8)
        assert together == model.fill_mask(texts, **settings)
        try:
            lucid.set_num_threads(3)
            assert together == model.fill_mask(texts, **settings)
        finally:
            lucid.set_num_threads(1)

    def test_batches_hold_a_bounded_number_of_tokens(self, model, monkeypatch):
        seen = []
        pack_lists = questions.pack_lists
        monkeypatch.setattr(questions, "TOKENS_AT_ONCE", 30)
        monkeypatch.setattr(questions, "pack_lists", lambda config, rows: (seen.append(rows), pack_lists(config, rows))[1])
        model.fill_mask(texts_of_all_lengths())
        assert all(len(rows) == 1 or sum(map(len, rows)) <= 30 for rows in seen)
        lengths = [len(row) for rows in seen for row in rows]
        assert lengths == sorted(lengths, reverse=True)
        assert 3 < len(seen) < len(lengths)

    def test_in_train_mode_are_the_same_and_leave_it(self, model, monkeypatch):
        text = "the [MASK] rises"
        wanted = [model.fill_mask(text), model.fill_mask(text, targets=["sun", "electron"])]
        monkeypatch.setattr("lucid.autograd._record", lambda *_: pytest.fail("something went on the tape"))
        model.train()
        try:
            assert [model.fill_mask(text), model.fill_mask(text, targets=["sun", "electron"])] == wanted
            assert model.training
        finally:
            model.eval()

    def test_of_no_texts_are_none(self, model):
        assert model.fill_mask([]) == []
        assert model.fill_mask([], joint=True) == []

    def test_words_that_only_the_model_has(self):
        padded = make_model(vocab_size=len(VOCAB) + 4)
        (guesses,) = padded.fill_mask("a [MASK]", top_k=len(VOCAB) + 4)
        assert {fill.token_str for fill in guesses if fill.token >= len(VOCAB)} == {"[UNK]"}

    def test_survive_pickle_and_compare(self, model):
        fills = model.fill_mask("a [MASK]")
        assert pickle.loads(pickle.dumps(fills)) == fills


class TestErrors:
    def test_no_mask(self, model):
        with pytest.raises(ValueError, match=r"^no \[MASK\] in 'the sun'"):
            model.fill_mask("the sun")
        with pytest.raises(ValueError, match=r"^texts\[1\]: no \[MASK\] in 'the sun'"):
            model.fill_mask(["a [MASK]", "the sun"])

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"top_k": 0}, ValueError, "top_k must lie between 1 and the 20 words"),
            ({"top_k": 21}, ValueError, "top_k must lie between 1 and the 20 words"),
            ({"top_k": 2.5}, TypeError, "top_k must be an integer, not 2.5"),
            ({"joint": True, "beam_width": 0}, ValueError, "beam_width must be at least 1"),
            ({"texts": 3}, TypeError, "texts must be a str or a list of str, not int"),
            ({"texts": ["a [MASK]", b"a"]}, TypeError, r"texts\[1\] is a bytes"),
            ({"targets": []}, ValueError, "not an empty one"),
            ({"targets": "sun"}, ValueError, "targets must be a list of words"),
            ({"targets": ["sun", 3]}, TypeError, "targets holds 3, a int"),
            ({"targets": ["sun", "moon"]}, ValueError, r"target 'moon' is not in this vocabulary: it becomes \[UNK\]"),
            ({"targets": ["new moon"]}, ValueError, "target 'new moon' is not in this vocabulary"),
            ({"targets": [" "]}, ValueError, "target ' ' is no word"),
            ({"targets": ["a [SEP]"]}, ValueError, r"target 'a \[SEP\]' holds \[SEP\], which is no word"),
            ({"targets": ["a " * 23]}, ValueError, "has 23 word pieces, the model has room for 22"),
            ({"tokenizer": "bert"}, TypeError, "tokenizer must be a BERTTokenizerFast"),
        ],
    )
    def test_wrong_arguments(self, model, arguments, error, message):
        with pytest.raises(error, match=message):
            model.fill_mask(**{"texts": "a [MASK]", **arguments})

    def test_settings_are_checked_without_texts(self, model):
        with pytest.raises(ValueError, match="moon"):
            model.fill_mask([], targets=["moon"])

    def test_no_tokenizer(self):
        with pytest.raises(ValueError, match="this model has no tokenizer"):
            models.bert_for_masked_lm_tiny(vocab_size=200).fill_mask("a [MASK]")

    def test_tokenizer_of_another_model(self):
        small = make_model(vocab_size=len(VOCAB) - 3)
        with pytest.raises(IndexError, match="belongs to another model"):
            small.fill_mask("b [MASK]")

    def test_no_room(self):
        with pytest.raises(ValueError, match="no room for a token"):
            make_model(max_position_embeddings=2).fill_mask("[MASK]")


class TestTargets:
    def test_of_one_piece_score_as_guesses_do(self, model):
        text = "the [MASK] rises in the [MASK] ."
        every = model.fill_mask(text, top_k=len(VOCAB))
        ranked = model.fill_mask(text, targets=["sun", "york", "a", "sun"])
        for guesses, targets in zip(every, ranked, strict=True):
            wanted = [fill for fill in guesses if fill.token_str in ("sun", "york", "a")]
            assert [(f.score, f.log_prob, f.token, f.sequence) for f in targets] == [
                (f.score, f.log_prob, f.token, f.sequence) for f in wanted
            ]

    def test_of_several_pieces_are_a_chain(self, model):
        targets = ["electron", "electronic", "New York", "sun"]
        fills = model.fill_mask("the [MASK] is [MASK]".replace("is", "in"), targets=targets)
        pieces = {
            "electron": [ID["el"], ID["##ec"], ID["##tron"]],
            "electronic": [ID["el"], ID["##ec"], ID["##tron"], ID["##ic"]],
            "New York": [ID["new"], ID["york"]],
            "sun": [ID["sun"]],
        }
        for mask, ranked in enumerate(fills):
            assert [fill.log_prob for fill in ranked] == sorted((fill.log_prob for fill in ranked), reverse=True)
            assert {fill.target for fill in ranked} == set(targets)
            for fill in ranked:
                word = pieces[fill.target]
                before, after = ([ID["the"]], [ID["in"], MASK]) if mask == 0 else ([ID["the"], MASK, ID["in"]], [])
                log_prob = 0.0
                for i, piece in enumerate(word):
                    ids = [*before, *word[:i], *[MASK] * (len(word) - i), *after]
                    log_prob += log_probs(model, ids, len(before) + i)[piece]
                assert fill.log_prob == pytest.approx(log_prob, abs=1e-4)
                assert fill.score == math.exp(fill.log_prob)
                assert (fill.tokens, fill.n_pieces) == (tuple(word), len(word))
                assert fill.token == (word[0] if len(word) == 1 else None)
        electron = next(fill for fill in fills[0] if fill.target == "electron")
        assert (electron.token_str, electron.sequence) == ("electron", "the electron in [MASK]")

    def test_do_not_depend_on_other_targets(self, model):
        text = "the [MASK] rises"
        several = {fill.target: fill for fill in model.fill_mask(text, targets=["electron", "electronic", "sun", "new york"])[0]}
        for word, fill in several.items():
            assert model.fill_mask(text, targets=[word]) == [[fill]]

    def test_the_best_top_k_are_given(self, model):
        text, targets = "the [MASK] rises", ["a", "electron", "sun", "b", "new york", "el"]
        every = model.fill_mask(text, top_k=99, targets=targets)[0]
        assert len(every) == 6
        assert model.fill_mask(text, targets=targets)[0] == every[:5]

    def test_of_two_spellings_both_are_named(self, model):
        fills = model.fill_mask("the [MASK]", targets=["Sun", "sun"])[0]
        assert [(fill.target, fill.token_str) for fill in fills] == [("Sun", "sun"), ("sun", "sun")]
        assert fills[0].score == fills[1].score


class TestJoint:
    def brute_force(self, model, ids: list[int], words: list[list[int]]) -> list[tuple[float, tuple[tuple[int, ...], ...]]]:
        """All fillings with their log-probabilities, each word after the other, each piece after the other."""
        found = []
        masks = [i for i, token in enumerate(ids) if token == MASK]
        for filling in itertools.product(words, repeat=len(masks)):
            log_prob, contents = 0.0, [[MASK] for _ in masks]
            for mask, word in enumerate(filling):
                for i, piece in enumerate(word):
                    contents[mask] = [*word[:i], *[MASK] * (len(word) - i)]
                    row, place = [], None
                    for j, token in enumerate(ids):
                        if j == masks[mask]:
                            place = len(row) + i
                        row += contents[masks.index(j)] if j in masks else [token]
                    log_prob += log_probs(model, row, place)[piece]
                contents[mask] = word
            found.append((log_prob, tuple(map(tuple, filling))))
        return sorted(found, key=lambda item: -item[0])

    def test_equals_brute_force(self):
        small = make_model([*SPECIAL, "a", "b", "##s"])
        text = "[MASK] a [MASK] [MASK]"
        wanted = self.brute_force(small, [MASK, 5, MASK, MASK], [[word] for word in range(8)])
        found = small.fill_mask(text, top_k=20, joint=True, beam_width=64)
        assert [fill.tokens for fill in found] == [tokens for _, tokens in wanted[:20]]
        np.testing.assert_allclose([fill.log_prob for fill in found], [log_prob for log_prob, _ in wanted[:20]], atol=1e-4)
        assert sum(math.exp(log_prob) for log_prob, _ in wanted) == pytest.approx(1, abs=1e-6)
        for fill in found:
            tokens = [small.tokenizer.convert_ids_to_tokens(word[0]) for word in fill.tokens]
            assert fill.words == tuple(tokens)
            assert fill.score == math.exp(fill.log_prob)
            assert fill.windows is None
            assert fill.sequence == Joiner(small.tokenizer).join([fill.tokens[0][0], 5, fill.tokens[1][0], fill.tokens[2][0]])

    def test_with_targets_equals_brute_force(self, model):
        words = ["sun", "electron", "new york"]
        ids = [[ID["sun"]], [ID["el"], ID["##ec"], ID["##tron"]], [ID["new"], ID["york"]]]
        wanted = self.brute_force(model, [ID["the"], MASK, ID["in"], MASK], ids)
        found = model.fill_mask("the [MASK] in [MASK]", top_k=9, targets=[*words, "Sun"], joint=True)
        assert [fill.tokens for fill in found] == [tokens for _, tokens in wanted]
        np.testing.assert_allclose([fill.log_prob for fill in found], [log_prob for log_prob, _ in wanted], atol=1e-4)
        assert {word for fill in found for word in fill.words} == set(words)

    def test_a_beam_of_one_is_greedy(self, model):
        (found,) = model.fill_mask("the [MASK] [MASK] .", top_k=1, joint=True, beam_width=1)
        first = log_probs(model, [ID["the"], MASK, MASK, ID["."]], 1)
        best = int(first.argmax())
        second = log_probs(model, [ID["the"], best, MASK, ID["."]], 2)
        assert found.tokens == ((best,), (int(second.argmax()),))
        assert found.log_prob == pytest.approx(first.max() + second.max(), abs=1e-5)

    def test_a_wider_beam_is_never_worse(self, model):
        text = "[MASK] [MASK] rises [MASK] [MASK]"
        best = [model.fill_mask(text, top_k=1, joint=True, beam_width=width)[0].log_prob for width in (1, 20, 400)]
        assert best[0] <= best[1] + 1e-12 and best[1] <= best[2] + 1e-12

    def test_of_one_mask_are_its_guesses(self, model):
        text = "the [MASK] rises"
        joint, guesses = model.fill_mask(text, joint=True), model.fill_mask(text)[0]
        assert [(f.score, f.log_prob, f.words, f.sequence) for f in joint] == [
            (g.score, g.log_prob, (g.token_str,), g.sequence) for g in guesses
        ]

    def test_texts_with_different_numbers_of_masks(self, model):
        texts = ["[MASK]", "a [MASK] b [MASK]", "[MASK] [MASK] [MASK]"]
        found = model.fill_mask(texts, top_k=2, joint=True)
        assert [[len(fill.words) for fill in fills] for fills in found] == [[1, 1], [2, 2], [3, 3]]


class TestLongTexts:
    room = POSITIONS - 2

    def test_a_window_around_the_mask(self, model):
        words = [VOCAB[5 + i % 6] for i in range(100)]
        for place in (0, 3, 50, 95, 99):
            ids = [ID[word] for word in words]
            text = " ".join([*words[:place], "[MASK]", *words[place + 1 :]])
            (guesses,) = model.fill_mask(text, top_k=3)
            begin, end = guesses[0].window
            assert end - begin == self.room and begin <= place < end
            # As much on both sides as fits: in the middle, or else at an end of the text.
            assert abs((place - begin) - (end - 1 - place)) <= 1 or begin == 0 or end == 100
            ids[place] = MASK
            wanted = log_probs(model, ids[begin:end], place - begin)
            assert [fill.token for fill in guesses] == np.argsort(-wanted, kind="stable")[:3].tolist()
            assert guesses[0].log_prob == pytest.approx(wanted[guesses[0].token], abs=1e-5)
            ids[place] = guesses[0].token
            assert guesses[0].sequence == Joiner(model.tokenizer).join(ids[begin:end])
            assert model.tokenizer.tokenize(text)[begin:end][place - begin] == "[MASK]"

    def test_a_text_that_just_fits_has_none(self, model):
        for n in (self.room - 1, self.room):
            assert model.fill_mask("a " * (n - 1) + "[MASK]")[0][0].window is None
        assert model.fill_mask("a " * self.room + "[MASK]")[0][0].window == (1, self.room + 1)

    def test_masks_far_apart_have_windows_of_their_own(self, model):
        fills = model.fill_mask("a " * 10 + "[MASK] b b [MASK] " + "a " * 80 + "[MASK]", top_k=1)
        assert [guesses[0].window for guesses in fills] == [(1, 23), (1, 23), (73, 95)]

    def test_the_text_outside_the_window_does_not_matter(self, model):
        near, far = model.fill_mask(["sun " * 40 + "a " * 30 + "[MASK]" + " a" * 30, "b " * 40 + "a " * 30 + "[MASK]" + " a" * 30])
        assert [fill.log_prob for fill in near[0]] == [fill.log_prob for fill in far[0]]
        assert near[0][0].window == far[0][0].window == (60, 82)

    def test_a_target_of_several_pieces_makes_room(self, model):
        text = "a " * (self.room - 1) + "[MASK]"
        fills = {fill.target: fill for fill in model.fill_mask(text, targets=["sun", "electron"])[0]}
        assert fills["sun"].window is None
        assert fills["electron"].window == (2, self.room)
        ids = [ID["a"]] * (self.room - 3)
        log_prob = sum(
            log_probs(model, [*ids, *word[:i], *[MASK] * (3 - i)], len(ids) + i)[word[i]]
            for word in [[ID["el"], ID["##ec"], ID["##tron"]]]
            for i in range(3)
        )
        assert fills["electron"].log_prob == pytest.approx(log_prob, abs=1e-4)
        assert fills["sun"].sequence == "a " * (self.room - 1) + "sun"
        assert fills["electron"].sequence == "a " * (self.room - 3) + "electron"

    def test_a_target_before_the_window_shifts_it_rightly(self, model):
        text = "a b " * 30 + "[MASK] [MASK]" + " sun" * 30
        (fill, *_) = model.fill_mask(text, top_k=1, targets=["electronic"], joint=True)
        # 60 tokens before; the second window holds the four pieces of the first word, which are one token of the text.
        assert fill.windows == ((51, 70), (55, 71))
        tokens = model.tokenizer.tokenize(text)
        assert tokens[60] == tokens[61] == "[MASK]"

    def test_a_text_of_masks_takes_no_more_than_its_windows(self, model):
        fills = model.fill_mask("[MASK] " * 500, top_k=1)
        assert len(fills) == 500
        assert max(len(guesses[0].sequence) for guesses in fills) <= self.room * len("[MASK] ")
        (part, *_, last) = questions.parts_of(questions.MaskedText([MASK] * 500, tuple(range(500))), self.room)
        assert len(part.text.ids) <= 3 * self.room and len(last.text.masks) <= 3 * self.room

    @pytest.mark.parametrize("settings", [{}, {"targets": ["sun", "electron"]}])
    def test_masks_everywhere_are_read_as_one_by_one(self, model, settings):
        """A mask's guesses are those of the window of ids that it names."""
        rng = np.random.default_rng(3)
        ids = [MASK if rng.random() < 0.2 else int(rng.integers(5, 11)) for _ in range(150)]
        places = [i for i, token in enumerate(ids) if token == MASK]
        fills = model.fill_mask(" ".join(VOCAB[i] for i in ids), top_k=20, **settings)
        assert len(fills) == len(places)
        for place, guesses in zip(places, fills, strict=True):
            for fill in guesses:
                begin, end = fill.window
                n = fill.n_pieces
                log_prob = sum(
                    log_probs(model, [*ids[begin:place], *fill.tokens[:i], *[MASK] * (n - i), *ids[place + 1 : end]], place - begin + i)[
                        piece
                    ]
                    for i, piece in enumerate(fill.tokens)
                )
                assert end - begin + n - 1 == self.room
                assert fill.log_prob == pytest.approx(log_prob, abs=1e-4)

    def test_joint(self, model):
        text = "a " * 10 + "[MASK] b " + "a " * 80 + "[MASK]"
        fillings = model.fill_mask(text, top_k=2, joint=True)
        assert fillings[0].windows == ((0, 22), (71, 93))
        assert fillings[0].sequence.count("a ") >= 90  # the whole text
        assert fillings[0].log_prob >= fillings[1].log_prob


class TestWindows:
    @pytest.mark.parametrize("room", [1, 2, 3, 8, 22])
    def test_hold_what_is_asked(self, room):
        for n_tokens in range(1, 40):
            for begin in range(n_tokens):
                for end in range(begin + 1, min(n_tokens, begin + room) + 1):
                    first, last = window_around(n_tokens, begin, end, room)
                    assert 0 <= first <= begin and end <= last <= n_tokens
                    assert last - first == min(n_tokens, room)

    @pytest.mark.parametrize("room", [1, 2, 3, 8, 22])
    def test_give_every_mask_context(self, room):
        rng = np.random.default_rng(room)
        for _ in range(200):
            n_tokens = int(rng.integers(1, 120))
            places = np.flatnonzero(rng.random(n_tokens) < 0.1).tolist() or [0]
            groups = share_windows(places, n_tokens, room)
            assert [mask for group in groups for mask in group] == list(range(len(places)))
            if n_tokens <= room:
                assert len(groups) == 1
            for group in groups:
                first, last = window_around(n_tokens, places[group[0]], places[group[-1]] + 1, room)
                for mask in group:
                    assert first <= places[mask] < last
                    assert places[mask] - first >= room // 4 or first == 0
                    assert last - 1 - places[mask] >= room // 4 or last == n_tokens

    def test_of_filled_ids_are_told_in_tokens_of_the_text(self):
        text = questions.MaskedText([ID["a"]] * 9, (2, 5, 6))
        question = questions.Question(text, ((7, 7, 7), (8,), (9, 9)), ())
        ids, starts = question.filled()
        owners = [0, 1, 2, 2, 2, 3, 4, 5, 6, 6, 7, 8]  # of each filled id, the token of the text
        assert (len(ids), starts) == (12, [2, 7, 8])
        for begin in range(12):
            for end in range(begin + 1, 13):
                wanted = None if (begin, end) == (0, 12) else (owners[begin], owners[end - 1] + 1)
                assert question.of_text((begin, end), starts) == wanted


class TestJoiner:
    def test_joins_as_decode_does(self, model):
        rng = np.random.default_rng(0)
        writer = Joiner(model.tokenizer)
        for n in range(200):
            ids = [i for i in rng.integers(0, len(VOCAB), n % 9).tolist() if VOCAB[i] not in ("[PAD]", "[CLS]", "[SEP]")]
            assert writer.join(ids) == model.tokenizer.decode(ids, skip_special_tokens=False)
            assert writer.join(ids[:3]) + writer.join(ids[3:], is_start=len(ids) <= 3 and not ids[:3]) == writer.join(ids)

    def test_leaves_special_tokens_out(self, model):
        assert Joiner(model.tokenizer).join([CLS, ID["a"], 0, MASK, SEP]) == "a [MASK]"

    def test_a_first_mask_that_is_filled_with_nothing(self, model):
        (guesses,) = model.fill_mask("[MASK] a", top_k=len(VOCAB))
        sequences = {fill.token_str: fill.sequence for fill in guesses}
        assert (sequences["[SEP]"], sequences["##s"], sequences["sun"]) == ("a", "##s a", "sun a")


SHARED = Path(os.environ.get("LUCID_SHARED") or Path(__file__).resolve().parents[2].parent / "shared")
CHECKPOINT = SHARED / "models" / "splade-tiny"


@pytest.fixture(scope="module")
def trained() -> models.BERTForMaskedLM:
    if not CHECKPOINT.is_dir():
        pytest.skip("the shared checkpoint splade-tiny is not there")
    return models.BERTForMaskedLM.from_pretrained(CHECKPOINT)


class TestCheckpoint:
    def test_known_guesses(self, trained):
        (guesses,) = trained.fill_mask("Paris is the [MASK] of France.")
        assert [fill.token_str for fill in guesses] == ["city", "mountains", "france", "where", "paris"]
        assert guesses[0].score == pytest.approx(0.11368, abs=1e-5)
        assert guesses[0].sequence == "paris is the city of france."

    def test_a_word_of_several_pieces(self, trained):
        (fills,) = trained.fill_mask("The [MASK] of the brain.", targets=["electroencephalography", "city"])
        assert [(fill.target, fill.n_pieces) for fill in fills] == [("city", 1), ("electroencephalography", 5)]

    def test_three_thousand_words(self, trained):
        text = "word " * 1500 + "The [MASK] rises in the east. " + "word " * 1500
        (guesses,) = trained.fill_mask(text)
        assert guesses[0].window == (1247, 1757)
        assert "word the " + guesses[0].token_str + " rises in the east. word" in guesses[0].sequence
