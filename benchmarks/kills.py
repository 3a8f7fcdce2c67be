"""Kills commands at random moments, starts them again, and compares what they end with to an unbroken run.

Everything runs on the bundled photographs, with the bundled CLIP or the tests' small ones. A kill is a SIGKILL of the
whole process group, or (every other time) of the command's own process, which leaves the data loader's workers behind.
Clocks stand still in the commands, so that every file can be compared byte by byte, reports included.
"""

import argparse
import collections
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import commands  # noqa: E402
import small_vit_clip  # noqa: E402
from clip_folder import write_clip_folder  # noqa: E402

from coop.system.files import MARK  # noqa: E402

COMMANDS = ["coop.train", "coop.export", "coop.report.__main__", "coop.report.page"]
commands.FORK_SERVER.set_forkserver_preload(COMMANDS)
SHARD_ROWS = 50  # images between two writes of the feature cache: some kills fall between them
COMMON = ["dataset.classes=base", "shots=1", "logger=csv"]
VIT = [*COMMON, "backbone=open_clip", "backbone.model=local-dir:../vit"]
ONLINE = [*VIT, "augmentation=online", "num_workers=2"]
RUN = "hydra.run.dir=run"
SWEEP = ["hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}"]
KINDS = {
    "fixed views": ["train", RUN, *COMMON, "epochs=10"],
    "online with workers": ["train", RUN, *ONLINE, "epochs=6"],
    "image encoder": ["train", RUN, *ONLINE, "method=image_encoder", "epochs=5"],
    "maple": ["train", RUN, *ONLINE, "method=maple", "method.depth=3", "epochs=5"],
    "encoding features": ["train", RUN, *VIT, "features=cached", "epochs=2"],
    "sweep": ["train", "-m", *SWEEP, *VIT, "shots=1,2", "seed=1,2", "epochs=4", "features=cached"],
    "report": ["report.__main__", "../runs", "out=report"],
    "export": ["export", "run=../runs/0", "out=export"],
}
TOGETHER = {
    "one run folder": [KINDS["fixed views"]] * 2,
    "one sweep": [KINDS["sweep"]] * 2,
    "one cold cache": [[*KINDS["encoding features"], f"hydra.run.dir={name}"] for name in ("first", "second")],
}
BUSY = "another process is computing"
# Hydra's own, written anew at every start; what is said on the way; locks (that they do not hold shows in the restart).
NOT_COMPARED = {".hydra", "multirun.yaml", "train.log", ".lock", "last.ckpt", "csv", "cache"}


def still(command: str, *rest) -> None:
    """Run a command in a process group of its own, with clocks that stand still."""
    os.setsid()
    for name in ("train", "evaluation.outcome"):
        importlib.import_module(f"coop.{name}").time = SimpleNamespace(perf_counter=lambda: 0.0)
    importlib.import_module("coop.data.feature_cache").SHARD_ROWS = SHARD_ROWS
    report = importlib.import_module("coop.report.__main__")
    run = report.run
    report.run = lambda *_: sys.exit(run(sys.argv[1:]))
    commands.run_command(command, *rest)


