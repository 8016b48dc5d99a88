"""What a run is to do: options, from the command line or a TOML file, checked before any time is spent."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lucid.data.masking import Masking
from lucid.device import check_device
from lucid.errors import FormatError

SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768), "large": (24, 1024)}
# What may differ when a run is resumed: no weight depends on it.
_FREE = ("out", "cache", "threads", "validation", "eval_every", "eval_tokens", "save_every", "keep")

_FLAGS = {"from_checkpoint": "from"}  # a name that Python keeps to itself


@dataclass(frozen=True, slots=True)
class PretrainOptions:
    """Options of `lucid.training.pretrain`; None means that a default is worked out, see `resolved`.

    Attributes
    ----------
    data, validation : tuple of str. Files, folders and patterns.
    field : str. Of JSON lines, the text.
    out : str. The run's folder.
    cache : str or None. Where tokenised text is kept; default: in the run's folder.
    size : str or None. Of a new model: a key of `SIZES`, or the path of a config.json.
    from_checkpoint : str or None. A folder, a hub name or "builtin" to go on from, in place of a new model.
    tokenizer : str or None. A folder; default: that of the checkpoint.
    max_length : int. Longest example in tokens, [CLS] and [SEP] included.
    batch_tokens : int. Tokens of one forward and backward pass.
    accumulate : int. Passes of a step.
    steps, epochs : int, float or None. Length of the run, in one of the two.
    lr : float or None. Highest learning rate; default 5e-4 for a new model, 5e-5 with `from_checkpoint`.
    warmup : float. Share of the steps over which the rate rises.
    decay : "linear", "cosine" or "constant"
    weight_decay, clip, beta2 : float. Of AdamW; the norm to which gradients are cut.
    dropout : float or None. Default: what the model's configuration says.
    masking : "token", "word" or "span"
    mask_share, mask_replace, random_replace : float. See `lucid.data.Masking`.
    seed : int. Of weights, order, masks and dropout.
    eval_every, save_every : int or None. In steps; default a tenth of the run, at most 1000.
    eval_tokens : int or None. Evaluate on so many tokens only.
    keep : int. Checkpoints to keep, beside the best.
    threads : int or None
    device : "cpu" or "gpu"
    dtype : "float32", "bfloat16" or None. Of the GPU's matrices; see `lucid.nn.Module.to`.
    """

    data: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    field: str = "text"
    out: str = ""
    cache: str | None = None
    size: str | None = None
    from_checkpoint: str | None = None
    tokenizer: str | None = None
    max_length: int = 128
    batch_tokens: int = 4096
    accumulate: int = 1
    steps: int | None = None
    epochs: float | None = None
    lr: float | None = None
    warmup: float = 0.05
    decay: str = "linear"
    weight_decay: float = 0.01
    clip: float = 1.0
    beta2: float = 0.999
    dropout: float | None = None
    masking: str = "token"
    mask_share: float = 0.15
    mask_replace: float = 0.8
    random_replace: float = 0.1
    seed: int = 0
    eval_every: int | None = None
    save_every: int | None = None
    eval_tokens: int | None = None
    keep: int = 2
    threads: int | None = None
    device: str = "cpu"
    dtype: str | None = None

    def check(self) -> None:
        """Raise ValueError where an option is missing, out of range, or at odds with another."""

        def want(name: str, is_good: bool, what: str) -> None:
            if not is_good:
                raise ValueError(f"--{name.replace('_', '-')} must be {what}, not {getattr(self, name)}")

        for name, flag, what in (("data", "--data", "text to learn from"), ("out", "--out", "a folder for the run")):
            if not getattr(self, name):
                raise ValueError(f"{flag} is missing: {what}")
        if (self.size is None) == (self.from_checkpoint is None):
            raise ValueError("give either --size, for a new model, or --from, a checkpoint to go on from")
        if self.size is not None and self.tokenizer is None:
            raise ValueError("--size wants --tokenizer too: a folder that `lucid train-tokenizer` or a checkpoint gives")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("say how long to train: either --steps or --epochs")
        for name in ("batch_tokens", "accumulate", "steps", "eval_every", "save_every", "eval_tokens", "keep", "threads"):
            want(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        want("max_length", self.max_length >= 4, "at least 4: [CLS], two tokens, [SEP]")
        want("batch_tokens", self.batch_tokens >= self.max_length, f"at least --max-length, {self.max_length}")
        want("epochs", self.epochs is None or 0 < self.epochs < 1e6, "above 0")
        want("lr", self.lr is None or 0 < self.lr < 1, "between 0 and 1")
        want("warmup", 0 <= self.warmup <= 1, "from 0 to 1")
        want("decay", self.decay in ("linear", "cosine", "constant"), "linear, cosine or constant")
        want("weight_decay", 0 <= self.weight_decay < 1, "from 0 to 1")
        want("clip", self.clip > 0, "above 0")
        want("beta2", 0 <= self.beta2 < 1, "from 0 to 1")
        want("dropout", self.dropout is None or 0 <= self.dropout < 1, "from 0 to 1")
        want("device", self.device in ("cpu", "gpu"), "cpu or gpu")
        want("dtype", self.dtype in (None, "float32", "bfloat16"), "float32 or bfloat16: in float16 small gradients vanish")
        if self.device == "cpu":
            want("dtype", self.dtype in (None, "float32"), "float32 without --device gpu")
        check_device(self.device)
        want("seed", 0 <= self.seed < 1 << 63, "from 0 to 2**63 - 1")
        self.mask_settings()

    def mask_settings(self) -> Masking:
        """Return how tokens are masked."""
        return Masking(self.masking, self.mask_share, self.mask_replace, self.random_replace)

    def resolved(self, n_steps: int) -> PretrainOptions:
        """Return the options with nothing left to work out, for a run of `n_steps` steps."""
        tenth = max(1, min(1000, n_steps // 10))
        return replace(
            self,
            lr=self.lr if self.lr is not None else (5e-4 if self.from_checkpoint is None else 5e-5),
            steps=n_steps,
            epochs=None,
            eval_every=self.eval_every or tenth,
            save_every=self.save_every or tenth,
        )

    def differences(self, others: Mapping[str, Any]) -> list[str]:
        """Return the names of options that decide what weights come out, and differ from those given."""
        own = json.loads(json.dumps(asdict(self)))
        return [name for name in own if name not in _FREE and name in others and own[name] != json.loads(json.dumps(others[name]))]

    def to_toml(self) -> str:
        """Return the options as a TOML file; those that are None are left out."""
        rows = [
            f"{_FLAGS.get(name, name)} = {json.dumps(value, ensure_ascii=False)}"
            for name, value in asdict(self).items()
            if value is not None
        ]
        return "\n".join(rows) + "\n"


def read_toml(path: Path) -> dict[str, Any]:
    """Return the options in a TOML file; names may be written with ``-`` as on the command line, and ``from`` as there.

    Raises
    ------
    FormatError
        It is no TOML, or an option is unknown or of the wrong type.
    OSError
        It cannot be read.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not TOML: {error}") from error
    types = {field.name: str(field.type) for field in fields(PretrainOptions)}
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = {flag: name for name, flag in _FLAGS.items()}.get(key, key.replace("-", "_"))
        if name not in types:
            raise FormatError(f"{path}: there is no option {key!r}; there are {', '.join(types)}")
        options[name] = _converted(path, key, value, types[name])
    return options


def _converted(path: Path, key: str, value: Any, kind: str) -> Any:
    """Return a value of a TOML file as the option's type, which is named as in `PretrainOptions`."""
    wanted = kind.removesuffix(" | None")
    if wanted == "tuple[str, ...]":
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return tuple(texts)
    elif wanted == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif wanted in ("int", "str") and type(value).__name__ == wanted:
        return value
    raise FormatError(f"{path}: {key} must be {wanted.replace('tuple[str, ...]', 'a list of str')}, not {value!r:.100}")
