"""What a run's folder may name as code: only what this installation's own configs name too.

A run folder is data that people send each other. Its config.yaml says which class the method is and which function
reads the data set; before anything is imported or called, the name has to stand in a config of the installation's
groups or of the user's own --config-dir.
"""

from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from coop.clip.loading import is_program
from coop.config import conf_dir
from coop.errors import CoopError


def check_offered(group: str, node: DictConfig, file: Path, config_dir: str | None = None) -> None:
    """Raises CoopError for code that no config of the group, "method" or "dataset", names, but a run's file alone.

    The user's own configs are those of `config_dir`; under Hydra its --config-dir and search path count anyway.
    """
    if node._target_ not in offered(group, config_dir):
        raise CoopError(
            f"{file}: {group}._target_={node._target_}: no config in this installation's group {group} names it, so it "
            "is neither imported nor called. Is it your own? Give the --config-dir that the run was trained with. Did "
            f"the folder come from somebody else? Read their code first; a file in DIR/{group}/ with this _target_ and "
            "--config-dir DIR allow it"
        )


def check_weights(backbone: DictConfig, file: Path) -> None:
    """Raises CoopError for weights that are a program (TorchScript) and not OpenAI's, where a file names them."""
    if backbone.pretrained and is_program(backbone.pretrained):
        raise CoopError(
            f"{file}: backbone.pretrained={backbone.pretrained}: a TorchScript archive that is not one of OpenAI's. It "
            "is a program, and is not run because a file says so; if you trust it, name it yourself: "
            f"python -m coop.evaluate backbone=open_clip backbone.model={backbone.model} backbone.pretrained=FILE"
        )


def offered(group: str, config_dir: str | None = None) -> set[str]:
    """Every `_target_` that a config of the group names, also under `# @package _global_`."""
    configs = [_read(file) for folder in _folders(config_dir) for file in (folder / group).rglob("*.yaml")]
    nodes = [node for config in configs for node in (config, config.get(group)) if isinstance(node, dict)]
    return {node["_target_"] for node in nodes if isinstance(node.get("_target_"), str)}


def _folders(config_dir: str | None) -> Iterator[Path]:
    """Where configs come from: the package, the search path of the running command, the user's own folder."""
    yield conf_dir()
    for source in HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []:
        if source.schema == "file":
            yield Path(source.path)
        elif source.schema == "pkg":
            with suppress(ModuleNotFoundError):
                yield from map(Path, import_module(source.path).__path__)
    if config_dir is not None:
        folder = Path(config_dir).expanduser()
        if not folder.is_dir():
            raise CoopError(f"--config-dir {config_dir}: no such folder")
        yield folder


def _read(file: Path) -> dict[str, Any]:
    """A config as it is written; a damaged file offers nothing."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OSError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
