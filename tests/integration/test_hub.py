"""Runs on the hub: names, the cache, what is said when nothing comes."""

import json
import pickle
import shutil

import huggingface_hub
import numpy as np
import pytest
from finished_run import write_run
from hub_server import emulated
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import coop
from coop import CoopError, evaluate, export, interpret, predict, retrieve, search
from coop.clip.backbone import FrozenCLIP
from coop.config import conf_dir
from coop.data.readers.mini import read_mini
from coop.runs.folder import read_results
from coop.runs.hub import local_folder, output_folder, upload
from coop.system.files import write_json

FILES = {"prompt.safetensors": b"tensors", "config.yaml": b"shots: 4", "results.json": b"{}", "evil.pkl": b"never"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with emulated(monkeypatch, tmp_path / "cache") as hub:
        hub.repositories["ann/herons"] = dict(FILES)
        yield hub


def test_a_folder_is_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "prompt.safetensors").touch()
    assert local_folder("~/run") == tmp_path / "run" == output_folder("~/run")
    assert str(output_folder("hf:ann/herons")) == ".", "nothing is written into the cache of the hub"


def test_a_run_of_the_hub_comes_with_its_three_files_and_nothing_else(hub):
    folder = local_folder("hf:ann/herons")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: content for name, content in FILES.items() if name != "evil.pkl"
    }
    assert not [asked for asked in hub.requests if "evil" in asked]


def test_what_was_downloaded_once_is_there_without_a_network(hub, monkeypatch):
    folder = local_folder("hf:ann/herons")
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert local_folder("hf:ann/herons") == folder and hub.requests == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.shutdown(), hub.server_close()
    assert local_folder("hf:ann/herons") == folder


def test_a_revision_stays_what_it_was(hub):
    first = hub.commit("ann/herons")
    before = local_folder(f"hf:ann/herons@{first}")
    hub.repositories["ann/herons"]["config.yaml"] = b"shots: 8"
    assert (local_folder("hf:ann/herons") / "config.yaml").read_bytes() == b"shots: 8"
    assert local_folder(f"hf:ann/herons@{first}") == before
    assert (before / "config.yaml").read_bytes() == b"shots: 4"


@pytest.mark.parametrize("name", ["", "herons", "ann//herons", "ann/her ons", "../herons", "ann/her/ons"])
def test_what_is_no_name(hub, name):
    with pytest.raises(CoopError, match=f"^hf:{name}: not .*expected USER/NAME$"):
        local_folder(f"hf:{name}")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("hf:ann/egrets", "^hf:ann/egrets: no such repository on the hub, or a private one.*hf auth login"),
        ("hf:ann/herons@v2", "^hf:ann/herons@v2: the repository has no branch, tag or commit v2$"),
        ("hf:ann/other", "^hf:ann/other: holds no prompt.safetensors; expected what .* push=ann/other uploads$"),
    ],
)
def test_what_is_not_there(hub, run, message):
    hub.repositories["ann/other"] = {"config.yaml": b"", "README.md": b""}
    with pytest.raises(CoopError, match=message):
        local_folder(run)


def test_no_network_and_nothing_cached(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CoopError, match=r"^hf:ann/herons: not in the cache .*hf download ann/herons") as caught:
        local_folder("hf:ann/herons")
    assert "\n" not in str(caught.value)


# Uploading


@pytest.fixture
def folder(tiny_clip, tmp_path):
    folder = write_run(tmp_path / "run", tiny_clip, "method.n_ctx=4", "data_root=/home/ann/data", n_ctx=4)
    return folder


def test_what_was_pushed_is_a_run_again(hub, folder, monkeypatch):
    """Through the commands, and offline afterwards; weights of CLIP and paths of this machine stay here."""
    assert export.main([f"run={folder}", "push=ann/mine", "license=cc-by-4.0"]) == 0
    pushed = hub.repositories["ann/mine"]
    assert sorted(pushed) == ["README.md", "config.yaml", "prompt.safetensors", "results.json"]
    assert pushed["prompt.safetensors"] == (folder / "prompt.safetensors").read_bytes()
    assert json.loads(pushed["results.json"]) == read_results(folder)
    assert b"/home" not in pushed["config.yaml"] and str(folder.parent).encode() not in b"".join(pushed.values())
    image = np.zeros((64, 64, 3), np.uint8)
    expected = coop.load_run(folder, "cpu").predict(image)
    local_folder("hf:ann/mine")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    run = coop.load_run("hf:ann/mine", "cpu")
    assert run.predict(image) == expected and run.results["test/acc"] == 0.5


def test_predict_search_and_retrieve_take_a_run_of_the_hub_offline(
    hub, folder, tiny_clip, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(FrozenCLIP, "load", lambda **_: tiny_clip)  # the same weights, loaded once
    export.main([f"run={folder}", "push=ann/mine"])
    local_folder("hf:ann/mine")
    hub.requests.clear(), capsys.readouterr()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "features"))
    monkeypatch.chdir(tmp_path)
    images = [item.path for item in read_mini(None).test[:2]]
    given = ["run=hf:ann/mine", "accelerator=cpu"]
    assert predict.main([*given, *images, "json=true"]) == 0
    assert [p["path"] for p in json.loads(capsys.readouterr().out)] == images
    assert search.main([images[0], "a bird", *given, "num_workers=0", "json=true", "out=found"]) == 0
    assert json.loads((tmp_path / "found" / "hits.json").read_text())["run"] == "hf:ann/mine"
    (tmp_path / "captions.csv").write_text(f"image,caption\n{images[0]},one\n{images[1]},two\n")
    assert retrieve.main(["captions=captions.csv", *given, "num_workers=0", "out=ranked"]) == 0
    assert json.loads((tmp_path / "ranked" / "results.json").read_text())["n_captions"] == 2
    assert hub.requests == []


