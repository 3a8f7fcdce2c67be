"""Runs on the Hugging Face hub: `run=hf:USER/NAME` in place of a folder.

What is downloaded is somebody else's, and is read as any run folder is: tensors and plain values, no code
(`coop.runs.trust`).
"""

from pathlib import Path

from coop.errors import CoopError
from coop.runs.folder import CONFIG, PROMPT, RESULTS

PREFIX = "hf:"
FILES = (PROMPT, CONFIG, RESULTS)


def local_folder(run: str | Path) -> Path:
    """The folder of a run on this machine; one that is on the hub is downloaded into the hub's own cache first.

    Without a network, or with HF_HUB_OFFLINE set, what was downloaded before is used.

    Args:
        run: a folder, or hf:USER/NAME, with @REVISION behind it for a branch, a tag or a commit.

    Raises:
        CoopError: no such repository or revision, one that holds no run, or no way to the hub and nothing cached.
    """
    if not str(run).startswith(PREFIX):
        return Path(run).expanduser()
    repository, _, revision = str(run).removeprefix(PREFIX).partition("@")
    check_name(repository, str(run))
    folder = _download(repository, revision or None, str(run))
    if missing := [name for name in (PROMPT, CONFIG) if not (folder / name).is_file()]:
        raise CoopError(f"{run}: holds no {missing[0]}; expected what python -m coop.export push={repository} uploads")
    return folder


def output_folder(run: str | Path) -> Path:
    """Where commands write what they are given no `out=` for: the run's folder, or the current one for hf:USER/NAME."""
    return Path() if str(run).startswith(PREFIX) else Path(run).expanduser()


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
        raise CoopError(explain(error, given)) from error
    except OSError as error:  # no network, offline, a full disk; a file that an interrupted download has left out
        raise CoopError(
            f"{given}: not in the cache of the hub on this machine, and could not be downloaded "
            f"({str(error).splitlines()[0]}). On a machine with a network: hf download {repository}, then copy the "
            "folder that it prints and give run=FOLDER"
        ) from error


def explain(error: Exception, given: str) -> str:
    """The message about what the hub answers."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{given}: its owner gives access on request: ask on its page, then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"{given}: no such repository on the hub, or a private one; if it is yours, log in with `hf auth login`"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{given}: the hub refuses ({reason})"
