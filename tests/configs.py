"""Configs as Hydra composes them, without paying for the composition each time."""

import copy
from functools import cache
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from coop.config import conf_dir

GROUPS = {path.name for path in conf_dir().iterdir() if path.is_dir()}


@cache
def _composed(command: str, *choices: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(command, overrides=list(choices))


def composed(*words: str, command: str = "train") -> DictConfig:
    """The config of a command line, a copy of its own at each call.

    A combination of choices (`method=coop`) is composed once; values (`shots=4`) are put into a copy of it, by the
    function with which Hydra itself does that after it has composed.
    """
    parsed = OverridesParser.create().parse_overrides(list(words))
    chosen = [o for o in parsed if o.key_or_group.partition("/")[0] in GROUPS or o.is_sweep_override()]
    cfg = copy.deepcopy(_composed(command, *(o.input_line for o in chosen)))
    ConfigLoaderImpl._apply_overrides_to_config([o for o in parsed if o not in chosen], cfg)
    return cfg


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


@cache
def written(group: str, name: str) -> dict[str, Any]:
    """A config's keys of its group as its file and those that it builds on say: enough to collect tests by."""
    content = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())
    bases = [base.partition("@")[0].rpartition("/")[2] for base in content.pop("defaults", []) if base != "_self_"]
    inherited = {key: value for base in bases for key, value in written(group, base).items()}
    return inherited | content.get(group, content)
