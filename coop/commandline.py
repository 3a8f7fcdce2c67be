"""Commands that take words beside key=value options: predict, export, interpret."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf

from coop.cli.stop import stoppable
from coop.errors import CoopError
from coop.launch import explain
from coop.memory import keep_freed_memory


def parse(words: list[str], options: type) -> tuple[list[str], Any]:
    """Words, and key=value options held against a schema.

    A word is an option if what stands before its "=" is one of the schema's keys, or if it looks like an option that
    there is not; a path may have "=" in it, as the folders of sweeps do.

    Args:
        words: the command line.
        options: a dataclass.

    Returns:
        The other words, and an OmegaConf config of the schema.

    Raises:
        CoopError: an unknown option, or a required one that is missing.
        OmegaConfBaseException: a value of the wrong type.
    """
    schema = OmegaConf.structured(options)
    keys = [field.name for field in fields(options)]
    plain, pairs = [], []
    for word in _config_dir(words, keys):
        key, is_pair, _ = word.partition("=")
        if word.startswith("-") or (is_pair and key.isidentifier() and key not in keys and not os.path.exists(word)):
            raise CoopError(f"{word}: there is no such option; options are {', '.join(f'{key}=' for key in keys)}")
        (pairs if is_pair and key in keys else plain).append(word)
    chosen = OmegaConf.merge(schema, OmegaConf.from_dotlist(pairs))
    if missing := OmegaConf.missing_keys(chosen):
        raise CoopError(f"{min(missing)}= is missing")
    return plain, chosen


def _config_dir(words: list[str], keys: list[str]) -> Iterator[str]:
    """Words with Hydra's `--config-dir DIR` as one option, where a command has it."""
    remaining = iter(words)
    for word in remaining:
        name, _, value = word.partition("=")
        if name == "--config-dir" and "config_dir" in keys:
            yield f"config_dir={value or next(remaining, '')}"
        else:
            yield word


@stoppable()
def run(main: Callable[[list[str]], int], usage: str) -> None:
    """Run a command and exit; what the user can mend ends as one message and exit code 1.

    With HYDRA_FULL_ERROR set, the traceback is shown as well.
    """
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(usage)
        sys.exit(0)
    keep_freed_memory()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    try:
        sys.exit(main(words))
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get("HYDRA_FULL_ERROR"):
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
