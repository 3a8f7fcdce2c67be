"""python -m coop.report RUNS: tables, figures and one page of the runs beneath some folders."""

import difflib
import os
import sys
from pathlib import Path

from coop.errors import CoopError

USAGE = """python -m coop.report RUNS... [out=DIR] [expected=FILE]

  RUNS            folders; every results.json beneath them is read, of coop.train and of coop.evaluate
  out=DIR         where the report goes (without it: report/ in the first of the folders)
  expected=FILE   published figures to show beside ours (without it: experiments/paper/expected.csv)

Written are report.html (one file that opens anywhere), report.md, runs.csv, cells.csv, published.csv,
tables/*.tex and figures/*.png, *.svg."""
OPTIONS = ("out", "expected")


def main(words: list[str]) -> int:
    """Read, average, write, and say in short what is in it; returns the exit code."""
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    folders, options = parse(words)
    # Imported here: a slip of the pen is answered before matplotlib is loaded.
    from coop.reporting.page import write_report
    from coop.reporting.published import expected_file, read_figures
    from coop.reporting.runs import read_runs
    from coop.reporting.study import make_study

    figures = read_figures(Path(options["expected"]).expanduser() if "expected" in options else expected_file())
    study = make_study(read_runs(folders), figures)
    written = write_report(study, Path(options.get("out", folders[0] / "report")).expanduser())
    show(study, written)
    return 0


def parse(words: list[str]) -> tuple[list[Path], dict[str, str]]:
    """Folders and options; a folder may have "=" in its name, as those of sweeps do.

    Raises:
        CoopError: an option that there is not, or no folder.
    """
    options = {key: value for key, _, value in (word.partition("=") for word in words) if key in OPTIONS and value}
    folders = [Path(word).expanduser() for word in words if word.partition("=")[0] not in OPTIONS]
    for word in (str(folder) for folder in folders if not folder.exists()):
        key, is_option, _ = word.partition("=")
        if is_option and "/" not in key:
            near = difflib.get_close_matches(key, OPTIONS)
            hint = f"did you mean {near[0]}? " if near else ""
            raise CoopError(f"{word}: no such option, and no such folder; {hint}Options are {', '.join(OPTIONS)}")
        if word.startswith("-"):
            raise CoopError(f"{word}: options are written as key=value, such as out=DIR")
    if not folders:
        raise CoopError("give the folders of the runs, such as: python -m coop.report runs/few_shot_curve")
    return folders, options


def show(study, written: list[Path]) -> None:
    """Warnings, what was left out, and where the report lies."""
    found = study.found
    for text in study.warnings:
        print(f"warning: {text}", file=sys.stderr)
    for path, reason in found.left_out:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    for path, reason in found.unfinished:
        print(f"not finished: {path}: {reason}", file=sys.stderr)
    runs = len({score.path for score in [*found.trained, *found.transferred]})
    print(f"{runs} runs in {len(study.cells)} cells; {len(found.left_out)} files left out, ", end="")
    print(f"{len(found.unfinished)} runs not finished, {len(study.missing)} cells incomplete")
    print(f"report   {written[0]}")


def run(words: list[str]) -> int:
    """What the user can mend ends as one message and exit code 1; HYDRA_FULL_ERROR=1 shows the traceback."""
    try:
        return main(words)
    except CoopError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
