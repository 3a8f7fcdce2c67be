"""Commands that do not start under Hydra: their words and options, and what a user reads when something is wrong."""

import logging
import os
import sys
import typing
from dataclasses import fields
from typing import Any

from omegaconf import MISSING

from coop.cli.command import exit_code, main_of
from coop.errors import CoopError
from coop.system.files import check_utf8
from coop.system.memory import keep_freed_memory
from coop.system.validation import read_text


def parse(words: list[str], options: type) -> tuple[list[str], Any]:
    """The plain words of a command line, and its key=value options as an object of a dataclass.

    Raises:
        CoopError: an unknown option, a value of the wrong type or out of bounds, or a required one that is missing.
    """
    plain, unknown, given = split(words, options)
    if unknown:
        raise _no_such(unknown[0], options)
    return plain, given


def split(words: list[str], options: type) -> tuple[list[str], list[str], Any]:
    """The same of a command that takes keys of coop.train's config as well; these are in the middle.

    A word is an option if what stands before its "=" is one of the dataclass's keys, or if it looks like an option that
    there is not; a path may have "=" in it, as the folders of sweeps do.
    """
    annotations = typing.get_type_hints(options, include_extras=True)
    plain, others, given, remaining = [], [], {}, iter(words)
    for word in remaining:
        check_utf8(word)
        key, is_pair, text = word.partition("=")
        if key == "--config-dir" and "config_dir" in annotations:  # Hydra's, one word or two
            given["config_dir"] = text or next(remaining, "")
        elif word.startswith("-"):
            raise _no_such(word, options)
        elif is_pair and key in annotations:
            given[key] = read_text(key, text, annotations[key])
        elif is_pair and all(part.isidentifier() for part in key.lstrip("+~").split(".")) and not os.path.exists(word):
            others.append(word)
        else:
            plain.append(word)
    for field in fields(options):
        if field.default == MISSING and field.name not in given:
            raise CoopError(f"{field.name}= is missing")
    return plain, others, options(**given)


def _no_such(word: str, options: type) -> CoopError:
    names = ", ".join(f"{field.name}=" for field in fields(options))
    return CoopError(f"{word}: there is no such option; options are {names}")


def run_command(command: str, usage: str) -> None:
    """Run a command that loads a model, and exit; without words, or with --help, show its usage.

    Its module, coop.COMMAND, is imported only where there is more to do.
    """
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(usage)
        sys.exit(0)
    keep_freed_memory()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    sys.exit(exit_code(lambda words: main_of(command)(words), words))
