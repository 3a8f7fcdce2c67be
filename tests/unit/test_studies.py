"""The studies in conf/exp: which settings they have, and that every one of them is a config that may run."""

from functools import cache

import pytest
from configs import composed
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from coop.cli.checks import check_one_run
from coop.cli.hydra_app import one_of_each
from coop.config import check, check_evaluation, conf_dir, locate, resolve_epochs
from coop.errors import CoopError
from coop.report.published import FILE, read_published

PAPER = {
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397",
    "dtd", "eurosat", "ucf101",
}  # fmt: skip


def hydra():
    return initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()))


@cache
def with_hydra(*overrides: str) -> DictConfig:
    """The config of a command line, with Hydra's own part."""
    with hydra():
        return compose("train", overrides=list(overrides), return_hydra_config=True)


def settings(study: str, *overrides: str) -> list[list[str]]:
    """The overrides of each run of `python -m coop.train -m +exp=STUDY OVERRIDES`, as Hydra's own sweeper takes them."""
    params = with_hydra(f"+exp={study}").hydra.sweeper.params
    words = [f"+exp={study}", *(f"{key}={value}" for key, value in params.items()), *overrides]
    with hydra():
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (batch,) = BasicSweeper.split_arguments(parser.parse_overrides(words), None)
    assert len({tuple(setting) for setting in batch}) == len(batch)
    return batch


def config(setting: list[str]) -> DictConfig:
    cfg = composed(*setting)
    check(cfg)
    return cfg


@pytest.mark.parametrize(
    ("study", "count"),
    [("few_shot_curve", 5 * 3), ("context_length", 3 * 3), ("class_position", 4 * 5 * 3), ("backbones", 4 * 3)],
)
def test_number_of_settings(study, count):
    assert len(settings(study)) == count
    assert len(settings(study, "dataset=caltech101,dtd")) == 2 * count, "on a list of data sets"
    assert len(settings(study, "seed=1")) == count // 3
    cfg = config(settings(study, "dataset=dtd")[-1])
    assert (cfg.dataset.name, cfg.seed, cfg.shots, cfg.features) == ("dtd", 3, 16, "cached")


def test_what_the_paper_trains():
    found = settings("paper")
    assert len(found) == 11 * 4 * 5 * 3
    assert {setting[1] for setting in found} == {f"dataset={name}" for name in PAPER}
    assert len(settings("paper", "dataset=caltech101")) == 60
    assert len(settings("paper", "dataset=caltech101,dtd", "shots=16", "method.class_specific=false")) == 2 * 2 * 3


def test_the_papers_setting():
    """Section 4.1: RN50, M = 16, random crops and flips; 50, 100 or 200 epochs by shots, on ImageNet always 50."""
    seen = set()
    for setting in settings(
        "paper", "seed=3", "shots=1,16", "method.class_specific=true", "method.class_token_position=middle"
    ):
        cfg = config(setting)
        assert (cfg.backbone.model, cfg.backbone.pretrained) == ("RN50-quickgelu", "openai")
        assert (cfg.method.name, cfg.method.n_ctx, cfg.method.ctx_init) == ("coop", 16, None)
        assert (cfg.method.class_token_position, cfg.augmentation, cfg.batch_size) == ("middle", "online", 32)
        assert (cfg.optimizer.name, cfg.optimizer.lr) == ("sgd", 0.002)
        assert resolve_epochs(cfg) == (50 if cfg.dataset.name == "imagenet" or cfg.shots == 1 else 200)
        seen.add((cfg.dataset.name, cfg.shots))
    assert len(seen) == 11 * 2


def test_a_paper_setting_on_another_backbone():
    (setting,) = settings("paper", "dataset=dtd", "shots=1", "seed=1", "method.class_specific=true",
                    "method.class_token_position=end", "backbone=tiny")  # fmt: skip
    assert config(setting).backbone.name == "tiny"


def test_the_search_maximizes_and_is_told_the_same_every_time():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    cfg = with_hydra("+exp=search")
    assert cfg.hydra.sweeper.direction == "maximize"
    assert cfg.hydra.sweeper.sampler.seed == 1, "so that a search started again finds its finished settings"


def test_slurm_asks_for_nothing_but_the_partition():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = with_hydra("hydra/launcher=slurm", "hydra.launcher.partition=gpu").hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.gpus_per_node, launcher.array_parallelism) == ("gpu", 1, 16)


