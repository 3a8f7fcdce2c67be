"""The report's files: report.md, report.html, tables, figures."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from coop.files import write_atomically
from coop.reporting import contents, spreadsheets
from coop.reporting.beside import published_tables
from coop.reporting.figures import Files, Picture, render_all
from coop.reporting.pictures import pictures
from coop.reporting.study import Study
from coop.reporting.tables import Table, escape_markdown, to_html, to_latex, to_markdown

# The files of the last report, so that the next one removes what it does not write again.
WRITTEN = ".report_files"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
  background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
.table { overflow-x: auto; margin: 1rem 0 0.3rem }
table { border-collapse: collapse; font-size: 13px } caption { text-align: left; font-weight: 600; padding: 0.3rem 0 }
th, td { padding: 0.15rem 0.6rem; text-align: right; white-space: nowrap } .w { text-align: left }
thead th { border-bottom: 1px solid #333; border-top: 1.5px solid #333 } tr.rule td { border-top: 1px solid #bbb }
tbody tr:last-child td { border-bottom: 1.5px solid #333 } tbody tr:hover { background: #f2f6fa }
.note { font-size: 13px; color: #555; margin: 0 0 1rem } .warning li { background: #fff4d6; margin: 0.2rem 0;
  padding: 0.1rem 0.5rem } figure { display: inline-block; margin: 0.5rem 1rem 0.5rem 0; vertical-align: top }
figure img { width: 330px; max-width: 100% } code { font-size: 12px }
"""


def write_report(study: Study, out: Path) -> list[Path]:
    """Write all files of a report into a folder; files of an earlier report that are not written again are removed.

    Returns:
        The files, report.html first.

    Raises:
        CoopError: the folder cannot be written to.
    """
    wanted = pictures(study)
    drawn = list(zip(wanted, render_all(wanted), strict=True))
    sections = _sections(study, drawn)
    tables = [table for _, section, _, _ in sections for table in section]
    files = {
        "report.html": _html(study, sections).encode(),
        "report.md": _markdown(study, sections).encode(),
        "runs.csv": spreadsheets.runs_csv(study),
        "cells.csv": spreadsheets.cells_csv(study),
        "published.csv": spreadsheets.published_csv(study),
        **{f"tables/{table.name}.tex": to_latex(table).encode() for table in tables},
        **{f"figures/{p.name}.{kind}": content for p, kinds in drawn for kind, content in kinds.items()},
    }
    before = _written_before(out)
    for name, content in files.items():
        write_atomically(out / name, content)
    write_atomically(out / WRITTEN, "\n".join(files).encode())
    for name in before - files.keys():
        (out / name).unlink(missing_ok=True)
    return [out / name for name in files]


def _written_before(out: Path) -> set[str]:
    """Names that an earlier report wrote here; nothing outside of the folder, whatever the list says."""
    try:
        names = (out / WRITTEN).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    return {name for name in names if name and (out / name).resolve().is_relative_to(out.resolve())}


Section = tuple[str, list[Table], list[tuple[Picture, Files]], str]


def _sections(study: Study, drawn: Sequence[tuple[Picture, Files]]) -> list[Section]:
    """(title, tables, figures, a word before them) of all sections that have something in them."""
    missing = contents.missing_table(study)

    def of(name: str) -> list[tuple[Picture, Files]]:
        return [(picture, files) for picture, files in drawn if picture.section == name]

    sections: list[Section] = [
        ("Few-shot learning", contents.few_shot_tables(study), of("few-shot"), ""),
        ("Gain over zero-shot", [], of("gain"), "At the largest number of shots."),
        ("Context length and backbone", contents.context_tables(study), of("context"), ""),
        ("Domain generalization and transfer", contents.transfer_tables(study), [], ""),
        ("Beside the published figures", published_tables(study), [], ""),
        ("Missing", [missing] if missing else [], [], ""),
    ]
    return [section for section in sections if section[1] or section[2]]


def _title(study: Study) -> str:
    return f"Report: {', '.join(folder.resolve().name for folder in study.found.folders)}"


def _summary(study: Study) -> str:
    found = study.found
    count = len({score.path for score in [*found.trained, *found.transferred]})
    left_out, unfinished = len(found.left_out), len(found.unfinished)
    return (
        f"{count} runs read, {left_out} files left out, {unfinished} runs not finished; "
        f"{len(study.warnings)} warnings. Accuracies in %: mean ± sample standard deviation (number of seeds)."
    )


def _shared(study: Study) -> str:
    """The settings that all runs have in common; the tables show what differs."""
    scores = [*study.found.trained, *study.found.transferred]
    first = scores[0].keys
    shared = [f"{key}={first[key]}" for key in first if all(score.keys.get(key) == first[key] for score in scores)]
    return f"The same in all runs: {', '.join(shared)}." if shared else ""


def _lists(study: Study) -> Iterable[tuple[str, list[str]]]:
    found = study.found
    for title, pairs in (("Left out: not the result of a run", found.left_out), ("Not finished", found.unfinished)):
        yield title, [f"{path}: {reason}" for path, reason in pairs]


def _markdown(study: Study, sections: Sequence[Section]) -> str:
    parts = [f"# {escape_markdown(_title(study))}"]
    parts += [escape_markdown(text) for text in (_summary(study), _shared(study)) if text]
    if study.warnings:
        parts += ["## Warnings", "\n".join(f"- {escape_markdown(text)}" for text in study.warnings)]
    for title, tables, drawn, words in sections:
        parts += [f"## {title}", *([words] if words else [])]
        parts += [f"![{escape_markdown(picture.caption)}](figures/{picture.name}.png)" for picture, _ in drawn]
        parts += [to_markdown(table).rstrip() for table in tables]
    for title, lines in _lists(study):
        if lines:
            parts += [f"## {title}", "\n".join(f"- `{line}`" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _html(study: Study, sections: Sequence[Section]) -> str:
    """One file with everything in it: no script, no font, no address."""
    title = html.escape(_title(study))
    parts = [f"<h1>{title}</h1>", f"<p>{html.escape(_summary(study))}</p>", f"<p>{html.escape(_shared(study))}</p>"]
    if study.warnings:
        items = "".join(f"<li>{html.escape(text)}</li>" for text in study.warnings)
        parts.append(f'<h2>Warnings</h2><ul class="warning">{items}</ul>')
    for heading, tables, drawn, words in sections:
        parts += [f"<h2>{html.escape(heading)}</h2>", f"<p>{html.escape(words)}</p>" if words else ""]
        parts += [_figure(picture, files) for picture, files in drawn]
        parts += [to_html(table) for table in tables]
    for heading, lines in _lists(study):
        if lines:
            items = "".join(f"<li><code>{html.escape(line)}</code></li>" for line in lines)
            parts.append(f"<h2>{html.escape(heading)}</h2><ul>{items}</ul>")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _figure(picture: Picture, files: Files) -> str:
    data = base64.b64encode(files["svg"]).decode()
    return f'<figure><img alt="{html.escape(picture.caption)}" src="data:image/svg+xml;base64,{data}"></figure>'
