"""Tables of texts, and the same as Markdown, LaTeX (booktabs), HTML and CSV."""

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "†": "$\\dagger$",
    "…": "\\ldots{}",
    NOTHING: "--",
    MINUS: "$-$",
}


@dataclass
class Table:
    """A table as it is shown.

    Attributes:
        name: of its file.
        title: one line above it.
        header: names of the columns.
        rows: texts; a row that is `None` is a rule between blocks.
        left: how many columns, from the first, hold words; the others hold figures and stand to the right.
        note: what has to be known to read it.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: list[Sequence[str] | None] = field(default_factory=list)
    left: int = 1
    note: str = ""


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as percent, without the sign."""
    return NOTHING if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    """A difference in percentage points, with its sign."""
    return NOTHING if value is None else f"{value:+.2f}".replace("-", MINUS)


def mean_sd_n(value: Any) -> str:
    """ "71.92 ± 0.15 (3)" of something with mean, sd and n; without deviation where there is but one."""
    if value is None:
        return NOTHING
    spread = "" if value.sd is None else f" ± {percent(value.sd)}"
    return f"{percent(value.mean)}{spread} ({value.n})"


def to_markdown(table: Table) -> str:
    """A pipe table under its title."""
    marks = ["---" if index < table.left else "---:" for index in range(len(table.header))]
    rows = [table.header, marks, *(row for row in table.rows if row is not None)]
    lines = ["| " + " | ".join(escape_markdown(text) for text in row) + " |" for row in rows]
    note = f"\n\n{escape_markdown(table.note)}" if table.note else ""
    return f"**{escape_markdown(table.title)}**\n\n" + "\n".join(lines) + note + "\n"


def escape_markdown(text: str) -> str:
    """Text that stands for itself in Markdown, on one line."""
    return re.sub(r"([|<*_`\\])", r"\\\1", text).replace("\n", " ")


def to_latex(table: Table) -> str:
    """A table environment for LaTeX with the booktabs package."""
    columns = "l" * table.left + "r" * (len(table.header) - table.left)
    body = ["\\midrule" if row is None else _latex_row(row) for row in table.rows]
    caption = _latex_text(f"{table.title}. {table.note}".strip())
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "\\centering\\small",
            f"\\caption{{{caption}}}",
            f"\\label{{tab:{table.name}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            _latex_row(table.header),
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


def _latex_row(row: Sequence[str]) -> str:
    return " & ".join(map(_latex_text, row)) + " \\\\"


def _latex_text(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def to_html(table: Table) -> str:
    """A table element with its title as the caption; every text is escaped."""
    header = _html_row(table, table.header, "th")
    lines, rule = [], ""
    for row in table.rows:
        if row is not None:
            lines.append(f"<tr{rule}>{_html_row(table, row, 'td')}</tr>")
        rule = ' class="rule"' if row is None else ""
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="table"><table><caption>{html.escape(table.title)}</caption><thead><tr>{header}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{note}"
    )


def _html_row(table: Table, row: Sequence[str], tag: str) -> str:
    kinds = ("", ' class="w"')
    return "".join(f"<{tag}{kinds[index < table.left]}>{html.escape(text)}</{tag}>" for index, text in enumerate(row))


def to_csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Comma-separated values; None is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue().encode()
