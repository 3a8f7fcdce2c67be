"""Tables, figures and one page of the runs beneath some folders; nothing in here imports torch.

records.py reads runs into one table; groups.py says which of them make one setting and which settings one curve;
published.py reads the published figures; study.py puts these together. leaderboard.py (with significance.py), tables.py
and plots.py make tables and figures of a study, page.py (with two templates) the files of a report.
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
    from coop.report.published import FILE, read_published
    from coop.report.records import read_runs
    from coop.report.study import make_study

    study = make_study(read_runs(folders), read_published(expected or FILE))
    if study.mixed and not mixed:
        raise CoopError(
            "these runs do not belong in one table, their data differ:\n  "
            + "\n  ".join(study.mixed)
            + "\nReport folders that agree apart, or give mixed=true to have them in separate rows"
        )
    show(study, write_report(study, out or folders[0] / "report"))


def show(study, written: list[Path]) -> None:
    """Print accuracies, warnings, what was left out, and where the report lies."""
    from coop.report.leaderboard import board_table, boards
    from coop.report.records import shown
    from coop.report.tables import backbone_tables, few_shot_tables, missing_table, to_text

    records, missing = study.records, missing_table(study)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    elsewhere = [board_table(board, brief=True) for board in boards(study, own=False)]
    for table in (*few_shot_tables(study), *backbone_tables(study), *elsewhere):
        print(to_text(table, width))
    for text in study.warnings:
        print(f"warning: {text}", file=sys.stderr)
    for path, reason in records.left_out:
        print(f"left out: {shown(path)}: {reason}", file=sys.stderr)
    for path, reason in records.unfinished:
        print(f"not finished: {shown(path)}: {reason}", file=sys.stderr)
    print(f"{records.count} runs read; {len(records.left_out)} files left out, ", end="")
    print(f"{len(records.unfinished)} runs not finished{'' if missing is None else f'; {missing.title}'}")
    print(f"report   {shown(written[0])}")
