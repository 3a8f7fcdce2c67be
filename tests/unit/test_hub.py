"""Runs on the hub: names, the cache, what is said when nothing comes."""

import huggingface_hub
import pytest
from hub_server import emulated

from coop.errors import CoopError
from coop.runs.hub import local_folder, output_folder

FILES = {"prompt.safetensors": b"tensors", "config.yaml": b"shots: 4", "results.json": b"{}", "evil.pkl": b"never"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with emulated(monkeypatch, tmp_path / "cache") as hub:
        hub.repositories["ann/herons"] = dict(FILES)
        yield hub


def test_a_folder_is_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
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
