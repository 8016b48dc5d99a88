"""A run, put together from its options: tokenizer, data, model, optimizer. What cannot work is found before time is spent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lucid.random
from lucid.data import Batches, Examples, Masker, Masking, check_sources, find_sources, prepare_corpus
from lucid.data.shards import Corpus
from lucid.device import check_device
from lucid.errors import FormatError
from lucid.hub import checkpoint_folder
from lucid.models import BERTConfig, BERTForMaskedLM, BERTTokenizerFast
from lucid.models.config_file import read_config
from lucid.optim import AdamW, Schedule
from lucid.optim.adamw import default_groups
from lucid.training.options import SIZES, PretrainOptions
from lucid.training.trainer import Trainer
from lucid.training.view import progress_view

# Of the masks and the order of an evaluation: the same for every run, whatever it trains on, so that figures compare.
EVALUATION_SEED = 15

ProgressView = Callable[[int], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(slots=True)
class Run:
    """All parts of a run.

    Attributes
    ----------
    options : PretrainOptions, resolved
    tokenizer : BERTTokenizerFast
    config : BERTConfig
    corpus : Corpus
    batches : Batches
    validation : Batches or None
    n_validation_batches : int or None. How many of them to use; None is all.
    """

    options: PretrainOptions
    tokenizer: BERTTokenizerFast
    config: BERTConfig
    corpus: Corpus
    batches: Batches
    validation: Batches | None
    n_validation_batches: int | None

    def new_model(self) -> BERTForMaskedLM:
        """Return the model that the run starts from: a checkpoint's, or one whose weights are drawn by the run's seed."""
        if self.options.from_checkpoint is not None:
            loaded = BERTForMaskedLM.from_pretrained(self.options.from_checkpoint)
            model = loaded
            if loaded.config != replace(self.config, tie_word_embedding=loaded.config.tie_word_embedding):  # --dropout
                model = BERTForMaskedLM(replace(self.config, tie_word_embedding=loaded.config.tie_word_embedding))
                model.load_state_dict(loaded.state_dict())
        else:
            before = lucid.random.get_state()
            lucid.random.manual_seed(self.options.seed)
            model = BERTForMaskedLM(self.config)
            lucid.random.set_state(*before)
        model.tokenizer = self.tokenizer
        model.special_token_ids = sorted(set(self.tokenizer.all_special_ids))
        return model

    def trainer(self, model: BERTForMaskedLM) -> Trainer:
        """Return a trainer at the run's beginning."""
        o = self.options
        assert o.lr is not None and o.steps is not None
        model.to(check_device(o.device), o.dtype)
        optimizer = AdamW(default_groups(model, o.weight_decay), lr=o.lr, betas=(0.9, o.beta2), max_grad_norm=o.clip)
        schedule = Schedule(optimizer, round(o.warmup * o.steps), o.steps, o.decay)
        return Trainer(model, optimizer, schedule, self.batches, o.accumulate)


def put_together(options: PretrainOptions) -> Run:
    """Check everything that options name, tokenise the text if that was not done before, and return the run.

    Raises
    ------
    FileNotFoundError, FormatError, ValueError
        An option, a file or a combination of them cannot work; the message says what to do.
    """
    options.check()
    sources = [find_sources(patterns) for patterns in (options.data, options.validation)]
    for found in filter(None, sources):
        check_sources(found, options.field)
    tokenizer, config = _tokenizer_and_config(options)
    cache = Path(options.cache or Path(options.out) / "tokens")
    corpus = _corpus(sources[0], tokenizer, cache, options.field)
    masker = Masker(options.mask_settings(), tokenizer)
    batches = Batches(
        Examples(corpus, options.max_length - 2, tokenizer.continues_word), tokenizer, masker, options.batch_tokens, options.seed
    )
    n_steps = options.steps or _steps_of(batches, options.epochs or 1, options.accumulate)
    options = options.resolved(n_steps)
    validation, n_batches = None, None
    if sources[1]:
        validation_corpus = _corpus(sources[1], tokenizer, cache, options.field)
        validation = evaluation_batches(validation_corpus, tokenizer, options.max_length, Masking())
        n_batches = None if options.eval_tokens is None else math.ceil(options.eval_tokens / validation.n_tokens)
    return Run(options, tokenizer, config, corpus, batches, validation, n_batches)


