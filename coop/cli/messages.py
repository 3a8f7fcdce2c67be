"""What a user reads when something is wrong: one message about what to fix."""

import difflib
import sys
from typing import get_type_hints

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException, ValidationError

from coop.errors import CoopError, no_such_key
from coop.system.files import FIXES, explain_os_error, not_utf8
from coop.system.validation import must_be


def explain(error: BaseException) -> str | None:
    """The message for a user; None for an error that is ours."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for link in chain:
        if isinstance(link, CoopError):
            # A data-loader worker puts its own traceback in front of the message.
            return str(link).rpartition("CoopError: ")[2]
    if meaning := _said_by_a_plugin(str(error)):
        return meaning
    for link in chain:
        if isinstance(link, MissingConfigException) and (link.options or link.missing_cfg_file in PLUGINS):
            return _unknown_choice(link)
    for link in reversed(chain):
        if isinstance(link, OmegaConfBaseException):
            return _unknown_key_or_type(link)
    if "Got NoneType" in str(error):  # how Hydra says that there is a group without a choice
        empty = next((word for word in sys.argv[1:] if word.lower().endswith(("=null", "="))), "GROUP=null")
        return f"{empty}: a group needs a choice: {empty.partition('=')[0]}=NAME; leave it out for the default"
    if "Unexpected type for root: NoneType" in str(error):  # how OmegaConf says that there is no such group
        return "a key of a group that is not chosen is set; choose first: dataset=NAME dataset.template=..."
    for link in chain:
        if isinstance(link, OSError) and link.filename:
            return f"{link.filename}: {explain_os_error(link)}"
        if isinstance(link, OSError) and link.errno in FIXES:
            return f"a file could not be written: {explain_os_error(link)} (hydra.run.dir=DIR chooses the folder)"
        if isinstance(link, UnicodeEncodeError) and link.reason == "surrogates not allowed":
            return str(not_utf8(link))
        if isinstance(link, HydraException) or "Config group override must be" in str(link):
            return f"{link} (GROUP=NAME chooses one; groups: backbone, dataset, method, trainer, logger)"
    return None


# Choices that Hydra's plugins bring, and the extra of this package that installs the plugin.
PLUGINS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/sweeper/optuna": "optuna",
    "hydra/sweeper/sampler/tpe": "optuna",
}
# Words of Hydra's plugins, and what they mean here.
PLUGINS_SAY = {
    "No trials are completed": "no run of this search finished; what each failed with stands above",
    'Could not detect "srun"': "hydra/launcher=slurm: no SLURM here (no srun); start it on a login node",
    "sbatch: error: ": (
        "hydra/launcher=slurm: sbatch refuses the jobs: {line}; set hydra.launcher.partition, account, qos, "
        "gpus_per_node (null: none), mem_gb, cpus_per_task, timeout_min to what this cluster has (sinfo lists it)"
    ),
    "has not produced any output": (
        "hydra/launcher=slurm: a job {line}; start the same command again once none of its jobs runs (squeue --me): "
        "what is finished is kept, what was interrupted resumes"
    ),
}


def _said_by_a_plugin(text: str) -> str | None:
    for words, meaning in PLUGINS_SAY.items():
        if words in text:
            line = next(line for line in reversed(text.splitlines()) if words in line)
            return meaning.format(line=line.strip().removeprefix("sbatch: error: "))
    return None


def _unknown_choice(error: MissingConfigException) -> str:
    file = error.missing_cfg_file or ""
    # Only Hydra's own groups lie deeper: the slash of backbone=ViT-B/16 belongs to the name.
    group, _, name = file.rpartition("/") if file.startswith("hydra/") else file.partition("/")
    if extra := PLUGINS.get(file):
        return f"{group}={name}: needs a plugin of Hydra: pip install 'coop-clip[{extra}]'"
    near = difflib.get_close_matches(name.lower(), error.options, n=4, cutoff=0.4)
    hint = f"near matches: {', '.join(near)}; " if near else ""
    return f"{group}={name}: there is no such {group}; {hint}all: {', '.join(error.options)}"


def _unknown_key_or_type(error: OmegaConfBaseException) -> str:
    allowed = [str(key) for key in error.parent_node] if isinstance(error.parent_node, DictConfig) else []
    if error.key is not None and allowed and error.key not in allowed:
        return str(no_such_key(error.full_key, allowed))
    said = str(error).splitlines()[0]
    given = dict(word.lstrip("+").split("=", 1) for word in sys.argv[1:] if "=" in word)
    if error.full_key not in given:
        return f"{error.full_key}: {said}"
    text = given[error.full_key]
    return f"{error.full_key}={text}: {_wanted(error, '' if text == 'null' else text) or said}"


def _wanted(error: OmegaConfBaseException, text: str) -> str | None:
    """What a key takes and how it is written, in place of a text that it does not take."""
    if not isinstance(error, ValidationError | ConfigTypeError):
        return None
    key = error.full_key
    default = error.parent_node if error.key is None else error.parent_node.get(error.key)
    if isinstance(default, ListConfig):
        return f"expected a list: {key}=[{text}]"
    if isinstance(default, DictConfig):
        return f"expected keys, such as {key}.{next(iter(default))}={text or '...'} (keys: {', '.join(default)})"
    example = "" if default is None else f", such as {key}={default}"
    return must_be(get_type_hints(error.object_type)[error.key]) + example
