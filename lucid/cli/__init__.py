"""The `lucid` command: one file a subcommand.

Modules of lucid are imported inside functions, so that `lucid --help` and shell completion answer at once.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lucid.cli.encode import encode
from lucid.cli.errors import one_line_errors
from lucid.cli.evaluate import evaluate
from lucid.cli.fill_mask import fill_mask
from lucid.cli.info import info
from lucid.cli.pretrain import pretrain
from lucid.cli.train_tokenizer import train_tokenizer


class _Group(TyperGroup):
    """The command, with errors in one line and their exit codes."""

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def main(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """BERT masked language modelling without PyTorch.

    A model is a folder in the form that Hugging Face checkpoints have:
    config.json, model.safetensors, and tokenizer.json or vocab.txt.
    Without one, commands take the small English model that comes with lucid.
    LUCID_MODEL=DIR in the environment stands for --model DIR.

    For example:

    [cyan]lucid fill-mask "The [MASK] rises in the east."[/cyan]

    [cyan]lucid fill-mask --file lines.txt --json --model DIR > fills.jsonl[/cyan]

    [cyan]lucid info DIR[/cyan]

    [cyan]lucid pretrain --from DIR --data texts/ --epochs 1 --out run[/cyan]

    Exit codes: 0 done; 1 an error, or lines of a stream that have no answer;
    2 wrong usage; 130 stopped by Ctrl-C; 141 the reader of the output is gone;
    143 stopped by SIGTERM.
    """
    if version:
        import lucid

        print(f"lucid {lucid.__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command()
def config() -> None:
    """Print version, instruction set, threads and dependencies: what to put in a bug report."""
    import lucid

    lucid.show_config()


app.command("fill-mask")(fill_mask)
app.command("info")(info)
app.command("encode")(encode)
app.command("train-tokenizer")(train_tokenizer)
app.command("pretrain")(pretrain)
app.command("evaluate")(evaluate)
