"""A table of bad input: each kind ends in one message that names the key or file and what is allowed or how to fix it.

Kinds come from families: every typed key of the config by the wrong values of its type, every bound, every key of every
reader and method, and every reader of files by files of the wrong form. The message is what a user reads (`explain`),
and what was on disk before is there unchanged.
"""

import errno
import gzip
import inspect
import json
import os
import types
import typing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from configs import composed, names, written
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from coop import cache as cache_command
from coop import dashboard, export, interpret, predict
from coop.cli.messages import explain
from coop.cli.options import parse
from coop.cli.overrides import as_override
from coop.clip import loading as weights
from coop.config import DATASET_KEYS, METHOD_KEYS, EvaluateConfig, TrainConfig, check, check_schema, locate
from coop.data import __main__ as data_command
from coop.data.feature_cache import Shard
from coop.data.images import open_image
from coop.data.manifest import apply_manifest, write_manifest
from coop.data.readers.classes import check_names
from coop.data.readers.classnames import imagenet_classnames, read_classnames
from coop.data.readers.folder import read_folder
from coop.data.readers.huggingface import read_huggingface
from coop.data.readers.imagenet import read_imagenet
from coop.data.readers.split_file import load_rows, read_split_file
from coop.data.readers.sun397 import read_sun397
from coop.data.readers.table import read_csv
from coop.data.sampling import Item, Splits, sample
from coop.errors import CoopError
from coop.report import __main__ as report
from coop.system import files

ODD = os.fsdecode(b"caf\xe9")  # Latin-1
UNIONS = (typing.Union, types.UnionType)  # of an Annotated type, and of a plain one


def said_by(call, *args) -> str:
    """What a user reads of a call that must fail."""
    with pytest.raises(Exception) as caught:
        call(*args)
    message = explain(caught.value)
    assert message is not None, f"a traceback: {caught.value!r}"
    assert "Traceback" not in message
    return message


