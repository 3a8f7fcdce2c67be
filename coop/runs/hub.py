"""Runs on the Hugging Face hub: `run=hf:USER/NAME` in place of a folder, and how they get there.

What is downloaded is somebody else's, and is read as any run folder is: tensors and plain values, no code
(`coop.runs.trust`).
"""

import json
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from coop.errors import CoopError, first_line
from coop.runs import CONFIG, PROMPT, RESULTS, check_prompt

PREFIX = "hf:"
FILES = (PROMPT, CONFIG, RESULTS)


def local_folder(run: str | Path) -> Path:
    """The folder of a run, given as one or as hf:USER/NAME, with @REVISION behind it for a branch, a tag or a commit.

    What is on the hub is downloaded into the hub's own cache; without a network, or with HF_HUB_OFFLINE set, what was
    downloaded before is used. Raises CoopError where that leads to no run.
    """
    if not str(run).startswith(PREFIX):
        folder = Path(run).expanduser()
        check_prompt(folder / PROMPT)
        return folder
    repository, _, revision = str(run).removeprefix(PREFIX).partition("@")
    check_name(repository, str(run))
    folder = _download(repository, revision or None, str(run))
    if missing := [name for name in (PROMPT, CONFIG) if not (folder / name).is_file()]:
        raise CoopError(f"{run}: holds no {missing[0]}; expected what python -m coop.export push={repository} uploads")
    return folder


def output_folder(run: str | Path) -> Path:
    """Where commands write what they are given no `out=` for: the run's folder, or the current one for hf:USER/NAME."""
    return Path() if str(run).startswith(PREFIX) else Path(run).expanduser()


def upload(run_dir: Path, repository: str, license: str | None = None, private: bool = False) -> str:
    """Upload a run's prompt, config and results, and a model card written from them, as one commit.

    Paths of this machine are left out: of each, its last part stays. USER/NAME is made if it is not there, and the
    address of its page is returned.

    Raises:
        CoopError: not a run, weights that are on this machine alone, no token, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    given = f"push={repository}"
    check_name(repository, given)
    files = _files(run_dir, repository, license)
    if get_token() is None:
        raise CoopError(f"{given}: no token of the hub on this machine; `hf auth login`, or set HF_TOKEN")
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    api = HfApi()
    try:
        page = str(api.create_repo(repository, private=private or None, exist_ok=True))
        api.create_commit(repository, operations, commit_message="python -m coop.export")
    except HfHubHTTPError as error:
        raise CoopError(_answer(error, given)) from error
    except Exception as error:  # no way to the hub, in the words of the HTTP library beneath; a card that it refuses
        raise CoopError(f"{given}: nothing was uploaded ({' '.join(str(error).split())[:300]})") from error
    return page


def _files(run_dir: Path, repository: str, license: str | None) -> dict[str, bytes]:
    """What a repository holds, by name."""
    from coop.clip.loading import has_public_weights  # torch, which a run that is only looked for does not need
    from coop.runs.card import model_card
    from coop.runs.earlier import BUNDLED
    from coop.runs.folder import load_config, read_results
    from coop.runs.prompt import load_prompt

    prompt, cfg, results = load_prompt(run_dir / PROMPT), load_config(run_dir), read_results(run_dir)
    config, results = _without_paths(OmegaConf.to_container(cfg)), _without_paths(results)
    backbone = cfg.backbone
    if BUNDLED.search(backbone.model):
        config["backbone"]["model"] = f"local-dir:coop/assets/{BUNDLED.split(backbone.model)[-1]}"
    elif not has_public_weights(backbone.model, backbone.pretrained):
        raise CoopError(
            f"{run_dir / CONFIG}: backbone.model={backbone.model}, backbone.pretrained={backbone.pretrained}: weights "
            "of this machine, without which nobody can use the prompt. If they have a public name (a tag of open_clip, "
            "hf-hub:USER/NAME), write it there: they are compared by their fingerprint when the run is loaded"
        )
    card = model_card(repository, results, config["backbone"], prompt.metadata["classnames"], license)
    return {
        PROMPT: (run_dir / PROMPT).read_bytes(),
        CONFIG: OmegaConf.to_yaml(OmegaConf.create(config)).encode(),
        RESULTS: (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode(),
        "README.md": card.encode(),
    }


def _without_paths(value: Any) -> Any:
    """Plain values with the last part alone of each path of this machine: the rest tells of its owner."""
    if isinstance(value, dict):
        return {key: _without_paths(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_without_paths(child) for child in value]
    is_path = isinstance(value, str) and (os.path.isabs(value) or value.startswith("~"))
    return Path(value).name if is_path else value


def check_name(repository: str, given: str) -> None:
    """Raises CoopError for what is no name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise CoopError(f"{given}: not a name on the hub ({error}); expected USER/NAME") from None
    if repository.count("/") != 1:
        raise CoopError(f"{given}: not the whole name of a repository; expected USER/NAME")


def _download(repository: str, revision: str | None, given: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES))
    except RevisionNotFoundError:
        raise CoopError(f"{given}: the repository has no branch, tag or commit {revision}") from None
    except HfHubHTTPError as error:
        raise CoopError(_answer(error, given)) from error
    except OSError as error:  # no network, offline, a full disk; a file that an interrupted download has left out
        raise CoopError(
            f"{given}: not in the cache of the hub on this machine, and could not be downloaded "
            f"({first_line(error)}). On a machine with a network: hf download {repository}, then copy the "
            "folder that it prints and give run=FOLDER"
        ) from error


def _answer(error: Exception, given: str) -> str:
    """The message about what the hub answers."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{given}: its owner gives access on request: ask on its page, then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"{given}: no such repository on the hub, or a private one; if it is yours, log in with `hf auth login`"
    if getattr(error.response, "status_code", None) == 401:
        return f"{given}: the hub does not know your token; `hf auth login` gives a new one (or correct HF_TOKEN)"
    return f"{given}: the hub refuses ({first_line(error)})"
