"""Optimizers, schedules, gradient clipping."""

from lucid.optim.adamw import AdamW as AdamW
from lucid.optim.adamw import NonFiniteError as NonFiniteError
from lucid.optim.adamw import default_groups as default_groups
from lucid.optim.clip import clip_grad_norm as clip_grad_norm
from lucid.optim.clip import grad_norm as grad_norm
from lucid.optim.schedule import Schedule as Schedule

__all__ = ["AdamW", "NonFiniteError", "Schedule", "clip_grad_norm", "default_groups", "grad_norm"]
