"""What a run will cost on this machine: counted where it can be, timed where it cannot."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

from lucid.models import BERTConfig
from lucid.training.run import Run


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run takes.

    Attributes
    ----------
    n_parameters, n_steps, n_tokens : int. Tokens of the whole run, [CLS] and [SEP] included.
    n_epochs : float
    flops : float. Of all products, forward and backward; additions count.
    memory_bytes : int. Largest so far of this process, which has taken two steps.
    seconds_per_step : float. The faster of the two.
    """

    n_parameters: int
    n_steps: int
    n_tokens: int
    n_epochs: float
    flops: float
    memory_bytes: int
    seconds_per_step: float

    @property
    def seconds(self) -> float:
        """Of all steps; evaluations and checkpoints come on top."""
        return self.n_steps * self.seconds_per_step


def measure_cost(run: Run) -> Cost:
    """Take two steps, throw them away, and say what all steps will cost."""
    trainer = run.trainer(run.new_model())
    seconds, n_tokens, n_labels = [], 0, 0
    for _ in range(2):
        begin = time.perf_counter()
        step = None
        while step is None:
            step = trainer.advance() or trainer.take_step()
        seconds.append(time.perf_counter() - begin)
        n_tokens += step.n_tokens
        n_labels += step.n_labels
    n_steps = run.options.steps
    assert n_steps is not None
    lengths = run.batches.examples.lengths
    n_epoch_tokens = int(lengths.sum(dtype=int)) + 2 * len(lengths)
    n_batches = run.batches.n_batches(0)
    n_epochs = n_steps * run.options.accumulate / n_batches
    total = round(n_epochs * n_epoch_tokens)
    per_token = training_flops(run.config, float(lengths.mean()) + 2, n_labels / n_tokens)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(trainer.model.parameter_size, n_steps, total, n_epochs, per_token * total, memory, min(seconds))


def training_flops(config: BERTConfig, length: float, label_share: float) -> float:
    """Return the floating-point operations that a token costs in training, on average.

    Parameters
    ----------
    config : BERTConfig
    length : float. Tokens of an example.
    label_share : float. Of tokens that are asked for: only those go through the last layer's queries and feed-forward and the head.
    """
    c, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    keys_values, rest = 4 * c * c, 4 * c * c + 4 * c * f + 4 * length * c
    layers = (config.num_hidden_layers - 1) * (keys_values + rest) + keys_values + label_share * rest
    return 3 * (layers + label_share * (2 * c * c + 2 * c * v))
