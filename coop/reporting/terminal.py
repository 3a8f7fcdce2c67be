"""Tables of a report on a terminal."""

import textwrap

from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from coop.reporting.contents import context_tables, few_shot_tables, transfer_tables
from coop.reporting.study import Study
from coop.reporting.tables import Table

NAME = 16  # characters of a line of a name


def print_tables(study: Study, console: Console) -> None:
    """The tables of accuracies; what is beside them stands in report.html."""
    for table in (*few_shot_tables(study), *context_tables(study), *transfer_tables(study)):
        console.print(to_terminal(table))


def to_terminal(table: Table) -> RichTable:
    """The same table for rich; every text stands for itself."""
    texts = {"title": Text(table.title), "caption": Text(table.note)}
    shown = RichTable(**texts, box=HORIZONTALS, title_justify="left", pad_edge=False, collapse_padding=True)
    for index, head in enumerate(table.header):
        words = index < table.left
        shown.add_column(Text(head), justify="left" if words else "right", overflow="fold", no_wrap=words)
    above = None
    for row in table.rows:
        if row is None:
            shown.add_section()
            above = None
        else:
            names = ["\n".join(textwrap.wrap(name, NAME)) for name in row[: table.left]]
            shown.add_row(
                "" if row[0] == above else Text(names[0]), *map(Text, names[1:]), *map(Text, row[table.left :])
            )
            above = row[0]
    return shown
