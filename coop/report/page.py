"""The report's files: report.html, report.md, tables as LaTeX, figures, and the data behind them as CSV."""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, Template

from coop.report import leaderboard, tables
from coop.report.groups import RULE
from coop.report.leaderboard import Board, board_table, boards
from coop.report.plots import Plot, plots
from coop.report.published import MARKS
from coop.report.records import keys_of, shown
from coop.report.study import Study
from coop.report.tables import Table, escape_markdown, to_latex, to_markdown
from coop.system.files import write_atomically

# The files of the last report, so that the next one removes what it does not write again.
WRITTEN = ".report_files"
PIXELS_PER_INCH = 100  # of figures on the page


@dataclass
class Section:
    """What stands under one heading; `words` before the figures and tables."""

    title: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Plot] = field(default_factory=list)
    words: str = ""


def write_report(study: Study, out: Path) -> list[Path]:
    """Write all files of a report into a folder; files of an earlier report that are not written again are removed.

    Returns:
        The files, report.html first.

    Raises:
        CoopError: the folder cannot be written to.
    """
    found = boards(study)
    content = _content(study, found)
    contents = {
        "report.html": template("page.html.j2").render(content),
        "report.md": template("page.md.j2").render(content).rstrip() + "\n",
        **csv_files(study, found),
        **{f"tables/{table.name}.tex": to_latex(table) for section in content["sections"] for table in section.tables},
    }
    files = {name: text.encode("utf-8", "backslashreplace") for name, text in contents.items()}
    for plot in (plot for section in content["sections"] for plot in section.figures):
        files |= {f"figures/{plot.name}.{suffix}": drawn for suffix, drawn in plot.files.items()}
    before = _written_before(out)
    # First, so that the report after a killed one knows what that has written.
    write_atomically(out / WRITTEN, "\n".join(sorted(before | files.keys())).encode())
    for name, encoded in files.items():
        write_atomically(out / name, encoded)
    for name in before - files.keys():
        (out / name).unlink(missing_ok=True)
    write_atomically(out / WRITTEN, "\n".join(files).encode())
    return [out / name for name in files]


def _written_before(out: Path) -> set[str]:
    """Names that an earlier report wrote here; nothing outside of the folder, whatever the list says."""
    try:
        names = (out / WRITTEN).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    return {name for name in names if name and (out / name).resolve().is_relative_to(out.resolve())}


def _sections(study: Study, found: list[Board]) -> list[Section]:
    """All sections that have something in them, in their order; figures are drawn."""
    missing = tables.missing_table(study)
    sections = [
        Section("Leaderboard", [board_table(board) for board in found], words=_leaderboard_words(study)),
        Section("Few-shot learning", tables.few_shot_tables(study)),
        Section("Gain over zero-shot", words="At the largest number of shots."),
        Section("Backbones", tables.backbone_tables(study)),
        Section("Settings", tables.settings_tables(study)),
        Section("Beside the published figures", tables.published_tables(study)),
        Section("Missing", [missing] if missing else []),
    ]
    for plot in plots(study, found):
        next(section for section in sections if section.title == plot.section).figures.append(plot)
    return [section for section in sections if section.tables or section.figures]


def _leaderboard_words(study: Study) -> str:
    counts = study.published["confidence"].value_counts()
    total = f"Of {len(study.published)} published figures {counts.get('verified', 0)} were read in a public source"
    return (
        f"{leaderboard.READING}{leaderboard.CATEGORIES}Published figures stand beside the same method, backbone, data "
        f"sets, shots and protocol; options of a method that its source does not state are not checked. {total} "
        f"({MARKS['verified']}); {counts.get('recalled', 0)} are recollections ({MARKS['recalled']}), and "
        f"{counts.get('low', 0)} are recollections without any check ({MARKS['low']})."
    )


def _content(study: Study, found: list[Board]) -> dict[str, Any]:
    """What the page says, as HTML and as Markdown."""
    records, runs = study.records, study.records.runs[keys_of(study.records.runs)]
    same = [f"{key}={values.iloc[0]}" for key, values in runs.items() if (values == values.iloc[0]).all()]
    summary = [
        f"{records.count} runs read, {len(records.left_out)} files left out, "
        f"{len(records.unfinished)} runs not finished; {len(study.warnings)} warnings.",
        f"The same in all runs: {', '.join(same)}.",
        RULE,
    ]
    lists = {"Left out: not the result of a run": records.left_out, "Not finished": records.unfinished}
    return {
        "title": f"Report: {', '.join(shown(folder.resolve().name) for folder in records.folders)}",
        "summary": summary if same else [summary[0], RULE],
        "warnings": study.warnings,
        "sections": _sections(study, found),
        "lists": [(title, [f"{shown(path)}: {why}" for path, why in own]) for title, own in lists.items() if own],
    }


def template(name: str) -> Template:
    """A page beside this file; that of HTML escapes every text."""
    loader, html = FileSystemLoader(Path(__file__).parent), name.endswith(".html.j2")
    environment = Environment(loader=loader, autoescape=html, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"base64": lambda content: base64.b64encode(content).decode(), "width": _width}
    environment.filters |= {"md": escape_markdown, "markdown_table": to_markdown}
    environment.globals["verified"] = MARKS["verified"]
    return environment.get_template(name)


def _width(svg: bytes) -> int:
    """Pixels of a figure on the page: the same scale for all, whatever their width."""
    points = svg.partition(b'width="')[2].partition(b"pt")[0]
    return round(float(points) / 72 * PIXELS_PER_INCH)


def csv_files(study: Study, found: list[Board]) -> dict[str, str]:
    """The data behind the report, unrounded: accuracies as fractions, published figures in percent."""
    pairs = study.comparisons
    why = ["" if pair["same_setting"] else tables.why_not(pair) for pair in pairs.to_dict("records")]
    frames = {
        "runs.csv": study.records.runs,
        "settings.csv": study.settings.drop(columns="derived"),
        "leaderboard.csv": pd.concat([board.frame.assign(board=board.name) for board in found] or [pd.DataFrame()]),
        "published.csv": pairs.drop(columns=["stated", "differing"]).assign(not_compared_because=why),
    }
    return {name: frame.to_csv(index=False) for name, frame in frames.items()}