def test_a_run_takes_one_device_and_a_study_the_launcher_for_all():
    cfg = with_hydra()
    assert cfg.trainer.devices == 1
    assert cfg.hydra.launcher._target_ == "hydra_plugins.coop_launcher.GpuLauncher"


COMBINATIONS = {"promptsrc_maple", "clip_lora_context"}  # nobody has published them
METHODS = {path.stem for path in (conf_dir() / "method").glob("*.yaml")} - COMBINATIONS
LEADERBOARDS = [
    "leaderboard",
    "leaderboard_base_to_new",
    "leaderboard_cross_dataset",
    "leaderboard_domain_generalization",
]


def methods(study: str, *overrides: str) -> set[str]:
    return {
        word.removeprefix("method=") for setting in settings(study, *overrides) for word in setting if "method=" in word
    }


def transfers(name: str) -> bool:
    """Whether a method, as its config has it, has a meaning for classes that it has not seen."""
    node = composed(f"method={name}").method
    return locate("method", node).transfers_to_other_classes is not False


def test_leaderboards_have_every_method_that_can_be_in_them():
    """A new method is in none of the lists: this test names those that it belongs in."""
    transferring = {name for name in METHODS if transfers(name)}
    assert {"zero_shot", "maple", "coop"} <= transferring and "taskres" not in transferring
    assert methods("leaderboard") == methods("leaderboard_domain_generalization") == METHODS
    assert methods("leaderboard_base_to_new") == methods("leaderboard_cross_dataset") == transferring
    assert len(settings("leaderboard", "dataset=dtd")) == len(METHODS) * 5 * 3
    assert len(settings("leaderboard_base_to_new", "method=coop", "dataset=dtd")) == 3
    assert len(settings("leaderboard_cross_dataset", "method=coop")) == 3


# Those whose setting depends on the protocol; the others have the one that the first leaderboard shows.
OF_PROTOCOLS = [
    name for name in sorted(METHODS) if "${protocol}" in (conf_dir() / "method" / f"{name}.yaml").read_text()
]


@pytest.mark.parametrize("study", LEADERBOARDS)
def test_every_run_of_a_leaderboard_is_a_config_that_may_run(study):
    assert OF_PROTOCOLS == ["maple", "promptsrc"]
    kept = ["shots=4", "seed=1"] if study == "leaderboard" else ["seed=1", f"method=coop,{','.join(OF_PROTOCOLS)}"]
    for setting in settings(study, "dataset=imagenet", "backbone=vit_b16", *kept):
        cfg = config(setting)
        assert (cfg.features, cfg.validation, cfg.dataset.name) == ("cached", "choose", "imagenet")
        assert cfg.protocol == study.removeprefix("leaderboard").removeprefix("_") or study == "leaderboard"


@pytest.mark.parametrize(
    "method, augmentation, validation",
    [
        ("coop", "online", "choose"), ("maple", "online", "choose"), ("clap", "views:20", "none"),
        ("tip_adapter_f", "views:10", "choose"), ("lp_pp", "none", "choose"), ("linear_probe", "none", "choose"),
        ("cross_modal_adapter", "none", "choose"),
    ],
)  # fmt: skip
def test_as_published(method, augmentation, validation):
    found = settings("[leaderboard,published]", f"method={method}", "shots=16", "seed=1")
    assert {word for setting in found for word in setting if "dataset=" in word} == {
        f"dataset={name}" for name in PAPER
    }
    cfg = config(found[0])
    assert (cfg.augmentation, cfg.validation) == (augmentation, validation)


def test_what_is_published_gives_way_to_the_command_line():
    assert config(["+exp=[leaderboard,published]", "augmentation=none"]).augmentation == "none"


