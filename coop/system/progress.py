"""Progress bars: one line that moves in a terminal or a notebook, a short line now and then in a file or a pipe."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tqdm import tqdm

Figures = Callable[[], Mapping[str, Any]]
SECONDS = 10  # between two lines where there is no terminal
LINE = "{desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress(
    iterable: Iterable | None = None, *, desc: str, figures: Figures | None = None, hidden: bool = False, **options: Any
) -> "Bar":
    """A progress bar on stderr.

    Args:
        iterable: what to go through; without it, `update(n)` counts.
        desc: what is going on.
        figures: asked for the figures behind the bar, each time that it is drawn and at no other time.
        hidden: say nothing, as all processes but the first do.
        options: tqdm's own: total, initial, unit, unit_scale, leave.
    """
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    kind = Bar if sys.stderr.isatty() or in_notebook else Lines
    return kind(iterable, desc=desc, figures=figures, disable=hidden, **options)


class Bar(tqdm):
    """tqdm with figures that are asked for only when they are shown: on a GPU each would wait for the device."""

    def __init__(self, *args: Any, figures: Figures | None = None, **options: Any):
        self.figures = figures
        super().__init__(*args, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        shown = ", ".join(f"{name}={value}" for name, value in (self.figures() if self.figures else {}).items())
        return {**super().format_dict, "postfix": shown}


class Lines(Bar):
    """A line each `SECONDS`, and one at the end of a bar that is to stay."""

    def __init__(self, *args: Any, **options: Any):
        # Lines are counted by time alone: tqdm's guess of how many steps that is can be far off.
        every = {"mininterval": SECONDS, "delay": SECONDS, "miniters": 1, "maxinterval": 0}
        super().__init__(*args, **every, bar_format=LINE, ascii=True, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        print(str(self) if msg is None else msg, file=self.fp, flush=True)  # without moving the cursor
        return True

    def close(self) -> None:
        if self.disable:
            return
        if self.leave and self.n != self.last_print_n:
            self.display()
        self.disable = True  # the bar itself says no more
        self._decr_instances(self)
