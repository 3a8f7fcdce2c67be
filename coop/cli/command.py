"""What every command does: it starts before it imports, and ends with one message about what the user can fix."""

import importlib
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from coop.system import stop


def main_of(command: str) -> Callable:
    """The main function of coop.COMMAND. Its module is imported now, with torch and what else it needs."""
    lightning = logging.getLogger("pytorch_lightning")
    level = lightning.level
    with stop.importing():
        module = importlib.import_module(f"coop.{command}")
    lightning.setLevel(level)  # its import sets INFO
    return module.main


@stop.stoppable()
def exit_code(main: Callable[[list[str]], int | None], words: list[str]) -> int:
    """Run a command and give its exit code; what the user can fix ends as one message and 1.

    With HYDRA_FULL_ERROR set, the traceback is shown as well.
    """
    with suppress(AttributeError):  # a notebook's
        sys.stdout.reconfigure(errors="backslashreplace")  # files may have names that no terminal can show
    try:
        return main(words) or 0
    except Exception as error:
        from coop.cli.messages import explain  # brings Hydra, which not every command needs

        message = explain(error)
        if message is None or os.environ.get("HYDRA_FULL_ERROR") or stop.received():
            raise
        print(f"\nerror: {message}", file=sys.stderr)  # after the line of a progress bar
        return 1
