"""python -m coop.report RUNS: tables, figures and one page of the runs beneath some folders."""

import difflib
import sys
from pathlib import Path

from coop.cli.ending import exit_code
from coop.errors import CoopError
from coop.report import report
from coop.system.stop import stoppable

USAGE = """python -m coop.report RUNS... [out=DIR] [expected=FILE] [mixed=true]

  RUNS            folders; every results.json beneath them is read, of coop.train and of coop.evaluate
  out=DIR         where the report goes (without it: report/ in the first of the folders)
  expected=FILE   published figures to show beside ours (without it: experiments/paper/expected.csv)
  mixed=true      take runs with other splits or class lists of one data set into one report, in separate rows

Written are report.html (one file that opens anywhere), report.md, tables/*.tex, figures/*.png, *.svg, and the data
behind them: runs.csv, cells.csv, published.csv."""
OPTIONS = ("out", "expected", "mixed")


def main(words: list[str]) -> int:
    """Read, average, write, and say in short what is in it; returns the exit code."""
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    folders, options = parse(words)
    mixed = options.pop("mixed", "false").lower()
    if mixed not in ("true", "false"):
        raise CoopError(f"mixed={mixed}: must be true or false")
    report(folders, **{key: Path(value).expanduser() for key, value in options.items()}, mixed=mixed == "true")
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


@stoppable()
def run(words: list[str]) -> int:
    """What the user can fix ends as one message and exit code 1; HYDRA_FULL_ERROR=1 shows the traceback."""
    return exit_code(main, words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
