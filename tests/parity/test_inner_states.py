"""Hidden states, attention maps and resized vocabularies against transformers."""

from pathlib import Path

import numpy as np
import pytest

from lucid.models import BERT, BERTForMaskedLM

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=78, num_attention_heads=3, num_hidden_layers=3, intermediate_size=201, vocab_size=1021, initializer_range=0.1
    )
    path = tmp_path_factory.mktemp("checkpoint")
    transformers.BertForMaskedLM(config).save_pretrained(path)
    return path


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.ones((3, 21), np.int64)
    mask[1, 15:] = 0
    mask[2, 4:7] = 0
    return rng.integers(0, 1021, (3, 21)), mask


def test_hidden_states_and_attention_maps(folder: Path) -> None:
    ids, mask = batch()
    reference = transformers.BertForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = reference(torch.tensor(ids), attention_mask=torch.tensor(mask), output_hidden_states=True, output_attentions=True)
    ours = BERTForMaskedLM.from_pretrained(folder)(ids, mask, output_hidden_states=True, output_attentions=True)
    is_real = mask == 1
    assert len(ours.hidden_states) == len(wanted.hidden_states) == 4
    for state, reference_state in zip(ours.hidden_states, wanted.hidden_states, strict=True):
        difference = np.abs(state.numpy() - reference_state.numpy())[is_real]
        assert difference.max() <= 1e-4 * np.abs(reference_state.numpy()).max()
        assert (state.numpy()[~is_real] == 0).all()
    assert len(ours.attentions) == len(wanted.attentions) == 3
    pairs = is_real[:, None, :, None] & is_real[:, None, None, :]
    for maps, reference_maps in zip(ours.attentions, wanted.attentions, strict=True):
        both = np.broadcast_to(pairs, maps.shape)
        assert np.abs(maps.numpy() - reference_maps.numpy())[both].max() <= 1e-5
        assert (maps.numpy()[~both] == 0).all()
        np.testing.assert_allclose(maps.numpy().sum(axis=-1)[np.broadcast_to(is_real[:, None], maps.shape[:3])], 1, atol=1e-5)


def test_asking_for_them_changes_no_bit(folder: Path) -> None:
    ids, mask = batch()
    model, backbone = BERTForMaskedLM.from_pretrained(folder), BERT.from_pretrained(folder)
    assert (model(ids, mask, output_attentions=True).logits.numpy() == model(ids, mask).numpy()).all()
    out = backbone(ids, mask, output_hidden_states=True)
    assert out.attentions is None
    assert (out.sequence_output.numpy() == backbone(ids, mask)[0].numpy()).all()
    assert (out.hidden_states[-1].numpy() == out.sequence_output.numpy()).all()


@pytest.mark.parametrize("n_words", [1030, 700])
def test_resized_vocabulary(folder: Path, tmp_path: Path, n_words: int) -> None:
    ids, mask = batch()
    ids %= min(n_words, 1021)
    model = BERTForMaskedLM.from_pretrained(folder)
    before = model(ids, mask).numpy()
    table = model.resize_token_embeddings(n_words)
    kept = min(n_words, 1021)
    assert model.get_input_embeddings() is table and model.cls.predictions.decoder.weight is table.weight
    assert model.config.vocab_size == model.bert.config.vocab_size == n_words
    assert (model(ids, mask).numpy()[..., :kept] == before[..., :kept]).all()
    model.save_pretrained(tmp_path)
    reference = transformers.BertForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted = reference(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
    ours = BERTForMaskedLM.from_pretrained(tmp_path)(ids, mask).numpy()
    assert np.abs(ours - wanted)[mask == 1].max() <= 4e-6 * max(5, np.abs(wanted).max())


def test_a_vocabulary_without_its_padding_is_refused(folder: Path) -> None:
    model = BERTForMaskedLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="vocab_size"):
        model.resize_token_embeddings(0)
    assert model.config.vocab_size == 1021
