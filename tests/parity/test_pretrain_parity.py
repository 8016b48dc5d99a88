"""A checkpoint of a run, loaded by transformers: the loss on the same masks."""

import math

import numpy as np
import pytest
import texts

from lucid.data import Place
from lucid.threads import set_num_threads
from lucid.training import PretrainOptions, evaluate, pretrain
from lucid.training.checkpoint import Checkpoints, load_model
from lucid.training.run import put_together

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def test_the_same_loss_on_the_same_masks(tmp_path):
    data, validation = tmp_path / "train.txt", tmp_path / "validation.txt"
    texts.write(data, texts.documents(1, 60))
    texts.write(validation, texts.documents(2, 60))
    texts.tokenizer().save_pretrained(tmp_path / "tokenizer")
    options = PretrainOptions(
        data=(str(data),),
        validation=(str(validation),),
        out=str(tmp_path / "run"),
        size="tiny",
        tokenizer=str(tmp_path / "tokenizer"),
        max_length=32,
        batch_tokens=512,
        steps=5,
        lr=1e-3,
        mask_share=0.3,
        threads=1,
    )
    pretrain(options)
    found = Checkpoints(tmp_path / "run" / "checkpoints").newest()
    batches = put_together(options).validation
    ours = evaluate(load_model(found), batches)
    theirs = transformers.BertForMaskedLM.from_pretrained(found.folder).eval()
    total, n_labels, n_right, place = 0.0, 0, 0, Place()
    while place.epoch == 0:
        batch = batches.at(place)
        for start, stop in zip(batch.starts[:-1], batch.starts[1:], strict=True):
            labels = torch.from_numpy(batch.labels[start:stop])
            with torch.no_grad():
                logits = theirs(torch.from_numpy(batch.ids[start:stop])[None]).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum", ignore_index=-100))
            n_right += int((logits.argmax(-1) == labels).sum())
            n_labels += int((labels != -100).sum())
        place = batch.end
    set_num_threads(None)
    assert n_labels == ours.n_labels > 100
    assert math.isclose(ours.loss.mean, total / n_labels, rel_tol=1e-5, abs_tol=1e-6)
    assert ours.accuracy.mean == pytest.approx(n_right / n_labels, abs=1e-9)
    assert np.array_equal(
        transformers.AutoTokenizer.from_pretrained(found.folder)("the sun sees")["input_ids"], texts.tokenizer().encode("the sun sees")
    )
