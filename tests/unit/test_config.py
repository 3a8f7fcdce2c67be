"""What is wrong with a config is said in one message, before anything is loaded."""

import os
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest
from configs import composed, names
from omegaconf import OmegaConf

from coop.cli.messages import explain
from coop.config import AUTOCAST, TrainConfig, budget, build_method, check, conf_dir, resolve_epochs
from coop.errors import CoopError
from coop.optim.schedule import epochs_by_shots


def message(*overrides: str) -> str:
    """What a user reads; fails if the config is accepted or ends in a traceback."""
    with pytest.raises(Exception) as caught:
        check(composed(*overrides))
    explained = explain(caught.value)
    assert explained is not None, f"a traceback: {caught.value!r}"
    return explained


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # typos in keys
        ("shot=3", ["shot", "did you mean shots"]),
        ("+shot=3", ["shot", "shots"]),
        ("bacbone=tiny", ["bacbone", "did you mean backbone"]),
        ("method.n_ctxx=3", ["method.n_ctxx", "did you mean n_ctx"]),
        ("+method.n_ctxx=3", ["method.n_ctxx", "did you mean n_ctx"]),
        ("+dataset.shft=blur", ["dataset.shft", "shift"]),
        ("+optimizer.nestrov=true", ["optimizer.nestrov", "nesterov"]),
        ("+trainer.max_epochs=5", ["trainer.max_epochs", "devices"]),
        ("+backbone.foo=1", ["backbone.foo", "pretrained"]),
        ("+logger.nme=x", ["logger.nme", "project"]),
        ("backbone.modl=x", ["backbone.modl", "did you mean model"]),
        ("foo", ["foo"]),
        # wrong types
        ("shots=abc", ["shots", "abc"]),
        ("shots=1.5", ["shots", "1.5"]),
        ("epochs=many", ["epochs", "many"]),
        ("optimizer.lr=fast", ["optimizer.lr", "fast"]),
        ("method.n_ctx=four", ["method.n_ctx=four", "int or null"]),
        ("method.n_ctx=1.5", ["method.n_ctx=1.5", "int or null"]),
        ("method.n_ctx=true", ["method.n_ctx=true", "int or null"]),
        ("method.class_specific=maybe", ["method.class_specific=maybe", "bool"]),
        ("method.class_specific=1", ["method.class_specific=1", "bool"]),
        ("method.ctx_init=5", ["method.ctx_init=5", "str or null"]),
        ("dataset.template=5", ["dataset.template=5"]),
        ("dataset.template=null", ["dataset.template"]),
        ("dataset.epochs=abc", ["dataset.epochs=abc"]),
        ("logger.tags=one", ["logger.tags"]),
        ("'shots=3,4'", ["shots"]),
        # values out of range
        ("shots=-3", ["shots=-3", "-1 for all"]),
        ("shots=0", ["shots=0", "zero_shot"]),
        ("epochs=0", ["epochs=0", "at least 1"]),
        ("epochs=-1", ["epochs=-1", "at least 1"]),
        ("batch_size=0", ["batch_size=0", "at least 1"]),
        ("seed=-1", ["seed=-1"]),
        ("seed=5000000000", ["seed=5000000000"]),
        ("num_workers=-1", ["num_workers=-1"]),
        ("dataset.epochs=-3", ["dataset.epochs=-3"]),
        ("dataset.epochs=0", ["dataset.epochs=0"]),
        ("optimizer.lr=0", ["optimizer.lr=0"]),
        ("optimizer.lr=-1", ["optimizer.lr=-1"]),
        ("optimizer.lr=nan", ["optimizer.lr=nan"]),
        ("optimizer.momentum=-1", ["optimizer.momentum=-1"]),
        ("optimizer.weight_decay=-1", ["optimizer.weight_decay=-1"]),
        ("optimizer.warmup_epochs=-1", ["optimizer.warmup_epochs=-1"]),
        ("method.n_ctx=0", ["method.n_ctx=0", "at least 1"]),
        ("method.n_ctx=-4", ["method.n_ctx=-4", "at least 1"]),
        ("method.class_chunk=0", ["method.class_chunk=0", "at least 1"]),
        # values out of a list
        ("method.class_token_position=left", ["method.class_token_position=left", "end, middle, front"]),
        ("dataset.classes=left", ["dataset.classes=left", "all, base, new"]),
        ("dataset.shift=fog", ["dataset.shift=fog", "grayscale"]),
        ("features=disk", ["features=disk", "online, cached"]),
        ("augmentation=views", ["augmentation=views", "views:V"]),
        ("augmentation=views:0", ["augmentation=views:0", "views:V"]),
        ("augmentation=always", ["augmentation=always", "online, none"]),
        ("trainer.precision=8", ["trainer.precision=8", "bf16-mixed"]),
        ("optimizer.name=lion", ["optimizer.name=lion", "adamw"]),
        ("logger.kind=tensorboard", ["logger.kind=tensorboard", "wandb, csv, none"]),
        ("backbone.precision=fp8", ["backbone.precision=fp8", "fp16"]),
        ("dataset.template=photo", ["photo", "{}"]),
        # combinations
        ("method.ctx_init=photo method.n_ctx=16", ["n_ctx=16", "1 tokens"]),
        ('method.ctx_init="a photo of a" method.n_ctx=3', ["n_ctx=3", "4", "leave n_ctx out"]),
        ("method.ctx_init=''", ["method.ctx_init", "words"]),
        # names of groups
        ("dataset=caltech", ["dataset=caltech", "near matches: caltech101"]),
        ("dataset=cifar", ["dataset=cifar", "mini"]),
        ("backbone=vit_b61", ["backbone=vit_b61", "near matches: vit_b16"]),
        ("+exp=16shot_imagenett", ["exp=16shot_imagenett", "near matches: 16shot_imagenet"]),
        ("method=cop", ["method=cop", "near matches: coop"]),
        ("logger=tensorboard", ["logger=tensorboard", "wandb"]),
        ("dataset=null", ["needs a choice"]),
        ("method=null", ["needs a choice"]),
        # targets of one's own
        ("method._target_=os.system", ["method._target_=os.system", "Method"]),
        ("method._target_=coop.methods.nope.X", ["method._target_=coop.methods.nope.X"]),
        ("dataset._target_=coop.data.readers.mini.MINI", ["dataset._target_=coop.data.readers.mini.MINI"]),
        ("~method", ["method", "method=NAME"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_configs(override, parts):
    said = message(*shlex.split(override))
    assert all(part in said for part in parts), said
    assert "Traceback" not in said


@pytest.mark.parametrize("template", ["{} and {}", "a {} of {x}", "{0} {}", "a {} with a {"])
def test_a_template_takes_the_class_name_once_and_nothing_else(template):
    assert "{}" in message(f'dataset.template="{template}"')


@pytest.mark.parametrize("name", names("method"))
def test_every_method_config_passes(name):
    check(composed(f"method={name}"))


@pytest.mark.parametrize("name", names("dataset"))
def test_every_dataset_config_passes(name):
    cfg = composed(f"dataset={name}")
    check(cfg)
    assert cfg.dataset.name == name
    assert cfg.dataset.template.count("{}") == 1
    if name == "imagenet":
        assert resolve_epochs(composed("dataset=imagenet", "shots=16")) == 50


@pytest.mark.parametrize("name", names("backbone"))
def test_every_backbone_config_passes(name):
    if name == "open_clip":
        assert message("backbone=open_clip").startswith("backbone.model: must be given; add backbone.model=")
        return
    cfg = composed(f"backbone={name}")
    check(cfg)
    assert cfg.backbone.name in (cfg.backbone.model, "tiny")


@pytest.mark.parametrize(("backbone", "counted"), [("vit_b16", True), ("tiny", True), ("siglip2_vit_b16", False)])
def test_words_are_counted_before_loading_where_the_tokenizer_is_clips(backbone, counted):
    """The words "pet ..." are two tokens of CLIP's."""
    cfg = composed(f"backbone={backbone}", "method.ctx_init='pet ...'", "method.n_ctx=4")
    with pytest.raises(CoopError, match=r"n_ctx=4 .* have 2 tokens") if counted else nullcontext():
        check(cfg)


@pytest.mark.parametrize("name", names("exp"))
def test_every_experiment_config_passes(name):
    if name == "search":  # needs a plugin that is an extra
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    check(composed(f"+exp={name}"))


@pytest.mark.parametrize("name", [name for name in names("backbone") if name not in ("tiny", "open_clip")])
def test_backbones_have_the_activation_of_their_weights(name):
    """The registry's names and tags exist, and no config pairs GELU with weights trained with QuickGELU."""
    from open_clip.factory import get_model_config
    from open_clip.pretrained import get_pretrained_cfg

    node = composed(f"backbone={name}").backbone
    weights = get_pretrained_cfg(node.model, node.pretrained)
    assert weights, f"{node.model} has no tag {node.pretrained}"
    assert weights.get("quick_gelu", False) == get_model_config(node.model).get("quick_gelu", False)


def test_the_main_experiment_is_the_papers():
    cfg = composed("+exp=16shot_imagenet", "data_root=/x")
    assert (cfg.dataset.name, cfg.backbone.model, cfg.backbone.pretrained) == ("imagenet", "RN50-quickgelu", "openai")
    assert (cfg.shots, cfg.method.n_ctx, cfg.method.class_token_position, cfg.augmentation) == (16, 16, "end", "online")
    assert (cfg.batch_size, cfg.optimizer.lr, cfg.optimizer.momentum, cfg.optimizer.weight_decay) == (
        32,
        2e-3,
        0.9,
        5e-4,
    )
    assert (cfg.optimizer.warmup_epochs, cfg.optimizer.warmup_lr, resolve_epochs(cfg)) == (1, 1e-5, 50)
    assert composed("+exp=16shot_imagenet", "shots=4", "method.n_ctx=4").shots == 4


def test_the_default_is_the_bundled_one():
    cfg = composed()
    assert (cfg.backbone.name, cfg.dataset.name, cfg.method.name, cfg.logger.kind) == ("tiny", "mini", "coop", "wandb")
    assert (cfg.augmentation, cfg.shots, cfg.seed) == ("none", 16, 1)
    assert Path(cfg.backbone.model.removeprefix("local-dir:")).is_dir()


@pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (3, 100), (4, 100), (8, 200), (16, 200), (-1, 200)])
def test_the_papers_epochs(shots, epochs):
    assert epochs_by_shots(shots) == epochs
    for own, of_dataset, expected in ((None, None, epochs), (7, None, 7), (None, 50, 50), (7, 50, 7)):
        cfg = {"shots": shots, "epochs": own, "dataset": {"epochs": of_dataset}, "epochs_by_shots": None}
        assert resolve_epochs(OmegaConf.create(cfg)) == expected


