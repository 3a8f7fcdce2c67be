"""What each command under Hydra checks of its config, before torch is there."""

from omegaconf import DictConfig

from coop.config import check, check_evaluation
from coop.data.counts import spread_shots


def check_training(cfg: DictConfig) -> None:
    """Check the config of one run, in which `shots` may be a list or a file of counts.

    Raises:
        CoopError: a key that does not exist, a value that cannot be, or a combination that cannot.
    """
    spread_shots(cfg)
    check(cfg)


CHECKS = {"train": check_training, "evaluate": check_evaluation}
