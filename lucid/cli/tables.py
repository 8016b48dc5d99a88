"""Tables on the terminal. Rich is slow to import: import this module inside functions."""

from rich.console import Console
from rich.table import Table
from rich.text import Text


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the command end as it does for any other output."""
        raise BrokenPipeError


def make_table(title: str, caption: str | None = None) -> Table:
    """Return an empty table; nothing in its title or caption is markup."""
    return Table(title=Text(title), title_justify="left", caption=None if caption is None else Text(caption), caption_justify="left")


def add_row(table: Table, *cells: str) -> None:
    """Add a row; nothing in it is markup."""
    table.add_row(*map(Text, cells))


def show(table: Table) -> None:
    """Print a table."""
    _Console().print(table)
