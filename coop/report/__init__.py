"""Tables, figures and one page of the runs beneath some folders; nothing in here imports torch.

records.py reads runs into one table; groups.py says which of them make one cell and which cells one curve; checks.py
warns of what does not belong together; published.py reads the published figures; study.py puts these together.
tables.py and plots.py make tables and figures of a study, page.py (with page.html.j2) the files of a report.
"""

import shutil
import sys
from pathlib import Path

from coop.errors import CoopError


def report(folders: list[Path], out: Path | None = None, expected: Path | None = None, *, mixed: bool = False) -> None:
    """Write the report of the runs beneath some folders, and print what is in it.

    Args:
        folders: of runs, at any depth.
        out: the folder of the report; without it report/ in the first of the folders.
        expected: published figures; without it those of the package.
        mixed: take runs with other splits or class lists of one data set, in separate rows.

    Raises:
        CoopError: no run, no such folder, a folder that cannot be written to, or runs with different splits or lists
            of classes of one data set, unless `mixed`.
    """
    # Imported here: a slip of the pen is answered before pandas and matplotlib are loaded.
    from coop.report.page import write_report
    from coop.report.published import expected_file, read_published
    from coop.report.records import read_runs
    from coop.report.study import make_study

    study = make_study(read_runs(folders), read_published(expected or expected_file()))
    if study.mixed and not mixed:
        raise CoopError(
            "these runs do not belong in one table, their data differ:\n  "
            + "\n  ".join(study.mixed)
            + "\nReport folders that agree apart, or give mixed=true to have them in separate rows"
        )
    show(study, write_report(study, out or folders[0] / "report"))


def show(study, written: list[Path]) -> None:
    """Print accuracies, warnings, what was left out, and where the report lies."""
    from coop.report.records import shown
    from coop.report.tables import context_tables, few_shot_tables, missing_cells, to_text, transfer_tables

    records = study.records
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for table in (*few_shot_tables(study), *context_tables(study), *transfer_tables(study)):
        print(to_text(table, width))
    for text in study.warnings:
        print(f"warning: {text}", file=sys.stderr)
    for path, reason in records.left_out:
        print(f"left out: {shown(path)}: {reason}", file=sys.stderr)
    for path, reason in records.unfinished:
        print(f"not finished: {shown(path)}: {reason}", file=sys.stderr)
    print(f"{records.count} runs in {len(study.cells)} cells; {len(records.left_out)} files left out, ", end="")
    print(f"{len(records.unfinished)} runs not finished, {len(missing_cells(study))} cells incomplete")
    print(f"report   {shown(written[0])}")
