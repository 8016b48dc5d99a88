"""`python -m lucid`: the command line."""

from lucid.cli import app

app(prog_name="lucid")
