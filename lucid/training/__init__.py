"""Training and evaluation: the loop, checkpoints, and what a run leaves behind."""

from lucid.training.checkpoint import Checkpoints, load_model, restore
from lucid.training.evaluate import Evaluation, evaluate
from lucid.training.loop import Outcome, pretrain
from lucid.training.options import PretrainOptions
from lucid.training.trainer import Step, Trainer

__all__ = ["Checkpoints", "Evaluation", "Outcome", "PretrainOptions", "Step", "Trainer", "evaluate", "load_model", "pretrain", "restore"]