def setting(*overrides: str) -> tuple:
    cfg = config(list(overrides))
    keys = ("depth", "depth_text", "gpa_mean", "gpa_std", "strength")
    return *(cfg.method.get(key) for key in keys), resolve_epochs(cfg), cfg.optimizer.lr


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["method=maple"], (9, None, None, None, None, 5, 0.0035)),
        (["method=maple", "dataset=imagenet", "+exp=base_to_new"], (9, None, None, None, None, 5, 0.0035)),
        (["method=maple", "dataset=imagenet", "+exp=cross_dataset"], (3, None, None, None, None, 2, 0.0026)),
        (["method=maple", "method.depth=6", "epochs=7", "+exp=cross_dataset"], (6, None, None, None, None, 7, 0.0026)),
        (["method=promptsrc", "shots=1"], (None, 9, 30, 30, None, 50, 0.0025)),
        (["method=promptsrc", "dataset=dtd"], (None, 9, 45, 5, None, 50, 0.0025)),
        (["method=promptsrc", "dataset=dtd", "+exp=base_to_new"], (None, 9, 15, 1, None, 20, 0.0025)),
        (["method=promptsrc", "dataset=imagenet", "+exp=domain_generalization"], (None, 3, 6, 10, None, 20, 0.0025)),
        (["method=prograd", "dataset=eurosat", "shots=8"], (None, None, None, None, 0.8, 200, 0.002)),
        (["method=prograd", "dataset=eurosat", "shots=4"], (None, None, None, None, 1.0, 100, 0.002)),
        (["method=dept", "dataset=imagenet", "shots=1"], (None, None, None, None, None, 10, 0.0035)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_published_settings_by_protocol(overrides, expected):
    """The tables of settings in the authors' repositories (sources: conf/method)."""
    assert setting(*overrides) == expected


def test_an_unknown_protocol_is_refused():
    with pytest.raises(CoopError, match="protocol=base2new: allowed are few_shot, base_to_new, cross_dataset, domain"):
        config(["protocol=base2new"])


@pytest.mark.slow
def test_zero_shot_has_openclips_figures_beside_it():
    """Every run with CLIP's 80 templates stands beside a published figure of the same weights and classes."""
    published = read_published(FILE)
    published = published[published["table"] == "OpenCLIP, zero-shot"]
    known = {(row["dataset"], row["backbone"], row["stated"]["pretrained"]) for _, row in published.iterrows()}
    found = settings("zero_shot")
    assert len(found) == 11 * 5 * 2
    configs = [config(words) for words in found if "method=zero_shot_ensemble" in words]
    assert {(cfg.dataset.name, cfg.backbone.name, cfg.backbone.pretrained) for cfg in configs} <= known
    assert {cfg.method.templates for cfg in configs} == {80}
    assert set(published["confidence"]) == {"verified"}
    (best,) = published[published["backbone"].eq("ViT-bigG-14") & published["dataset"].eq("imagenet")].to_dict(
        "records"
    )
    assert (best["accuracy_percent"], best["stated"]["num_classes"]) == (80.09, "1000")


def test_of_each_value_one_run_is_composed_before_a_study_starts():
    batch = [[f"method={m}", f"seed={n}"] for m in ("a", "b", "c") for n in (1, 2)]
    assert one_of_each(batch) == [
        ["method=a", "seed=1"],
        ["method=a", "seed=2"],
        ["method=b", "seed=1"],
        ["method=c", "seed=1"],
    ]


@pytest.mark.parametrize(
    ("command", "words", "keys"),
    [
        ("train", ["+exp=leaderboard"], "method=... shots=... seed=..."),
        ("train", ["+exp=leaderboard", "method=coop", "shots=4"], "seed=..."),
        ("train", ["+exp=search"], "optimizer.lr=... optimizer.weight_decay=... method.n_ctx=..."),
        ("train", ["+exp=leaderboard", "method=coop", "shots=4", "seed=1"], None),
        ("train", ["+exp=16shot_imagenet"], None),
        ("evaluate", ["+exp=domain_generalization", "run=a/folder"], None),
    ],
)
def test_a_study_without_m_is_refused(command, words, keys):
    with hydra():
        node = compose(command, overrides=words, return_hydra_config=True).hydra
    if keys is None:
        return check_one_run(node, command, "add -m")
    with pytest.raises(CoopError) as refused:
        check_one_run(node, command, "add -m")
    assert str(refused.value) == f"{words[0]}: a study of several runs (give {keys} for one of them); add -m"


def test_an_evaluation_of_several_runs_is_refused_without_m():
    node = {"sweeper": {"params": {"run": "a,b", "seed": "1,2"}}, "overrides": {"task": []}, "mode": None}
    with pytest.raises(CoopError, match=r"^hydra.sweeper.params: a study of several runs \(give run=... for one"):
        check_one_run(OmegaConf.create(node), "evaluate", "add -m")


@pytest.mark.parametrize("study", ["cross_dataset", "domain_generalization"])
def test_overlays_that_name_targets_serve_evaluation_too(study):
    with hydra():
        cfg = compose("evaluate", overrides=[f"+exp={study}", "run=a/folder"])
        trained = compose("train", overrides=[f"+exp={study}"])
    check_evaluation(cfg)
    assert len(cfg.targets) >= 4 and cfg.targets == trained.targets
