"""python -m coop.report RUNS: tables, figures and one page of the runs beneath some folders."""

import sys
from dataclasses import dataclass
from pathlib import Path

from coop.cli.command import exit_code
from coop.cli.options import parse
from coop.errors import CoopError
from coop.report import report

USAGE = """python -m coop.report RUNS... [out=DIR] [expected=FILE] [mixed=true]

  RUNS            folders; every results.json beneath them is read, of coop.train and of coop.evaluate
  out=DIR         where the report goes (without it: report/ in the first of the folders)
  expected=FILE   published figures to show beside ours (without it: those of the package)
  mixed=true      take runs with other splits or class lists of one data set into one report, in separate rows

Written are report.html (one file that opens anywhere), report.md, tables/*.tex, figures/*.png, *.svg, and the data
behind them: runs.csv, settings.csv, leaderboard.csv, published.csv."""


@dataclass
class Options:
    """What the command line may set; USAGE says what each means."""

    out: Path | None = None
    expected: Path | None = None
    mixed: bool = False


def main(words: list[str]) -> int:
    """Read, average, write, and say in short what is in it; returns the exit code."""
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    folders, options = parse(words, Options)
    if not folders:
        raise CoopError("give the folders of the runs, such as: python -m coop.report runs/few_shot_curve")
    out, expected = (path and path.expanduser() for path in (options.out, options.expected))
    report([Path(folder).expanduser() for folder in folders], out, expected, mixed=options.mixed)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