@pytest.mark.parametrize(("method", "rule"), [("taskres", (100, 100, 200)), ("prolip", (300, 300, 300))])
def test_a_methods_own_epochs(method, rule):
    epochs = [resolve_epochs(composed(f"method={method}", f"shots={shots}")) for shots in (1, 4, 16)]
    assert epochs == list(rule)


def test_epochs_by_shots_of_ones_own_are_not_mixed_with_the_papers():
    epochs = [resolve_epochs(composed("epochs_by_shots={16: 300}", f"shots={shots}")) for shots in (1, 4, 16, 32, -1)]
    assert epochs == [300] * 5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], (500, 8000)),  # 320 images in batches of 20
        (["shots=4"], (125, 2000)),
        (["epochs=3"], (3, -1)),
        (["steps=33"], (3, 33)),
        (["epochs=3", "shots=-1"], (3, -1)),
        (["dataset=imagenet"], (500, 8000)),
    ],
)
def test_what_the_user_says_comes_before_the_published_steps(given, expected):
    cfg = composed("method=clip_lora", "batch_size=20", *given)
    check(cfg)
    assert budget(cfg, 320) == expected


def test_steps_for_each_shot_need_a_number_of_shots():
    with pytest.raises(CoopError, match="shots=-1: method=clip_lora takes 500 steps for each shot; give steps=N or"):
        check(composed("method=clip_lora", "shots=-1"))
    with pytest.raises(CoopError, match="steps=5 with epochs=3: give one of the two"):
        check(composed("method=clip_lora", "steps=5", "epochs=3"))


