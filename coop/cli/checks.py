"""What each command under Hydra checks of its config, before torch is there."""

from hydra.types import RunMode
from omegaconf import DictConfig

from coop.config import check, check_evaluation
from coop.data.counts import spread_shots
from coop.errors import CoopError


def check_training(cfg: DictConfig) -> None:
    """Check the config of one run, in which `shots` may be a list or a file of counts. Raises CoopError."""
    spread_shots(cfg)
    check(cfg)


CHECKS = {"train": check_training, "evaluate": check_evaluation}


def check_one_run(hydra: DictConfig, command: str, instead: str) -> None:
    """Refuse a study where one run is asked for: Hydra would leave what is swept at its default.

    Args:
        hydra: the `hydra` node of the composed config.
        command: "train", or "evaluate", where overlays of coop.train serve for their targets: only `run` counts.
        instead: the end of the message, how to start several runs.

    Raises:
        CoopError: names the study, and the keys that make one run of it.
    """
    words = hydra.overrides.task
    given = {word.lstrip("+").partition("=")[0] for word in words}
    swept = [key for key in hydra.sweeper.get("params") or {} if key not in given]
    if command == "evaluate":
        swept = [key for key in swept if key == "run"]
    if swept or hydra.mode == RunMode.MULTIRUN:
        study = next((word for word in words if word.startswith("+exp=")), "hydra.sweeper.params")
        choose = f" (give {' '.join(f'{key}=...' for key in swept)} for one of them)" if swept else ""
        raise CoopError(f"{study}: a study of several runs{choose}; {instead}")
