"""The studies in conf/exp: which cells they have, and that every one of them is a config that may run."""

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from coop.config import check, conf_dir, resolve_epochs

PAPER = {
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397",
    "dtd", "eurosat", "ucf101",
}  # fmt: skip


@pytest.fixture(autouse=True)
def configs():
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        yield


def cells(study: str, *overrides: str) -> list[list[str]]:
    """The overrides of each run of `python -m coop.train -m +exp=STUDY OVERRIDES`, as Hydra's own sweeper takes them."""
    params = compose("train", overrides=[f"+exp={study}"], return_hydra_config=True).hydra.sweeper.params
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    words = [f"+exp={study}", *(f"{key}={value}" for key, value in params.items()), *overrides]
    (batch,) = BasicSweeper.split_arguments(parser.parse_overrides(words), None)
    assert len({tuple(cell) for cell in batch}) == len(batch)
    return batch


def config(cell: list[str]) -> DictConfig:
    cfg = compose("train", overrides=cell)
    check(cfg)
    return cfg


@pytest.mark.parametrize(
    ("study", "count"),
    [("few_shot_curve", 5 * 3), ("context_length", 3 * 3), ("class_position", 4 * 5 * 3), ("backbones", 4 * 3)],
)
def test_number_of_cells(study, count):
    assert len(cells(study)) == count
    assert len(cells(study, "dataset=caltech101,dtd")) == 2 * count, "on a list of data sets"
    assert len(cells(study, "seed=1")) == count // 3
    cfg = config(cells(study, "dataset=dtd")[-1])
    assert (cfg.dataset.name, cfg.seed, cfg.shots, cfg.features) == ("dtd", 3, 16, "cached")


def test_the_papers_cells():
    found = cells("paper")
    assert len(found) == 11 * 4 * 5 * 3
    assert {cell[1] for cell in found} == {f"dataset={name}" for name in PAPER}
    assert len(cells("paper", "dataset=caltech101")) == 60
    assert len(cells("paper", "dataset=caltech101,dtd", "shots=16", "method.class_specific=false")) == 2 * 2 * 3


def test_the_papers_setting():
    """Section 4.1: RN50, M = 16, random crops and flips; 50, 100 or 200 epochs by shots, on ImageNet always 50."""
    seen = set()
    for cell in cells(
        "paper", "seed=3", "shots=1,16", "method.class_specific=true", "method.class_token_position=middle"
    ):
        cfg = config(cell)
        assert (cfg.backbone.model, cfg.backbone.pretrained) == ("RN50-quickgelu", "openai")
        assert (cfg.method.name, cfg.method.n_ctx, cfg.method.ctx_init) == ("coop", 16, None)
        assert (cfg.method.class_token_position, cfg.augmentation, cfg.batch_size) == ("middle", "online", 32)
        assert (cfg.optimizer.name, cfg.optimizer.lr) == ("sgd", 0.002)
        assert resolve_epochs(cfg) == (50 if cfg.dataset.name == "imagenet" or cfg.shots == 1 else 200)
        seen.add((cfg.dataset.name, cfg.shots))
    assert len(seen) == 11 * 2


def test_a_paper_cell_on_another_backbone():
    (cell,) = cells("paper", "dataset=dtd", "shots=1", "seed=1", "method.class_specific=true",
                    "method.class_token_position=end", "backbone=tiny")  # fmt: skip
    assert config(cell).backbone.name == "tiny"


def test_the_search_maximises_and_is_told_the_same_every_time():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    cfg = compose("train", overrides=["+exp=search"], return_hydra_config=True)
    assert cfg.hydra.sweeper.direction == "maximize"
    assert cfg.hydra.sweeper.sampler.seed == 1, "so that a search started again finds its finished cells"


def test_slurm_asks_for_nothing_but_the_partition():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    cfg = compose("train", overrides=["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.gpus_per_node, launcher.array_parallelism) == ("gpu", 1, 16)


def test_a_run_takes_one_device_and_a_study_the_launcher_for_all():
    cfg = compose("train", return_hydra_config=True)
    assert cfg.trainer.devices == 1
    assert cfg.hydra.launcher._target_ == "hydra_plugins.coop_launcher.GpuLauncher"
