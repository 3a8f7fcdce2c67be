"""Files are there whole or not at all, with the user's own mode, and nothing is left lying about."""

import json
import multiprocessing
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from coop.errors import CoopError
from coop.runs.sweep import exclusive
from coop.system.files import DAY, MARK, remove_leftovers, subfolder, write_atomically, write_json

FORK = multiprocessing.get_context("fork")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o002, 0o664), (0o022, 0o644)])
def test_the_umask_decides_the_mode(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == mode


def test_content_is_on_the_disk_before_the_name_is_and_the_name_after(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def flushed(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        done.append((kind, os.fstat(descriptor).st_size) if kind == "file" else kind)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("moved"), replace(*paths)))
    write_atomically(tmp_path / "x", b"12345")
    assert done == [("file", 5), "moved", "folder"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_whatever_interrupts_leaves_the_old_file_alone(tmp_path, monkeypatch, stop, where):
    write_atomically(tmp_path / "x", b"old")

    def interrupted(*_):
        raise stop

    monkeypatch.setattr(os, where, interrupted)
    with pytest.raises(stop):
        write_atomically(tmp_path / "x", b"new")
    assert names(tmp_path) == {"x"} and (tmp_path / "x").read_bytes() == b"old"


def test_the_longest_names(tmp_path):
    for name in ("x" * 255, "ü" * 127):
        write_atomically(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"


def test_a_disk_that_cannot_flush_is_no_error_and_a_broken_one_is(tmp_path, monkeypatch):
    def answer(number):
        def fsync(_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    answer(22)
    write_atomically(tmp_path / "x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"
    answer(5)
    with pytest.raises(CoopError, match=r"x: cannot be written \(Input/output error\)"):
        write_atomically(tmp_path / "x", b"2")
    assert names(tmp_path) == {"x"} and (tmp_path / "x").read_bytes() == b"1"


def write_and_stop(path: Path, how: int) -> None:
    os.replace = lambda *_: os.kill(os.getpid(), how)
    write_atomically(path, b"half")


def stopped_while_writing(path: Path, how: int) -> multiprocessing.Process:
    """A process that comes as far as moving its file into place, and is killed or halted there."""
    process = FORK.Process(target=write_and_stop, args=(path, how))
    process.start()
    while not list(path.parent.glob(f"{MARK}*")) or not next(path.parent.glob(f"{MARK}*")).stat().st_size:
        time.sleep(0.01)
    if how == signal.SIGKILL:
        process.join()
    return process


def test_what_a_kill_left_goes_with_the_next_file(tmp_path):
    stopped_while_writing(tmp_path / "x", signal.SIGKILL)
    assert len(list(tmp_path.glob(f"{MARK}*"))) == 1
    write_atomically(tmp_path / "x", b"whole")
    assert names(tmp_path) == {"x"}


def test_what_another_process_is_writing_stays(tmp_path):
    process = stopped_while_writing(tmp_path / "x", signal.SIGSTOP)
    try:
        write_atomically(tmp_path / "y", b"whole")
        remove_leftovers(tmp_path)
        assert len(list(tmp_path.glob(f"{MARK}*"))) == 1
    finally:
        process.kill()
        process.join()


def test_an_empty_one_is_given_time(tmp_path):
    """It may have been opened this instant; where files cannot be locked, a day."""
    new, old = tmp_path / f"{MARK}new", tmp_path / f"{MARK}old"
    new.touch()
    old.touch()
    os.utime(old, (time.time() - DAY - 10,) * 2)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {new.name}


def test_a_users_own_hidden_files_stay(tmp_path):
    """Backups and editors' files end in a date or in eight characters too."""
    mine = [".env.production.20240101", ".notes.txt.abcdefgh", ".x.json.k3j2h1g0", "coop-tmp-x", f"a{MARK}b"]
    for name in mine:
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / f"{MARK}0123").write_text("half")
    with exclusive(tmp_path):
        assert names(tmp_path) == {*mine, ".lock"}


def test_leftovers_that_are_no_files_do_no_harm(tmp_path):
    (tmp_path / f"{MARK}folder").mkdir()
    (tmp_path / f"{MARK}link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / f"{MARK}fifo")
    write_json(tmp_path / "x.json", 1)
    assert json.loads((tmp_path / "x.json").read_text()) == 1


def test_the_runs_of_a_study_stay_beneath_its_folder(tmp_path):
    """Hydra names their folders after the values: `..` of a relative path would lead out, a sentence is too long."""
    assert subfolder("dataset.path=/data/birds,seed=1") == "dataset.path=/data/birds,seed=1"
    made = [
        subfolder(name) for name in ("path=a/../../b", "path=a_.._.._b", "é" * 200 + ",seed=1", "é" * 200 + ",seed=2")
    ]
    for name in made:
        (tmp_path / name).mkdir()  # exist_ok=False: each is one of its own
    assert names(tmp_path) == set(made)
