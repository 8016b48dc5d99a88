"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lucid.models import BERTForMaskedLM

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="DIR",
        envvar="LUCID_MODEL",
        help="Checkpoint folder, folder of a run, or a name on the hub. [dim]builtin comes with lucid.[/dim]",
    ),
]
Checkpoint = Annotated[
    str, typer.Argument(metavar="DIR", envvar="LUCID_MODEL", help="Checkpoint folder, folder of a run, or a name on the hub.")
]
File = Annotated[
    Path | None, typer.Option("--file", "-f", metavar="FILE", help="Read texts from FILE, one a line. [dim]- is standard input.[/dim]")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a text.")]
Field = Annotated[str, typer.Option("--field", help="Of JSON lines, the text.")]
Threads = Annotated[int | None, typer.Option("--threads", "-t", min=1, max=1024, help="Threads; the default is every CPU allowed.")]
Device = Annotated[str, typer.Option("--device", help="cpu or gpu.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="On the GPU: float32, bfloat16 or float16. [dim]Default: float32.[/dim]")]


def checkpoint_named(model: str) -> str | Path:
    """Return what --model names; where that is the folder of a run, its model: the finished one, or its newest checkpoint."""
    from lucid.hub import BUILTIN

    if model == BUILTIN or not Path(model, "pretrain.toml").exists():  # asked first: training takes its time to import
        return model
    from lucid.training.loop import model_of_run

    return model_of_run(Path(model)) or model


def load_masked_lm(folder: str | Path, device: str, dtype: str | None, threads: int | None) -> BERTForMaskedLM:
    """Return the model of a folder, where it is to run.

    Raises
    ------
    DeviceError, ValueError
        There is no such device here, which is found before the model is read; or no such type on it.
    """
    import lucid
    from lucid.device import check_device
    from lucid.models import BERTForMaskedLM

    lucid.set_num_threads(threads)
    found = check_device(device)
    return BERTForMaskedLM.from_pretrained(folder).to(found, dtype)


def lines_of(texts: list[str] | None, file: Path | None) -> Path | None:
    """Return the file of lines to read, "-" for standard input, or None if the texts are to be taken.

    Raises
    ------
    typer.BadParameter
        There are neither texts nor a file, or both.
    """
    texts = texts or []
    if file is not None and texts:
        raise typer.BadParameter("give either texts or --file, not both")
    if file is not None:
        return file
    if not texts:
        raise typer.BadParameter("give a text in quotes, --file FILE, or - to read lines from standard input")
    if "-" in texts:
        if len(texts) > 1:
            raise typer.BadParameter("- reads lines from standard input: give it alone")
        return Path("-")
    return None