def content_of(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


# ---------------------------------------------------------------------------------------------- keys of the config


def message_of(word: str, command: str = "train", *base: str) -> str:
    """What a user reads of one wrong `key=value`."""

    def run() -> None:
        cfg = composed(*base, as_override(word), command=command)
        check(cfg) if command == "train" else check_schema(cfg, EvaluateConfig)

    return said_by(run)


def leaves(schema: type, prefix: str = "") -> dict[str, typing.Any]:
    """Types by key of a config's schema."""
    found = {}
    for name, kind in typing.get_type_hints(schema).items():
        options = typing.get_args(kind) if typing.get_origin(kind) in UNIONS else (kind,)
        group = next((option for option in options if hasattr(option, "__dataclass_fields__")), None)
        found |= leaves(group, f"{prefix}{name}.") if group else {f"{prefix}{name}": kind}
    return found


WRONG = {
    int: ["abc", "1.5", "[1]", "{a: 1}"],
    float: ["fast", "[1]", "{a: 1}", "nan", "inf", "-inf"],
    bool: ["maybe", "[true]", "{a: 1}"],
    str: ["[a]", "{a: 1}"],
    list: ["{a: 1}", "[[a]]"],
}


def wrong_values(kind: typing.Any) -> list[str]:
    """Values that are not of a type: those that are wrong for all of its alternatives."""
    options = typing.get_args(kind) if typing.get_origin(kind) in UNIONS else (kind,)
    plain = [typing.get_origin(option) or option for option in options if option is not type(None)]
    return [value for value in WRONG.get(plain[0], []) if all(value in WRONG.get(option, [value]) for option in plain)]


TYPED = [
    (f"{key}={value}", key)
    for key, kind in leaves(TrainConfig).items()
    if not key.startswith(("backbone.name", "dataset", "method"))
    for value in wrong_values(kind)
]


@pytest.mark.parametrize(("word", "key"), TYPED, ids=[word for word, _ in TYPED])
def test_a_value_of_another_type(word, key):
    said = message_of(word)
    assert said.startswith((f"{key}:", f"{key}=")), said
    assert any(fix in said for fix in ("convert", "must be", "give", "Value", "Cannot", "allowed are")), said


BOUNDS = [
    ("shots=0", "-1 for all"),
    ("shots=-2", "-1 for all"),
    ("shots=1000000000000", "at most"),
    ("seed=-1", "at least 0"),
    ("seed=4294967296", "at most 4294967295"),
    ("epochs=0", "at least 1"),
    ("epochs=-5", "at least 1"),
    ("epochs=1000000000000", "at most 1000000"),
    ("epochs_by_shots={0: 50}", "numbers of shots from 1 with epochs from 1 to 1000000, such as {4: 100, 16: 200}"),
    ("epochs_by_shots={16: 0}", "epochs from 1 to 1000000"),
    ("epochs_by_shots={}", "such as {4: 100"),
    ("epochs_by_shots=300", "such as {4: 100"),
    ("epochs_by_shots={16: many}", "such as {4: 100"),
    ("batch_size=0", "at least 1"),
    ("batch_size=-32", "at least 1"),
    ("batch_size=1000000000000", "at most"),
    ("num_workers=-1", "at least 0"),
    ("num_workers=1000000", "at most 1024"),
    ("augmentation=''", "online, none, views:V"),
    ("augmentation=views", "views:V"),
    ("augmentation=views:", "views:V"),
    ("augmentation=views:0", "from 1 to 1000"),
    ("augmentation=views:-1", "from 1 to 1000"),
    ("augmentation=views:1.5", "from 1 to 1000"),
    ("augmentation=views:x", "from 1 to 1000"),
    ("augmentation=views:²", "from 1 to 1000"),
    ("augmentation=views:100000000", "from 1 to 1000"),
    ("augmentation=Online", "online, none"),
    ("features=disk", "online, cached"),
    ("features=''", "online, cached"),
    ("features=true", "online, cached"),
    ("trainer.precision=8", "32, 16-mixed, bf16-mixed"),
    ("trainer.precision=64", "32, 16-mixed, bf16-mixed"),
    ("trainer.num_nodes=0", "at least 1"),
    ("trainer.num_nodes=1000000", "at most 1024"),
    ("trainer.devices=0", "auto for all"),
    ("trainer.devices=-2", "auto for all"),
    ("trainer.devices=1000000", "from 1 to 1024"),
    ("trainer.devices=many", "auto for all"),
    ("trainer.devices=[]", "auto for all"),
    ("trainer.devices=[a]", "auto for all"),
    ("trainer.devices=1.5", "auto for all"),
    ("trainer.devices={a: 1}", "auto for all"),
    ("trainer.accelerator=''", "must not be empty"),
    ("trainer.strategy=''", "must not be empty"),
    ("optimizer.name=lion", "sgd, adam, adamw"),
    ("optimizer.name=''", "sgd, adam, adamw"),
    ("optimizer.lr=0", "must be a positive number"),
    ("optimizer.lr=-0.1", "must be a positive number"),
    ("optimizer.warmup_lr=0", "must be a positive number"),
    ("optimizer.eps=0", "must be a positive number"),
    ("optimizer.momentum=-0.9", "must not be negative"),
    ("optimizer.weight_decay=-1", "must not be negative"),
    ("optimizer.warmup_epochs=-1", "at least 0"),
    ("optimizer.warmup_epochs=1000000000000", "at most"),
    ("logger.kind=tensorboard", "wandb, csv, none"),
    ("logger.kind=''", "wandb, csv, none"),
    ("logger.project=''", "must not be empty"),
    ("backbone.precision=fp8", "fp32, fp16"),
    ("backbone.model=''", "must not be empty"),
    ("backbone.model=hf-hub:", "hf-hub:ORG/NAME"),
    ("backbone.model=local-dir:", "local-dir:FOLDER"),
    ("backbone.model='local-dir: '", "local-dir:FOLDER"),
    ("backbone.model=local-dir:/nowhere", "open_clip_config.json"),
    ("backbone.model=local-dir:/", "open_clip_config.json"),
    ("backbone.model=ViT-B-61", "near matches"),
    ("backbone.model=ViT-B-16", "backbone.pretrained"),
    ("backbone.model=🦊", "near matches"),
    ("backbone.pretrained=openai", "leave pretrained out"),
]


@pytest.mark.parametrize(("word", "fix"), BOUNDS, ids=[word for word, _ in BOUNDS])
def test_a_value_out_of_bounds(word, fix):
    key, _, value = word.partition("=")
    said = message_of(word)
    named = value.removeprefix("local-dir:") if value.startswith("local-dir:/") else key
    assert said.startswith(named) and fix in said, said


EVALUATE = [
    ("num_workers=-1", "at least 0"),
    ("num_workers=100000", "at most 1024"),
    ("features=disk", "online, cached"),
    ("seed=-1", "at least 0"),
    ("seed=x", "Integer"),
    ("accelerator=''", "must not be empty"),
    ("run=''", "must not be empty"),
    ("cache_dir=[a]", "string"),
]


@pytest.mark.parametrize(("word", "fix"), EVALUATE, ids=[word for word, _ in EVALUATE])
def test_a_value_of_evaluate(word, fix):
    said = message_of(word, "evaluate", "run=x")
    assert said.startswith(word.partition("=")[0]) and fix in said, said


# -------------------------------------------------------------------------------- keys of every reader and method

NODE_WRONG = {
    int: [("abc", "int"), ("1.5", "int"), ("true", "int")],
    float: [("fast", "float"), ("nan", "finite"), ("[1]", "float")],
    bool: [("maybe", "bool"), ("1", "bool")],
    str: [("5", "str"), ("[a]", "str")],
    dict: [("5", "mapping"), ("{a: null}", "mapping")],
}


def node_cases(group: str, own: dict) -> list[tuple[str, str, str]]:
    """(choice, word, fix) of each key of each config of a group."""
    cases = []
    for name in names(group):
        node = written(group, name)
        signature = inspect.signature(locate(group, OmegaConf.create(node)), eval_str=True).parameters
        cases.append((f"{group}={name}", f"+{group}.nonsense=1", "there is no such key; "))
        for key in node | {"manifest": None} if group == "dataset" else node:
            kind = own.get(key, getattr(signature.get(key), "annotation", None))
            if key != "_target_":
                cases += [(f"{group}={name}", f"{group}.{key}={value}", fix) for value, fix in wrong_of(kind)]
    return cases


def wrong_of(kind: typing.Any) -> list[tuple[str, str]]:
    """Wrong values of a key of a reader or method, and what their message says."""
    if typing.get_origin(kind) is typing.Literal:
        return [("sideways", "allowed are"), ("5", "allowed are")]
    options = typing.get_args(kind) if typing.get_origin(kind) in UNIONS else (kind,)
    bare = [typing.get_args(o)[0] if typing.get_origin(o) is typing.Annotated else o for o in options]
    plain = [typing.get_origin(option) or option for option in bare if option is not type(None)]
    if plain == [dict, str]:
        return NODE_WRONG[dict]
    if plain[0] is list:
        (inner,) = typing.get_args(bare[0])
        inner = (typing.get_args(inner) or (inner,))[0]  # Annotated[str, ...]
        wrong = "[5]" if inner is str else "[a]"
        return [("abc", f"list of {inner.__name__}"), ("[]", "must "), (wrong, f"list of {inner.__name__}")]
    if plain == [str, list]:
        return [("5", "str or list of int"), ("[a]", "str or list of int")]
    if plain == [int, list]:
        return [("abc", "int or list of str"), ("1.5", "int or list of str"), ("[]", "must not be empty")]
    return NODE_WRONG.get(plain[0], [])


# ProGrad's first words are those of its template.
RENAMED = {("prograd", "method.template"): "method.ctx_init"}


# A key is tried with all wrong values once, and with one for each reader or method that has it; those that all readers
# share once in all.
NODES, tried = {}, set()
for choice, word, fix in node_cases("dataset", DATASET_KEYS) + node_cases("method", METHOD_KEYS):
    group, key = choice.partition("=")[0], word.partition("=")[0].partition(".")[2]
    shared = key in DATASET_KEYS if group == "dataset" else key in METHOD_KEYS
    target = "all" if shared else written(*choice.split("="))["_target_"]
    if (target, key) not in tried or (word, fix) not in tried:
        NODES.setdefault((group, target, word), (choice, word, fix))
    tried |= {(target, key), (word, fix)}
NODES = list(NODES.values())


@pytest.mark.parametrize(("choice", "word", "fix"), NODES, ids=[f"{choice} {word}" for choice, word, _ in NODES])
def test_a_key_of_a_reader_or_method(choice, word, fix):
    said = message_of(word, "train", choice)
    key = word.lstrip("+").partition("=")[0]
    assert said.startswith(RENAMED.get((choice.partition("=")[2], key), key)), said
    assert fix in said, said


METHOD_BOUNDS = [
    ("coop", "method.n_ctx=0", "at least 1"),
    ("coop", "method.n_ctx=-1", "at least 1"),
    ("coop", "method.n_ctx=100000000", "fit into the text encoder"),
    ("coop", "method.class_chunk=0", "at least 1"),
    ("coop", "method.class_chunk=-5", "at least 1"),
    ("coop", "method.ctx_init=''", "words to start from"),
    ("coop", "method.ctx_init=' _ '", "words to start from"),
    ("coop", "method.class_token_position=END", "end, middle, front"),
    ("clip_adapter", "method.ratio=0", "above 0"),
    ("clip_adapter", "method.ratio=1.5", "at most 1"),
    ("clip_adapter", "method.reduction=0", "at least 1"),
    ("linear_probe", "method.C=0", "must be a positive number"),
    ("linear_probe", "method.C=inf", "finite"),
    ("tip_adapter", "method.alpha=0", "must be a positive number"),
    ("tip_adapter", "method.beta=-1", "must be a positive number"),
    ("tip_adapter", "method.alpha_max=0.05", "above 0.1"),
    ("tip_adapter_f", "method.beta_max=-1", "above 0.1"),
    ("zero_shot_ensemble", "method.templates=81", "80 or 7"),
    ("zero_shot_ensemble", "method.templates=['{} {}']", "one {}"),
    ("zero_shot", "method.template='{'", "one {}"),
    ("text_bias", "method.template='{a}'", "one {}"),
    ("image_encoder", "method.template=''", "one {}"),
]


@pytest.mark.parametrize(("method", "word", "fix"), METHOD_BOUNDS, ids=[word for _, word, _ in METHOD_BOUNDS])
def test_a_method_out_of_bounds(method, word, fix):
    said = message_of(word, "train", f"method={method}")
    assert word.partition("=")[0].removeprefix("method.") in said.partition(":")[0] and fix in said, said


DATASET_BOUNDS = [
    ("dataset.classes=old", "all, base, new"),
    ("dataset.epochs=0", "at least 1"),
    ("dataset.epochs=1000000000000", "at most"),
    ("dataset.template=photo", "one {}"),
    ("dataset.template='{} {}'", "one {}"),
    ("dataset.name=''", "must not be empty"),
    ("dataset.shift=fog", "grayscale"),
]


@pytest.mark.parametrize(("word", "fix"), DATASET_BOUNDS, ids=[word for word, _ in DATASET_BOUNDS])
def test_a_data_set_out_of_bounds(word, fix):
    said = message_of(word)
    assert said.startswith(word.partition("=")[0]) and fix in said, said


# ------------------------------------------------------------------------------------- options of the other commands

OPTIONS = [
    (predict, "top=0", "at least 1"),
    (predict, "top=-1", "at least 1"),
    (predict, "top=1000000", "at most 100000"),
    (predict, "top=many", "must be int"),
    (predict, "top=1.5", "must be int"),
    (predict, "top=", "must be int"),
    (predict, "json=perhaps", "must be bool"),
    (predict, "tpo=5", "options are"),
    (predict, "--top", "options are"),
    (predict, "-k", "options are"),
    (interpret, "top=x", "must be int"),
    (interpret, "only_words=x", "must be bool"),
    (interpret, "metrics=cosine", "options are"),
    (export, "onnx=maybe", "must be bool"),
    (export, "format=onnx", "options are"),
    (dashboard, "proejct=x", "options are"),
    (dashboard, "--project", "options are"),
]


@pytest.mark.parametrize(("command", "word", "fix"), OPTIONS, ids=[f"{c.__name__} {w}" for c, w, _ in OPTIONS])
def test_an_option(command, word, fix):
    said = said_by(parse, ["run=x", word] if command is not dashboard else [word], command.Options)
    assert word.partition("=")[0] in said and fix in said, said


@pytest.mark.parametrize("command", [predict, interpret, export])
def test_a_run_is_not_named(command):
    assert said_by(parse, [], command.Options) == "run= is missing"


@pytest.mark.parametrize(
    ("main", "words", "named", "fix"),
    [
        (report.main, ["/nowhere/runs"], "/nowhere/runs", "folders of runs"),
        (report.main, ["otu=x", "/tmp"], "otu=x", "options are out="),
        (report.main, ["/tmp", "mixed=perhaps"], "mixed=perhaps", "must be bool"),
        (report.main, ["-x"], "-x", "options are out="),
        (cache_command.main, ["wipe"], "wipe", "list, clear"),
        (cache_command.main, ["clear"], "clear", "all, a kind"),
        (cache_command.main, ["cache_dir=/nowhere"], "cache_dir=/nowhere", "no such folder"),
        (cache_command.main, ["--all"], "--all", "cache_dir="),
        (data_command.main, ["chekc", "mini"], "chekc", "check, prepare"),
        (data_command.main, ["export"], "export", "name of one data set"),
        (data_command.main, ["export", "mini", "caltech101"], "export", "name of one data set"),
        (data_command.main, ["prepare", "food101"], "prepare food101", "data_root=DIR"),
        (data_command.main, ["export", "mini", "--out"], "--out", "options are dataset=, out="),
        (data_command.main, ["check", "mini", "out=x"], "out=x", "show and export do"),
        (data_command.main, ["check", "mini", "shots=x"], "shots", "1 or more training images"),
        (data_command.main, ["check", "minni"], "minni", "near matches: mini"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_of_a_command(main, words, named, fix):
    said = said_by(main, words)
    assert named in said and fix in said, said


@pytest.mark.parametrize("read", [as_override, lambda word: parse([word], predict.Options)])
def test_a_word_that_is_not_utf8(read):
    said = said_by(read, f"run=/tmp/{ODD}")
    assert said.startswith("run=/tmp/caf\\xe9: not UTF-8") and "rename" in said


# Texts that people write, and that Hydra's grammar has no place for.
TEXTS = [
    "a photo of a cat, or a dog's", "Bilder für mich/it's 100 %", "größe", "😀 dog", "a\nb", "a\ttab", "a=b,c=d ü",
    "'", '"', "'half", 'a "quoted" word', "back\\", "it\\'s", "end\\'", "[open", "open]", "(x) & y; z", "#1 ü", "null é",
    "日本語", "a: b, c", "{x", "x}", "100%", "C:\\x y", "a photo of a, b",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_arrives_as_it_was_written(text):
    override = OverridesParser.create().parse_override(as_override(f"method.ctx_init={text}"))
    assert override.value() == text


@pytest.mark.parametrize("name", ["a=1,b=2", "x [y] {z}", "it's", "a, b", "${x}", "ü\n"])
def test_a_path_that_is_there_is_one_value(tmp_path, name):
    path = tmp_path / name
    path.mkdir()
    override = OverridesParser.create().parse_override(as_override(f"dataset.path={path}", sweeps=True))
    assert OmegaConf.create({"path": override.value()}).path == str(path)


def test_a_sweep_stays_a_sweep():
    for word in ("shots=1,2", "method=coop,zero_shot", "seed=range(1,4)", "method.n_ctx=choice(4,8)", "~method", "foo"):
        assert as_override(word, sweeps=True) == as_override(word) == word
    assert as_override("targets=[/tmp/für,mini]") == "targets=['/tmp/für',mini]"
    assert as_override("dataset.path=/a/ü,/b", sweeps=True) == "dataset.path='/a/ü',/b"


# ---------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Two classes of four images, empty files: a listing never opens them."""
    root = tmp_path / "photographs"
    for name in ("ant", "bee", "cow", "dog"):
        (root / name).mkdir(parents=True)
        for index in range(4):
            (root / name / f"{index}.jpg").touch()
    return root


def unchanged(folder: Path, call, *args) -> str:
    before = content_of(folder)
    said = said_by(call, *args)
    assert content_of(folder) == before
    return said


ROWS = {
    "train": [["ant/0.jpg", 0, "ant"], ["bee/0.jpg", 1, "bee"]],
    "val": [],
    "test": [["ant/1.jpg", 0, "ant"], ["bee/1.jpg", 1, "bee"]],
}
FORM = "image path, label, class name"
SPLIT_FILES = {
    "not JSON": ("{", "JSON", FORM),
    "empty": ("", "JSON", FORM),
    "words": ("nothing here", "JSON", FORM),
    "not UTF-8": (b'{"train": "caf\xe9"}', "JSON", FORM),
    "deep": ("[" * 100000, "JSON", FORM),
    "list": ([1, 2], "[1, 2]", FORM),
    "text": ('"train"', "the file", FORM),
    "null": ("null", "null", FORM),
    "no test": ({"train": ROWS["train"]}, "test is missing", FORM),
    "no train": ({"test": ROWS["test"]}, "train is missing", FORM),
    "train is empty": (ROWS | {"train": []}, "train is []", "must not be empty"),
    "test is null": (ROWS | {"test": None}, "test is null", "must be a list"),
    "val is a number": (ROWS | {"val": 3}, "val is 3", "must be a list"),
    "train is an object": (ROWS | {"train": {"a": 1}}, "train is", "must be a list"),
    "row is text": (ROWS | {"train": ["ant/0.jpg"]}, "train[0]", FORM),
    "row is short": (ROWS | {"train": [["ant/0.jpg", 0]]}, "train[0][2] is missing", FORM),
    "row is long": (ROWS | {"train": [["ant/0.jpg", 0, "ant", 1]]}, "train[0]", FORM),
    "label is text": (ROWS | {"test": [["ant/0.jpg", "0", "ant"]]}, 'test[0][1] is "0"', "whole number"),
    "label is true": (ROWS | {"test": [["ant/0.jpg", True, "ant"]]}, "test[0][1] is true", "whole number"),
    "label is 1.5": (ROWS | {"test": [["ant/0.jpg", 1.5, "ant"]]}, "test[0][1] is 1.5", "whole number"),
    "label is negative": (ROWS | {"test": [["ant/0.jpg", -1, "ant"]]}, "test[0][1] is -1", "at least 0"),
    "label is absurd": (ROWS | {"test": [["ant/0.jpg", 10**12, "ant"]]}, "test[0][1]", "at most 100000"),
    "path is a number": (ROWS | {"val": [[5, 0, "ant"]]}, "val[0][0] is 5", "must be text"),
    "path is empty": (ROWS | {"val": [["", 0, "ant"]]}, "val[0][0]", "must not be empty"),
    "name is null": (ROWS | {"val": [["ant/0.jpg", 0, None]]}, "val[0][2] is null", "must be text"),
    "name is blank": (ROWS | {"val": [["ant/0.jpg", 0, " "]]}, "val[0][2]", "must not be empty"),
    "two names": (ROWS | {"val": [["ant/0.jpg", 0, "wasp"]]}, "label 0 has two class names", "a label of its own"),
    "images that are not there": (ROWS | {"val": [["ant/9.jpg", 0, "ant"]]}, "ant/9.jpg", "Unpack"),
    "images outside": (ROWS | {"val": [["../../etc/passwd", 0, "ant"]]}, "../../etc/passwd", "Unpack"),
}


def write(path: Path, content: typing.Any) -> Path:
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("kind", SPLIT_FILES)
def test_a_split_file(photographs, kind):
    content, named, fix = SPLIT_FILES[kind]
    write(photographs.parent / "photographs" / "split.json", content)
    read = partial(read_split_file, image_folders=["photographs"], split_file="split.json")
    said = unchanged(photographs, read, str(photographs.parent))
    assert "split.json" in said and named in said and fix in said, said


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"no gzip", gzip.compress(b"{", mtime=0)[:-6]])
def test_a_packed_split_file(tmp_path, content):
    (tmp_path / "split.json.gz").write_bytes(content)
    said = said_by(load_rows, tmp_path / "split.json.gz")
    assert "split.json.gz" in said and "again" in said


def change(**keys):
    return lambda manifest: manifest.update(keys)


def add(row, part="train"):
    return lambda manifest: manifest[part].append(row)


HOW = "python -m coop.data export"
MANIFESTS = {
    "a list": ([1], "[1]", HOW),
    "a number": ("3", "the file is 3", HOW),
    "empty": ("", "JSON", HOW),
    "nested": ("[" * 100000, "JSON", HOW),
    "not UTF-8": (b'{"format": "caf\xe9"}', "JSON", HOW),
    "an empty object": ({}, "format is missing", HOW),
    **{f"no {key}": (lambda m, key=key: m.pop(key), f"{key} is missing", HOW) for key in ("shots", "seed", "classes")},
    **{f"no {key}": (lambda m, key=key: m.pop(key), f"{key} is missing", HOW) for key in ("train", "val", "test")},
    "no classnames": (lambda m: m.pop("classnames"), "classnames is missing", HOW),
    "another format": (change(format="coop-manifest-9"), "format", "coop-manifest-1"),
    "format is a list": (change(format=[]), "format is []", HOW),
    "shots is text": (change(shots="4"), 'shots is "4"', "whole number"),
    "shots is null": (change(shots=None), "shots is null", "whole number"),
    "seed is a list": (change(seed=[1]), "seed is [1]", "whole number"),
    "classes is odd": (change(classes="old"), "classes", "'all', 'base' or 'new'"),
    "origin is odd": (change(origin="mine"), "origin", "'published', 'generated' or 'own'"),
    "dataset is a number": (change(dataset=3), "dataset is 3", "must be text"),
    "classnames is text": (change(classnames="ant"), 'classnames is "ant"', "must be a list"),
    "classnames is empty": (change(classnames=[]), "classnames is []", "must not be empty"),
    "classnames are numbers": (change(classnames=[1, 2]), "classnames[0] is 1", "must be text"),
    "train is null": (change(train=None), "train is null", "must be a list"),
    "train is an object": (change(train={}), "train is {}", "must be a list"),
    "test is empty": (change(test=[]), "test is []", "must not be empty"),
    "rows are numbers": (add(5), "train[16] is 5", HOW),
    "rows are short": (add(["ant/0.jpg", 0]), "train[16][2] is missing", HOW),
    "label is text": (add(["ant/0.jpg", "0", "ant"]), 'train[16][1] is "0"', "whole number"),
    "label is null": (add(["ant/0.jpg", None, "ant"], "val"), "val[", "whole number"),
    "label is unknown": (add(["ant/0.jpg", 7, "ant"]), "train[16]", "list of classnames"),
    "name is another": (add(["ant/0.jpg", 1, "ant"]), "train[16]", "list of classnames"),
    "an image outside": (add(["../../etc/passwd", 0, "ant"]), "../../etc/passwd", "was written for dataset="),
    "an absolute image": (add(["/etc/passwd", 0, "ant"]), "/etc/passwd", "was written for dataset="),
    "an image twice": (lambda m: m["train"].append(m["train"][0]), "more than once", HOW),
    "an image in train and test": (lambda m: m["test"].append(m["train"][0]), "more than once", HOW),
    "other shots": (change(shots=8), "shots=8", "set shots=8"),
    "other classes": (change(classes="base"), "dataset.classes=base", "set dataset.classes=base"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest(photographs, kind):
    content, named, fix = MANIFESTS[kind]
    for name in ("ant", "bee", "cow", "dog"):
        for index in range(4, 20):
            (photographs / name / f"{index}.jpg").touch()
    whole, path = read_folder(None, path=str(photographs)), photographs.parent / "m.json"
    write_manifest(path, whole, sample(whole, 4, 1), dataset="folder", shots=4, seed=1, classes="all")
    if callable(content):
        manifest = json.loads(path.read_text())
        content(manifest)
        content = manifest
    write(path, content)
    said = unchanged(photographs.parent, lambda: apply_manifest(whole, str(path), shots=4))
    assert "m.json" in said and named in said and fix in said, said


@pytest.mark.parametrize("path", ["/nowhere/m.json", "/"])
def test_a_manifest_that_is_no_file(photographs, path):
    whole = read_folder(None, path=str(photographs))
    said = said_by(lambda: apply_manifest(whole, path, shots=4))
    assert said.startswith(f"dataset.manifest={path}: cannot be read") and HOW in said


def test_a_manifest_is_not_written_with_names_that_are_not_utf8(photographs):
    odd = Splits([Item(str(photographs / f"{ODD}.jpg"), 0, "ant")], [], [], classnames=["ant"])
    options = {"dataset": "folder", "shots": -1, "seed": 1, "classes": "all"}
    said = unchanged(photographs.parent, lambda: write_manifest(photographs / "m.json", odd, odd, **options))
    assert "caf\\xe9.jpg: not UTF-8" in said and "rename" in said


HEAD = "path,label\n"
TABLES = {
    "empty": ("", "first line", "expected path,label"),
    "no header": ("ant/0.jpg,ant\n", "first line", "expected path,label"),
    "semicolons": ("path;label\nant/0.jpg;ant\n", "first line", "expected path,label"),
    "tabs": ("path\tlabel\nant/0.jpg\tant\n", "first line", "expected path,label"),
    "columns changed": ("label,path\nant,ant/0.jpg\n", "first line", "expected path,label"),
    "a column too many": ("path,label,split,seed\n", "first line", "expected path,label"),
    "JSON": ('{"path": "label"}', "first line", "expected path,label"),
    "no rows": (HEAD, "no rows", "below the header"),
    "UTF-16": ("path,label\nant/0.jpg,ant\n".encode("utf-16"), "list.csv", "UTF-8"),
    "Latin-1": (HEAD.encode() + b"ant/0.jpg,caf\xe9\n", "list.csv", "UTF-8"),
    "binary": (bytes(range(256)), "list.csv", "UTF-8"),
    "a huge field": (HEAD + "x" * 200000 + ",ant\n", "list.csv", "field limit"),
    "an open quote": (HEAD + '"ant/0.jpg,ant\n', "line 2", "expected 2 values"),
    "a short row": (HEAD + "ant/0.jpg\n", "line 2", "expected 2 values"),
    "a long row": (HEAD + "ant/0.jpg,ant,1\n", "line 2", "expected 2 values"),
    "a blank label": (HEAD + "ant/0.jpg, \n", "line 2", "none of them empty"),
    "a blank path": (HEAD + ",ant\n", "line 2", "none of them empty"),
    "an unknown split": ("path,label,split\nant/0.jpg,ant,dev\n", "split is 'dev'", "allowed are train"),
    "no test": ("path,label,split\nant/0.jpg,ant,train\n", "list.csv", "both train and test"),
    "a class of test alone": ("path,label,split\nant/0.jpg,ant,train\nbee/0.jpg,bee,test\n", "bee", "rename or move"),
    "an image of two classes": (HEAD + "ant/0.jpg,ant\nant/0.jpg,bee\n", "ant/0.jpg", "Keep one"),
    "an image twice": (HEAD + "ant/0.jpg,ant\nant/0.jpg,ant\n", "ant/0.jpg", "keep one row of each"),
    "no such image": (HEAD + "ant/9.jpg,ant\nbee/0.jpg,bee\n", "ant/9.jpg", "Unpack"),
    "a folder": (HEAD + "ant,ant\nbee/0.jpg,bee\n", "1 of the 2 images", "Unpack"),
    "the root": (HEAD + "/,ant\nbee/0.jpg,bee\n", "1 of the 2 images", "Unpack"),
    "a very long name": (HEAD + "x" * 300 + ".jpg,ant\n", "xxx", "Unpack"),
    "one image a class": (HEAD + "ant/0.jpg,ant\nbee/0.jpg,bee\n", "a single image", "Add images"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table(photographs, kind):
    content, named, fix = TABLES[kind]
    path = write(photographs / "list.csv", content)
    said = unchanged(photographs, lambda: read_csv(None, path=str(path)))
    assert "list.csv" in said and named in said and fix in said, said


LISTS = {
    "empty": ("", "is empty", "`folder name`"),
    "blank lines": ("\n \n", "is empty", "`folder name`"),
    "no name": ("ant\n", "line 1", "`folder name`"),
    "a folder twice": ("ant Ant\nant Aunt\n", "line 2", "remove one"),
    "Latin-1": (b"ant caf\xe9\n", "names.txt", "UTF-8"),
    "UTF-16": ("ant Ant\n".encode("utf-16"), "names.txt", "UTF-8"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_class_names(tmp_path, kind):
    content, named, fix = LISTS[kind]
    path = write(tmp_path / "names.txt", content)
    said = unchanged(tmp_path, read_classnames, path)
    assert "names.txt" in said and named in said and fix in said, said


@pytest.mark.parametrize("path", ["/nowhere/names.txt", "/"])
def test_a_list_of_class_names_that_is_no_file(path):
    said = said_by(read_classnames, path)
    assert path in said and "`folder name`" in said


FOLDERS = {
    "no path": ({}, None, "dataset=folder", "dataset.path=DIR"),
    "not there": ({}, "nowhere", "nowhere", "does not exist"),
    "a file": ({"x.jpg": 1}, "x.jpg", "x.jpg", "a folder was expected"),
    "empty": ({}, ".", "no class folders", "CLASS/x.jpg"),
    "images alone": ({"x.jpg": 1}, ".", "1 images but no class folders", "CLASS/x.jpg"),
    "an empty class": ({"ant/0.jpg": 1, "bee/notes.txt": 1}, ".", "bee", "Add images or remove"),
    "a level too deep": ({"all/ant/0.jpg": 1, "all/bee/0.jpg": 1}, ".", "all", "give"),
    "no test": ({"train/ant/0.jpg": 1}, ".", "no test/", "rename a folder to test/"),
    "two val": ({f"{p}/ant/0.jpg": 1 for p in ("train", "test", "val", "valid")}, ".", "val/ and valid/", "keep one"),
    "a class of test alone": ({"train/ant/0.jpg": 1, "test/bee/0.jpg": 1}, ".", "bee", "rename or move"),
    "one image a class": ({"ant/0.jpg": 1, "bee/0.jpg": 1}, ".", "a single image", "Add images"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_photographs(tmp_path, kind):
    there, path, named, fix = FOLDERS[kind]
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    said = unchanged(tmp_path, lambda: read_folder(None, path=path and str(tmp_path / path)))
    assert named in said and fix in said, said


WNIDS = ("n01440764", "n01443537")
IMAGENETS = {
    "no train": ([f"val/{WNIDS[0]}/0.JPEG"], "imagenet/train", "data_root"),
    "no val": ([f"train/{WNIDS[0]}/0.JPEG"], "no val/", "expected at"),
    "no classes": (["train/0.JPEG", "val/0.JPEG"], "no class folders", "CLASS/*.JPEG"),
    "a folder of another kind": ([f"{p}/{w}/0.JPEG" for p in ("train", "val") for w in (*WNIDS, "cats")], "cats", "move others"),
    "classes that differ": ([f"train/{w}/0.JPEG" for w in WNIDS] + [f"val/{WNIDS[0]}/0.JPEG"], WNIDS[1], "Complete both"),
    "an empty class": ([f"{p}/{w}/0.{'JPEG' if w == WNIDS[0] else 'txt'}" for p in ("train", "val") for w in WNIDS], WNIDS[1], "Unpack"),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMAGENETS)
def test_an_imagenet(tmp_path, monkeypatch, kind):
    there, named, fix = IMAGENETS[kind]
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "cache"))
    for name in there:
        (tmp_path / "data/imagenet" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/imagenet" / name).touch()
    said = unchanged(tmp_path / "data", lambda: read_imagenet(str(tmp_path / "data"), folders=["imagenet"]))
    assert named in said and fix in said, said


def test_imagenet_with_names_that_are_not_utf8(tmp_path, monkeypatch):
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "cache"))
    for part in ("train", "val"):
        for wnid in WNIDS:
            (tmp_path / "imagenet" / part / wnid).mkdir(parents=True)
            (tmp_path / "imagenet" / part / wnid / f"{ODD}.JPEG").touch()
    with pytest.raises(CoopError, match=r"not UTF-8.*Rename it"):
        read_imagenet(str(tmp_path), folders=["imagenet"])


SCENES = {
    "empty": ({}, "SUN397", "Unpack"),
    "images too high": ({"a/x.jpg": ""}, "images lie in a", "a/abbey"),
    "an empty class": ({"a/abbey/x.jpg": "", "a/bar/notes.txt": ""}, "bar", "Unpack"),
    "a list not UTF-8": ({"a/abbey/x.jpg": "", "Training_01.txt": "\udce9", "Testing_01.txt": "x"}, "Training_01.txt", "Download"),
    "a list of other images": ({"a/abbey/x.jpg": "", "Training_01.txt": "/a/abbey/y.jpg", "Testing_01.txt": "/a/abbey/x.jpg"}, "a/abbey/y.jpg", "Unpack"),
    "a class that is not listed": ({**{f"a/abbey/{i}.jpg": "" for i in range(4)}, "ClassName.txt": "/b/bar"}, "a/abbey", "Move them away"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCENES)
def test_scenes(tmp_path, kind):
    there, named, fix = SCENES[kind]
    (tmp_path / "SUN397").mkdir()
    for name, content in there.items():
        (tmp_path / "SUN397" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "SUN397" / name).write_bytes(content.encode(errors="surrogateescape"))
    read = partial(read_sun397, image_folders=["SUN397"], split_file="split.json", seed=1)
    said = unchanged(tmp_path, read, str(tmp_path))
    assert named in said and fix in said, said


HUGGING = {
    "a label that is missing": ("class", [0, 1, None, 0], "label None", "take it out"),
    "a label of no class": ("class", [0, 1, -1, 0], "label -1", "take it out"),
    "a number that is missing": ("int64", [0, 1, None, 0], "label None", "take it out"),
    "a text that is empty": ("string", ["a", "b", "", "a"], "label ''", "take it out"),
    "labels that are floats": ("float32", [0.5, 1.5, 0.5, 1.5], "float32", "dataset.label_column=NAME"),
    "labels that are booleans": ("bool", [True, False, True, False], "bool", "dataset.label_column=NAME"),
    "an image that is missing": ("image", [0, 1, 0, 1], "no image", "take it out"),
}


@pytest.mark.parametrize("kind", HUGGING)
def test_a_hugging_face_folder(tmp_path, monkeypatch, kind):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    datasets.disable_progress_bars()
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "cache"))
    what, labels, named, fix = HUGGING[kind]
    feature = datasets.ClassLabel(names=["a", "b"]) if what in ("class", "image") else datasets.Value(what)
    images = [Image.new("RGB", (4, 4), (index, 0, 0)) for index in range(3)]
    images += [None if what == "image" else Image.new("RGB", (4, 4), (9, 0, 0))]
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(tmp_path / "set")
    said = unchanged(tmp_path / "set", lambda: read_huggingface(None, path=str(tmp_path / "set")))
    assert str(tmp_path / "set") in said and named in said and fix in said, said


# -------------------------------------------------------------------------------------------- classes and their names


def splits_of(*names: str, origin: str = "own") -> Splits:
    items = [Item(f"{label}.jpg", label, name) for label, name in enumerate(names)]
    return Splits(items, items, items, list(names), origin)


SAME = [
    ("a_b", "a b"), ("Cat", "cat"), ("CAT", "cAt"), ("sea_lion", "Sea lion"), ("a  b", "a b"), (" cat", "cat"),
    ("x&amp;y", "x&y"), ("cat\n", "cat"), ("ÄRA", "ära"), ("cat", "cat"),
]  # fmt: skip


@pytest.mark.parametrize("pair", SAME)
def test_two_classes_of_one_name(pair):
    said = said_by(check_names, splits_of(pair[0], "other", pair[1]), "mine")
    assert said.startswith("dataset=mine") and repr(pair[0]) in said and repr(pair[1]) in said, said
    assert "(labels 0, 2)" in said and "Rename one" in said


def test_a_published_list_may_have_two_classes_of_one_name(caplog):
    check_names(splits_of(*imagenet_classnames().values(), origin="published"), "imagenet")
    assert "'missile' and 'missile' (labels 657, 744)" in caplog.text
    assert "'sunglasses' and 'sunglasses' (labels 836, 837)" in caplog.text
    said = said_by(check_names, splits_of("crane", "Crane", origin="published"), "imagenet")
    assert "'crane' and 'Crane'" in said


@pytest.mark.parametrize(
    ("name", "fix"), [("", "has no word"), ("_", "has no word"), (" \n", "has no word"), (ODD, "rename")]
)
def test_a_class_without_a_name(name, fix):
    said = said_by(check_names, splits_of("cat", name), "mine")
    assert fix in said and "rename" in said


@pytest.mark.parametrize(
    ("names", "classes", "named", "fix"),
    [
        (["a"], "all", "has 1 class;", "at least 2"),
        (["a"], "base", "dataset.classes=base", "dataset.classes=all"),
        (["a"], "new", "dataset.classes=new", "of which 0 would be left"),
        (["a", "b"], "base", "dataset.classes=base", "of which 1 would be left"),
        (["a", "b"], "new", "dataset.classes=new", "of which 1 would be left"),
        (["a", "b", "c"], "new", "dataset.classes=new", "of which 1 would be left"),
        ([], "all", "has 0 classes", "at least 2"),
    ],
)
def test_too_few_classes(names, classes, named, fix):
    said = said_by(sample, splits_of(*names), 1, 1, classes)
    assert named in said and fix in said and "training images" not in said, said


def test_classes_without_images():
    splits = splits_of("a", "b", "c", "d")
    only_base = Splits(splits.train[:2], [], splits.test, splits.classnames)
    said = said_by(sample, only_base, 1, 1, "new")
    assert "none of the train images belongs to these classes (c, d)" in said and "dataset.classes=all" in said


# --------------------------------------------------------------------------------------- weights, features, the disk


@pytest.mark.parametrize("kind", ["pickle", "garbage", "empty"])
def test_weights_that_cannot_be_read(tmp_path, kind):
    import torch
    from clip_folder import write_clip_folder

    folder = write_clip_folder(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").unlink()
    path = folder / "open_clip_pytorch_model.bin"
    path.write_bytes({"garbage": b"no weights", "empty": b""}.get(kind, b""))
    if kind == "pickle":
        torch.save({"weight": Path("/")}, path)
    said = unchanged(
        tmp_path, lambda: weights.load_model(f"local-dir:{folder}", None, precision="fp32", cache_dir=None)
    )
    assert str(folder) in said and "weights_only" not in said and "trust" not in said, said
    assert "could not be read" in said


SHARDS = {
    "of another width": ({"identities": np.zeros((2, 16), np.uint8), "features": np.zeros((3, 4), np.float32)}, "3 images"),
    "of other numbers": ({"identities": np.zeros((2, 16), np.uint8), "features": np.zeros((2, 4), np.float64)}, "expected F32"),
    "of short identities": ({"identities": np.zeros((2, 8), np.uint8), "features": np.zeros((2, 4), np.float32)}, "identities"),
    "of other tensors": ({"weights": np.zeros(3, np.float32)}, "expected features and identities"),
    "with one dimension": ({"identities": np.zeros((2, 16), np.uint8), "features": np.zeros(2, np.float32)}, "(N, E)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHARDS)
def test_a_shard_of_features(tmp_path, kind):
    """The cache sets such a file aside with this reason, and encodes the images again."""
    tensors, said = SHARDS[kind]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError) as caught:
        Shard(tmp_path / "x.safetensors")
    assert said in str(caught.value)


@pytest.mark.parametrize("code", sorted(files.FIXES))
def test_what_the_system_refuses(tmp_path, monkeypatch, code):
    """A full disk, a read-only one, a limit: old content stays, nothing half-written is left."""
    (tmp_path / "results.json").write_text("before")

    def refuse(*_) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_flush", refuse)
    said = unchanged(tmp_path, files.write_atomically, tmp_path / "results.json", b"after")
    assert str(tmp_path / "results.json") in said and files.FIXES[code] in said and "untouched" in said


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("name", [None, "/disk/train.log"])
def test_what_the_system_refuses_to_others(code, name):
    """Hydra and Lightning write files of their own."""
    said = explain(OSError(code, os.strerror(code), *([name] if name else [])))
    assert (name or "hydra.run.dir=DIR") in said and files.FIXES[code] in said


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_csv(None, path=str(path)),
        read_classnames,
        lambda path: apply_manifest(splits_of("a", "b"), str(path), shots=1),
        load_rows,
        lambda path: open_image(str(path)),
    ],
    ids=["table", "names", "manifest", "split file", "image"],
)
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, read):
    """It is there: "not found" would send the user looking for it. (Root may read everything, so it is pretended.)"""
    import builtins
    import io

    path = tmp_path / "kept.csv"
    path.write_text("path,label\n")

    def refuse(file, *args, **kwargs):
        if str(file) == str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, *args, **kwargs)

    real = builtins.open
    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    said = said_by(read, path)
    assert str(path) in said and "ermission" in said
    assert "not found" not in said and "not exist" not in said
