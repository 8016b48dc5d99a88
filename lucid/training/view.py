"""What a run shows while it goes on: a line that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lucid.training.evaluate import Evaluation
from lucid.training.trainer import Step

_SECONDS_BETWEEN_LINES = 10.0
_SMOOTHED_STEPS = 20


class View:
    """Loss, speed and time left, on stderr.

    Parameters
    ----------
    n_steps : int. Of the whole run.
    n_done : int. Steps that were done before.
    """

    def __init__(self, n_steps: int, n_done: int) -> None:
        self.n_steps = n_steps
        self._n_before, self._begin = n_done, time.monotonic()
        self._loss: float | None = None
        self._n_tokens = 0
        self._last_line = -1e9
        self._bar: Any = None
        self._task: Any = None
        if sys.stderr.isatty():
            self._bar = make_bar("{task.fields[figures]}")
            self._task = self._bar.add_task("train", total=n_steps, completed=n_done, figures="")
            self._bar.start()

    def step(self, step: Step) -> None:
        """Show a step."""
        share = 1 / _SMOOTHED_STEPS
        self._loss = step.loss if self._loss is None else (1 - share) * self._loss + share * step.loss
        self._n_tokens += step.n_tokens
        seconds = max(1e-9, time.monotonic() - self._begin)
        left = (self.n_steps - step.step) * seconds / (step.step - self._n_before)
        speed = f"{self._n_tokens / seconds:,.0f} tokens/s"
        figures = f"step {step.step:,} of {self.n_steps:,}  loss {self._loss:.4f}  {speed}  {duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step.step, figures=figures)
        elif seconds - self._last_line >= _SECONDS_BETWEEN_LINES or step.step == self.n_steps:
            self._last_line = seconds
            print(figures, file=sys.stderr, flush=True)

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Show an evaluation."""
        self.say(f"step {step:,}: {describe(evaluation)}")

    def say(self, message: str) -> None:
        """Show a line that stays."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it is to be."""
        if self._bar is not None:
            self._bar.stop()


def describe(evaluation: Evaluation) -> str:
    """Return an evaluation in words and figures."""
    p, a = evaluation.perplexity, evaluation.accuracy
    return (
        f"validation perplexity {p.mean:.2f} ({p.low:.2f} to {p.high:.2f}), "
        f"accuracy {a.mean:.4f} ({a.low:.4f} to {a.high:.4f}), {evaluation.n_labels:,} masked words"
    )


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@contextmanager
def progress_view(description: str, size: int | None, noun: str = "tokens") -> Iterator[Callable[[int, int], None]]:
    """Give a function to report progress to, as a part of `size` and in things; on a terminal a bar on stderr shows it."""
    if not sys.stderr.isatty():
        yield lambda n_read, n_things: None
        return
    with make_bar("{task.fields[figures]}") as bar:
        task = bar.add_task(description, total=size, figures="")
        total = 0

        def advance(n_read: int, n_things: int) -> None:
            nonlocal total
            total += n_things
            elapsed = max(bar.tasks[0].elapsed or 0.0, 1e-3)
            bar.update(task, advance=n_read, figures=f"{total:,} {noun}  {total / elapsed:,.0f}/s")

        yield advance


def make_bar(figures: str) -> Any:
    """Return a progress bar on stderr. Rich is slow to import, so it is imported here."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = [TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn(), TextColumn(figures)]
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=False, redirect_stderr=False)
