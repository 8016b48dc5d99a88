"""`python -m lucid.cli`."""

from lucid.cli import app

app(prog_name="lucid")