def test_the_model_card(hub, folder):
    export.main([f"run={folder}", "push=ann/mine", "license=cc-by-4.0"])
    card = huggingface_hub.ModelCard(hub.repositories["ann/mine"]["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "coop")
    assert [(r.dataset_name, r.metric_value) for r in card.data.eval_results] == [("mini", 0.5)]
    for text in (
        'run = coop.load_run("hf:ann/mine")', "4 images of each of the 3 classes of mini", "| mini: zero-shot | 40.00 |",
        "| mini: coop | 50.00 | 25.00 |", "99 test images", "seed: 1", "ibis, grey_cat", "2,048 trained parameters",
        "license of what was learned: cc-by-4.0",
    ):  # fmt: skip
        assert text in card.text.replace("\n", " ").replace("  ", " "), text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["push=mine"], "push=mine: not the whole name of a repository; expected USER/NAME"),
        (["push=ann/a b"], "push=ann/a b: not a name on the hub"),
        (["push=ann/mine", "license=nonsense"], r"push=ann/mine: nothing was uploaded \(.*license.*must be one of"),
        (["push=other/theirs"], r"push=other/theirs: the hub refuses \(.*403"),
    ],
)
def test_what_is_not_pushed(hub, folder, words, message):
    with pytest.raises(CoopError, match=f"^{message}"):
        export.main([f"run={folder}", *words])


def test_no_token_a_wrong_token_and_no_network(hub, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CoopError, match=r"^push=ann/mine: the hub does not know your token; `hf auth login`"):
        upload(folder, "ann/mine")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with pytest.raises(CoopError, match=r"^push=ann/mine: no token of the hub on this machine; `hf auth login`"):
        upload(folder, "ann/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub.shutdown(), hub.server_close()
    with pytest.raises(CoopError, match=r"^push=ann/mine: nothing was uploaded \(.*[Cc]onnect.*\)$"):
        upload(folder, "ann/mine")


def test_a_prompt_for_weights_that_nobody_else_has(hub, folder):
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.backbone = {"model": "ViT-B-16-quickgelu", "pretrained": "/data/mine.pt", "name": "mine"}
    OmegaConf.save(cfg, folder / "config.yaml")
    with pytest.raises(CoopError, match=r"config.yaml: .*pretrained=/data/mine.pt: weights of this machine"):
        upload(folder, "ann/mine")
    assert hub.requests == []
    cfg.backbone.pretrained = "openai"
    OmegaConf.save(cfg, folder / "config.yaml")
    upload(folder, "ann/mine", private=True)
    assert b"base_model: timm/vit_base_patch16_clip_224.openai" in hub.repositories["ann/mine"]["README.md"]


def test_a_downloaded_config_is_no_code(hub, folder, monkeypatch):
    """Somebody else's folder: what it names as code is neither imported nor called."""
    upload(folder, "ann/mine")
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("it was called"))
    content = hub.repositories["ann/mine"]["config.yaml"]
    hub.repositories["ann/mine"]["config.yaml"] = content.replace(b"coop.methods.coop.PromptLearner", b"os.system")
    with pytest.raises(CoopError, match=r"method._target_=os.system: .*neither imported nor called"):
        coop.load_run("hf:ann/mine", "cpu").method  # noqa: B018
    hub.repositories["ann/mine"] |= {"prompt.safetensors": pickle.dumps(print), "config.yaml": content}
    with pytest.raises(CoopError, match=r"prompt.safetensors: not a prompt written by coop.train"):
        coop.load_run("hf:ann/mine", "cpu")


def test_interpret_and_export_write_beside_and_not_into_the_cache(hub, folder, tmp_path, monkeypatch):
    upload(folder, "ann/mine")
    monkeypatch.chdir(tmp_path)
    assert interpret.main(["run=hf:ann/mine", "top=1"]) == 0 and export.main(["run=hf:ann/mine"]) == 0
    assert (tmp_path / "words.json").is_file() and (tmp_path / "class_weights.safetensors").is_file()
    assert len(list(local_folder("hf:ann/mine").iterdir())) == 3


def test_evaluate_takes_a_run_of_the_hub(hub, folder, tmp_path, monkeypatch):
    upload(folder, "ann/mine")
    for item in [item for item in read_mini(None).test if item.classname in ("ibis", "llama")][::4]:
        (tmp_path / "photos" / item.classname).mkdir(parents=True, exist_ok=True)
        shutil.copy(item.path, tmp_path / "photos" / item.classname)
    words = [
        f"targets=[{tmp_path / 'photos'}]",
        "num_workers=0",
        f"hydra.run.dir={tmp_path / 'out'}",
        "accelerator=cpu",
    ]
    tested = []
    for run in (str(folder), "hf:ann/mine"):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            hydra.run("evaluate", evaluate.main, [f"run={run}", *words], with_log_configuration=False)
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        (tmp_path / "out" / "results.json").unlink()
        assert results["run"] == str(local_folder(run))
        tested.append({k: v for k, v in results["targets"]["photos"].items() if "seconds" not in k})
    assert tested[0] == tested[1] and tested[0]["num_classes"] == 2


def test_a_converted_prompt_has_a_card_without_figures(hub, folder):
    results = json.loads((folder / "results.json").read_text()) | {"task": "convert"}
    known = ("task", "method", "backbone", "dataset", "shots", "seed", "num_classes", "trainable_params", "version")
    write_json(folder / "results.json", {key: results.get(key, "1") for key in known})
    upload(folder, "ann/mine")
    card = huggingface_hub.ModelCard(hub.repositories["ann/mine"]["README.md"].decode())
    assert (
        card.data.eval_results is None
        and "seed: 1\n" in card.text
        and "license of what was learned: not stated" in card.text
    )