def test_documented_precisions_are_accepted():
    """Every precision that conf/trainer/default.yaml offers in its comment is one."""
    line = next(x for x in (conf_dir() / "trainer/default.yaml").read_text().splitlines() if x.startswith("precision"))
    offered = [word.strip() for word in line.partition("#")[2].split("|")]
    assert set(offered) == set(AUTOCAST)


def test_method_arguments_reach_the_method(small_clip):
    cfg = composed("method.n_ctx=3", "method.class_token_position=middle", "method.class_specific=true")
    learner = build_method(cfg.method, small_clip, ["dog", "cat"])
    assert tuple(learner.ctx.shape) == (2, 3, 128)
    assert learner.class_token_position == "middle"


def test_a_workers_traceback_is_cut_off():
    wrapped = CoopError(
        "Caught CoopError in DataLoader worker process 0.\nOriginal Traceback\n  coop.errors.CoopError: x.jpg: bad"
    )
    assert explain(wrapped) == "x.jpg: bad"


def test_a_cause_in_the_chain_is_explained():
    try:
        try:
            raise CoopError("fix it")
        except CoopError as error:
            raise RuntimeError("in between") from error
    except RuntimeError as error:
        assert explain(error) == "fix it"


def test_our_own_mistakes_are_not_explained_away():
    assert explain(ZeroDivisionError("ours")) is None


def test_train_yaml_shows_every_key_with_its_default():
    shown = OmegaConf.load(conf_dir() / "train.yaml")
    schema = OmegaConf.structured(TrainConfig)
    assert set(schema) - set(shown) == {"backbone", "method", "trainer", "logger"}  # groups, a file each
    assert {key: shown[key] for key in schema if key in shown} == {key: schema[key] for key in schema if key in shown}


def test_the_conf_folder_is_the_packages():
    assert (conf_dir() / "train.yaml").is_file()
    assert os.path.isabs(conf_dir())
