"""Kills commands at random moments, starts them again, and compares what they end with to an unbroken run.

On the bundled photographs, with the bundled CLIP or the tests' small one. A kill is a SIGKILL of the process group, or
(every other time) of the command alone, which leaves the data loader's workers behind. Clocks stand still.
"""

import argparse
import collections
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from safetensors.numpy import load_file

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("", "tests")]

import commands  # noqa: E402
import small_vit_clip as vit  # noqa: E402
from clip_folder import write_clip_folder  # noqa: E402

from coop.system.files import MARK  # noqa: E402

commands.FORK_SERVER.set_forkserver_preload(["coop.train", "coop.export", "coop.report.__main__", "coop.report.page"])
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
# Hydra's own, written anew at every start; what is said on the way; locks, which show in the next start if they hold.
NOT_COMPARED = {".hydra", "multirun.yaml", "train.log", ".lock", "last.ckpt", "csv", "cache"}


def still(command: str, *rest) -> None:
    """Run a command in a process group of its own, with clocks that stand still."""
    os.setsid()
    for name in ("train", "data.features", "evaluation.targets"):
        importlib.import_module(f"coop.{name}").time = SimpleNamespace(perf_counter=lambda: 0.0)
    importlib.import_module("coop.data.feature_cache").SHARD_ROWS = SHARD_ROWS
    commands.run_command(command, *rest)


class Trial(commands.Commands):
    """A folder for one command, and what lies there in the end."""

    def __init__(self, work: Path, name: str):
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)  # of one that ended before it was killed
        folder.mkdir(parents=True)
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

    def state(self) -> dict[str, dict]:
        """All that is compared; a torn shard raises, and a torn checkpoint stops the next start."""
        return {"files": self.files(), "features": self.features()}


def differences(trial: Trial, expected: dict[str, dict]) -> list[str]:
    """What is lost, torn, left over, there twice, or different from an unbroken run."""
    found = [f"left over: {path}" for mark in (f"{MARK}*", "*.damaged") for path in trial.folder.rglob(mark)]
    for what, now in trial.state().items():
        before = expected[what]
        bad = [name for name in before | now if before.get(name) != now.get(name)]
        found += [f"{len(bad)} of {len(before)} {what} differ: {bad[:3]}"] if bad else []
    return found


def resume(trial: Trial, arguments: list[str]) -> list[str]:
    """Run the command; a killed one holds its folder no more. Returns what went wrong."""
    done = trial(*arguments)
    return [f"exit code {done.code}: {done.err[-500:]}"] if done.code else []


def kills(work: Path, unbroken: dict, number: int, rng: random.Random) -> dict[str, list]:
    """Kill each kind in turn; returns what was found for each kill. What ends before it is killed does not count."""
    found = {kind: [] for kind in KINDS}
    while (count := sum(map(len, found.values()))) < number:
        kind, alone = list(KINDS)[count % len(KINDS)], rng.random() < 0.5
        expected, seconds = unbroken[kind]
        trial, after = Trial(work, f"kill {count}"), rng.uniform(0, seconds)
        process = trial.start(*KINDS[kind])
        process.join(after)
        with suppress(ProcessLookupError):  # it has just ended
            if process.is_alive():
                in_group = not alone and os.getpgid(process.pid) == process.pid
                (os.killpg if in_group else os.kill)(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == -signal.SIGKILL:
            trial.state()  # what stands under its own name at this moment is whole
            found[kind].append(resume(trial, KINDS[kind]) + differences(trial, expected))
            how = f"{'process' if alone else 'group'} killed after {after:.2f} of {seconds:.2f} s"
            tell(trial, f"{kind}, {how}", found[kind][-1])
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
        bad += ["neither process succeeded"] if all(one.code for one in done) else []
        bad += [f"trained twice: {path.parent}" for path in trial.folder.rglob("csv/version_1")]
        bad += differences(trial, unbroken[kind][0])
        found[kind].append(bad)
        tell(trial, f"{kind}, exit codes {[one.code for one in done]}", bad)
    return found


def tell(trial: Trial, what: str, bad: list[str]) -> None:
    """Print what a trial came to; its folder stays where something was wrong."""
    print(f"{trial.folder.name}: {what}: {bad or 'as unbroken'}", flush=True)
    if not bad:
        shutil.rmtree(trial.folder)


def make_unbroken(work: Path, name: str, alone: list[list[str]]) -> tuple[dict[str, dict], float]:
    """What commands end with if nothing happens, and how many seconds the last of them takes."""
    trial = Trial(work, f"unbroken {name}")
    for arguments in alone:
        started = time.monotonic()
        if done := resume(trial, arguments):
            sys.exit(f"{name}: {done}")
        seconds = time.monotonic() - started
    print(f"unbroken: {name}, {seconds:.1f} s", flush=True)
    return trial.state(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("kills", 100), ("starts", 20), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given, work = parser.parse_args(), Path(tempfile.mkdtemp(prefix="kills-"))
    rng = random.Random(given.seed)
    config = dict(embed_dim=vit.EMBED_DIM, vision_cfg=vit.VISION, text_cfg=vit.TEXT)
    write_clip_folder(work / "vit", vit.small_vit_clip(), config=config)
    unbroken = {"sweep": make_unbroken(work, "sweep", [KINDS["sweep"]])}
    shutil.copytree(work / "unbroken sweep" / "sweep", work / "runs", ignore=shutil.ignore_patterns("report"))
    for kind in KINDS:
        unbroken[kind] = unbroken.get(kind) or make_unbroken(work, kind, [KINDS[kind]])
    found = kills(work, unbroken, given.kills, rng)
    alone = {kind: make_unbroken(work, f"alone {kind}", one_by_one) for kind, one_by_one in TOGETHER.items()}
    found |= starts(work, alone, given.starts, rng)
    for kind, results in found.items():
        print(f"{kind}: {sum(not bad for bad in results)} of {len(results)} as unbroken")
    print(f"folders: {work}")
    sys.exit(any(bad for results in found.values() for bad in results))


if __name__ == "__main__":
    main()
