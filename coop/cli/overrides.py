"""Words of the command line as Hydra's grammar takes them: what a person means as text is quoted."""

import os
import re
from collections.abc import Sequence
from functools import cache

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from coop.config import conf_dir
from coop.system.files import check_utf8

# The elements of a list, and the keys and values of a mapping.
ELEMENTS = {"[]": r"[^,\[\]{}]+", "{}": r"[^,:\[\]{}]+"}
_parser = cache(OverridesParser.create)


def compose_training(words: Sequence[str]) -> DictConfig:
    """The config that these words behind `python -m coop.train` make, not yet checked."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", as_overrides(words))


def as_overrides(words: Sequence[str]) -> list[str]:
    """The words of a command line for Hydra. Raises CoopError for one that is not UTF-8."""
    sweeps = any(word in ("-m", "--multirun") or word.startswith(("+exp=", "hydra.mode=")) for word in words)
    return [as_override(word, sweeps) for word in words]


def as_override(word: str, sweeps: bool = False) -> str:
    """A word `key=value`, with the value quoted where Hydra would read something else in it than its text.

    Umlauts, quotes, emoji and line breaks are no part of Hydra's grammar; paths and sentences have them. A value that
    is a path that is there is one value, whatever is in it, and so is a sentence with commas where nothing is swept.

    Args:
        word: as the shell gives it.
        sweeps: whether values that commas part are those of a sweep.

    Raises:
        CoopError: a word that is not UTF-8, which no config file can hold.
    """
    check_utf8(word)
    key, _, value = word.partition("=")
    if not value or word.startswith("-") or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return word
    as_text = f"{key}={quoted(value)}"
    parsed = _parse(word)
    swept = parsed is not None and parsed.is_sweep_override()
    if os.path.exists(os.path.expanduser(value)):
        means_itself = parsed is not None and not swept and "${" not in word and str(parsed.value()) == value
        return word if means_itself else as_text
    if parsed is not None:
        is_sentence = swept and not sweeps and " " in value and "." in key
        return as_text if is_sentence else word
    if elements := ELEMENTS.get(value[0] + value[-1]):
        return f"{key}={re.sub(elements, lambda run: _readable(run[0]), value)}"
    return f"{key}={','.join(map(_readable, value.split(',')))}" if sweeps else as_text


def quoted(text: str) -> str:
    """Text as a quoted value of Hydra's grammar, in which a backslash escapes where it stands before a quote."""
    parts = text.split("'")
    escaped = [part + "\\" * (len(part) - len(part.rstrip("\\"))) for part in parts]
    return "'" + "\\'".join(escaped).replace("${", "\\${") + "'"


def _parse(word: str) -> Override | None:
    try:
        return _parser().parse_override(word)
    except HydraException:
        return None


def _readable(element: str) -> str:
    """An element of a list, quoted if Hydra cannot read it."""
    text = element.strip()
    return element if not text or _parse(f"key={text}") else quoted(text)