class Trial(commands.Commands):
    """A folder for one command, and what lies there in the end."""

    def __init__(self, work: Path, name: str):
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "said").mkdir(parents=True)
        env = {"COOP_CACHE": str(folder / "cache"), "HOME": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        super().__init__(folder, env, target=still)

    def files(self) -> dict[str, bytes]:
        """Every file that is compared, with the trial's own path blotted out."""
        paths = [path.relative_to(self.folder) for path in sorted(self.folder.rglob("*")) if path.is_file()]
        kept = [path for path in paths if not NOT_COMPARED & set(path.parts) and path.suffix not in (".out", ".err")]
        own = str(self.folder).encode()
        return {str(path): (self.folder / path).read_bytes().replace(own, b"TRIAL") for path in kept}

    def features(self) -> dict[bytes, list[bytes]]:
        """The rows of each image in the feature cache: one, if it was encoded once."""
        rows = collections.defaultdict(list)
        for shard in self.folder.glob("cache/features/*/*.safetensors"):
            content = load_file(shard)
            for identity, row in zip(content["identities"], content["features"], strict=True):
                rows[shard.parent.name.encode() + identity.tobytes()].append(row.tobytes())
        return rows

    def checkpoints(self) -> dict[str, list]:
        """Weights and optimiser's state in each last.ckpt, as bytes."""
        found = {}
        for path in sorted(self.folder.rglob("last.ckpt")):
            content = torch.load(path, weights_only=True)
            states = torch.utils._pytree.tree_leaves([content["state_dict"], content["optimizer_states"]])
            found[str(path.relative_to(self.folder))] = [
                np.asarray(leaf).tobytes() if torch.is_tensor(leaf) else leaf for leaf in states
            ]
        return found

    def state(self) -> dict[str, dict]:
        return {"files": self.files(), "features": self.features(), "checkpoints": self.checkpoints()}

    def leftovers(self) -> list[str]:
        """What a killed writer left, or a reader set aside."""
        return [str(path) for mark in (f"{MARK}*", "*.damaged") for path in self.folder.rglob(mark)]


def differences(trial: Trial, expected: dict[str, dict]) -> list[str]:
    """What is lost, torn, left over, there twice, or different from an unbroken run."""
    found = [f"left over: {path}" for path in trial.leftovers()]
    for what, now in trial.state().items():
        before = expected[what]
        found += [f"{what}: {name!r} differs" for name in before | now if before.get(name) != now.get(name)]
    return found[:5]


def finish(trial: Trial, arguments: list[str]) -> list[str]:
    """Start the command again, and once more as long as workers of a killed process hold its folder."""
    done, said = trial(*arguments), []
    since = time.monotonic()
    while BUSY in done.err and time.monotonic() - since < 30:
        time.sleep(0.2)
        done = trial(*arguments)
        said = [f"held by a dead process's workers for {time.monotonic() - since:.1f} s"]
    return said if done.code == 0 else [*said, f"exit code {done.code}: {done.err[-500:]}"]


def kill(trial: Trial, arguments: list[str], seconds: float, alone: bool) -> bool:
    """Start the command and kill it after so many seconds; False if it has ended before."""
    process = trial.start(*arguments)
    process.join(seconds)
    if process.exitcode is not None:
        return False
    try:
        (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # so early that it has no group of its own yet
        process.kill()
    process.join()
    return True


def kills(work: Path, unbroken: dict, number: int, rng: random.Random) -> dict[str, list]:
    """Kill each kind in turn; returns what was found for each kill."""
    found = {kind: [] for kind in KINDS}
    while (count := sum(map(len, found.values()))) < number:
        kind, alone = list(KINDS)[count % len(KINDS)], rng.random() < 0.5
        expected, seconds = unbroken[kind]
        trial, after = Trial(work, f"kill {count}"), rng.uniform(0, seconds)
        if not kill(trial, KINDS[kind], after, alone):
            continue
        # What stands under its own name at this moment is whole: a torn checkpoint or shard raises here.
        trial.state()
        bad = [*finish(trial, KINDS[kind]), *differences(trial, expected)]
        found[kind].append(bad)
        how = "process" if alone else "group"
        print(f"kill {count}: {kind}, {how}, {after:.2f} of {seconds:.2f} s: {bad or 'as unbroken'}", flush=True)
        if not bad:
            shutil.rmtree(trial.folder)
    return found


def starts(work: Path, unbroken: dict, number: int, rng: random.Random) -> dict[str, list]:
    """Start two commands at once, each pair in turn; returns what was found for each."""
    found = {kind: [] for kind in TOGETHER}
    for count in range(number):
        kind = list(TOGETHER)[count % len(TOGETHER)]
        trial, processes = Trial(work, f"start {count}"), []
        for arguments in TOGETHER[kind]:
            processes.append(trial.start(*arguments))
            time.sleep(rng.choice([0, rng.uniform(0, 1)]))
        done = [trial.finish(process) for process in processes]
        bad = [one.err[-500:] for one in done if one.code and BUSY not in one.err]
        if all(one.code for one in done):
            bad.append("neither process succeeded")
        logs = collections.Counter(path.parent for path in trial.folder.rglob("csv/version_*"))
        bad += [f"trained {times} times: {path}" for path, times in logs.items() if times > 1]
        bad += differences(trial, unbroken[kind][0])
        found[kind].append(bad)
        print(f"start {count}: {kind}, exit codes {[one.code for one in done]}: {bad or 'as unbroken'}", flush=True)
        if not bad:
            shutil.rmtree(trial.folder)
    return found


def make_unbroken(work: Path, name: str, commands_: list[list[str]]) -> tuple[dict[str, dict], float]:
    """What commands end with if nothing happens, and how many seconds the last of them takes."""
    trial = Trial(work, f"unbroken {name}")
    for arguments in commands_:
        started = time.monotonic()
        done = trial(*arguments)
        assert done.code == 0, done.err
        seconds = time.monotonic() - started
    print(f"unbroken: {name}, {seconds:.1f} s", flush=True)
    return trial.state(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng, work = random.Random(given.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    config = {
        "embed_dim": small_vit_clip.EMBED_DIM,
        "vision_cfg": small_vit_clip.VISION,
        "text_cfg": small_vit_clip.TEXT,
    }
    write_clip_folder(work / "vit", small_vit_clip.small_vit_clip(), config=config)
    first = make_unbroken(work, "sweep", [KINDS["sweep"]])
    shutil.copytree(work / "unbroken sweep" / "sweep", work / "runs")
    shutil.rmtree(work / "runs" / "report")
    unbroken = {
        kind: first if kind == "sweep" else make_unbroken(work, kind, [arguments]) for kind, arguments in KINDS.items()
    }
    found = kills(work, unbroken, given.kills, rng)
    pairs = {
        kind: unbroken["fixed views"] if kind == "one run folder" else make_unbroken(work, kind, both)
        for kind, both in TOGETHER.items()
    }
    found |= starts(work, pairs, given.starts, rng)
    for kind, results in found.items():
        print(f"{kind}: {sum(not bad for bad in results)} of {len(results)} as unbroken")
    broken = [bad for results in found.values() for bad in results if bad]
    print(json.dumps(broken, indent=2) if broken else "all as unbroken")
    print(f"folders: {work}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