def evaluation_batches(corpus: Corpus, tokenizer: BERTTokenizerFast, max_length: int, masking: Masking) -> Batches:
    """Return the batches of an evaluation: 4096 tokens or one example, masks by `EVALUATION_SEED`."""
    examples = Examples(corpus, max_length - 2, tokenizer.continues_word)
    return Batches(examples, tokenizer, Masker(masking, tokenizer), max(4096, max_length), EVALUATION_SEED)


def check_vocabulary(tokenizer: BERTTokenizerFast, config: BERTConfig, max_length: int, name: str) -> None:
    """Raise FormatError unless a model can read what a tokenizer gives, and sequences of this length."""
    if tokenizer.vocab_size > config.vocab_size:
        raise FormatError(
            f"the tokenizer has {tokenizer.vocab_size} words, the word table of {name} {config.vocab_size} rows: they do not fit"
        )
    if max_length > config.max_position_embeddings:
        raise ValueError(f"--max-length {max_length} is more than the {config.max_position_embeddings} positions of {name}")


def read_config_file(path: Path, tokenizer: BERTTokenizerFast) -> BERTConfig:
    """Return the configuration in a config.json; one without vocab_size gets the tokenizer's."""
    config = read_config(path.parent, add_pooling_layer=False, file_name=path.name)
    if "vocab_size" not in json.loads(path.read_text(encoding="utf-8-sig")):
        config = replace(config, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_token_id)
    return config


def _tokenizer_and_config(options: PretrainOptions) -> tuple[BERTTokenizerFast, BERTConfig]:
    given = None if options.tokenizer is None else BERTTokenizerFast.from_pretrained(options.tokenizer)
    dropout: dict[str, Any] = {}
    if options.dropout is not None:
        dropout = {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}
    if options.from_checkpoint is not None:
        folder = checkpoint_folder(options.from_checkpoint, None)
        config, name = read_config(folder, add_pooling_layer=False), str(options.from_checkpoint)
        has_own = any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt"))
        own = BERTTokenizerFast.from_pretrained(folder) if has_own else None
        if given is not None and own is not None and given.fingerprint != own.fingerprint:
            raise FormatError(f"{options.tokenizer} gives other ids than the tokenizer that {name} was trained with: leave out --tokenizer")
        tokenizer = own or given
        if tokenizer is None:
            raise FileNotFoundError(f"{name} has no tokenizer: name the one that it was trained with by --tokenizer")
    else:
        assert given is not None and options.size is not None
        tokenizer, name = given, options.size
        if options.size in SIZES:
            n_layers, width = SIZES[options.size]
            words = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_token_id}
            config = BERTConfig.sized(n_layers, width, add_pooling_layer=False, **words)
        elif Path(options.size).is_file():
            config = read_config_file(Path(options.size), tokenizer)
        else:
            raise FileNotFoundError(f"--size {options.size} is neither one of {', '.join(SIZES)} nor a config.json")
    check_vocabulary(tokenizer, config, options.max_length, name)
    return tokenizer, replace(config, **dropout)


def _corpus(sources: Sequence[Any], tokenizer: BERTTokenizerFast, cache: Path, field: str) -> Corpus:
    with progress_view("tokenise", sum(source.path.stat().st_size for source in sources)) as progress:
        return prepare_corpus(sources, tokenizer, cache, field=field, progress=progress)


def _steps_of(batches: Batches, n_epochs: float, n_accumulated: int) -> int:
    """Return the steps that so many epochs take."""
    whole = int(n_epochs)
    n_batches = float(sum(batches.n_batches(epoch) for epoch in range(whole)))
    if n_epochs > whole:
        n_batches += (n_epochs - whole) * batches.n_batches(whole)
    return max(1, math.ceil(n_batches / n_accumulated))
