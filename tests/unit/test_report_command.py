"""python -m coop.report, as a user calls it."""

import base64
import contextlib
import csv
import io
import itertools
import os
import re
import subprocess
import sys
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
from synthetic_runs import write_evaluation, write_run

from coop.cli.command import exit_code
from coop.report import page
from coop.report.__main__ import main
from coop.system.files import write_atomically

run = partial(exit_code, main)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture
def runs(tmp_path):
    return write_runs(tmp_path / "runs")


@pytest.fixture
def not_drawn(monkeypatch):
    """Figures take most of a report's time; here nobody looks at them."""
    monkeypatch.setattr(page, "plots", lambda *_: [])


class Reported(NamedTuple):
    """A report of `write_runs`, and what the command printed."""

    runs: Path
    out: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """For tests that only look at it."""
    folder, stdout, stderr = write_runs(tmp_path_factory.mktemp("study") / "runs"), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        assert run([str(folder)]) == 0
    return Reported(folder, folder / "report", stdout.getvalue(), stderr.getvalue())


def write_runs(folder):
    """Two data sets, two numbers of shots, two seeds; an evaluation; a file that is no result."""
    for data, shots, seed in itertools.product(["caltech101", "dtd"], [1, 16], [1, 2]):
        name = f"dataset={data},shots={shots},seed={seed}"
        write_run(folder / name, dataset=data, shots=shots, seed=seed, acc=0.7 + 0.01 * seed)
    write_evaluation(folder / "to", folder / "dataset=caltech101,shots=16,seed=1", {"mini_blur": 0.5})
    write_run(folder / "<i>odd</i> & name", dataset="<b>mine</b>", acc=0.5)
    (folder / "failed").mkdir()
    (folder / "failed/error.txt").write_text("dtd: an image is <missing>\n")
    (folder / "torn").mkdir()
    (folder / "torn/results.json").write_text('{"task": "tr')
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_all_files(reported):
    runs, out, *_ = reported
    assert f"not finished: {runs / 'failed'}: failed: dtd: an image is <missing>" in reported.stderr
    assert f"report   {out / 'report.html'}" in reported.stdout
    assert "10 runs read; 1 files left out" in reported.stdout
    assert f"left out: {runs / 'torn/results.json'}: not readable as JSON" in reported.stderr
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"report.html", "report.md", "runs.csv", "settings.csv", "leaderboard.csv", "published.csv"} < names
    assert {
        "tables/few_shot_1.tex",
        "tables/leaderboard_transfer_1_16_shots.tex",
        "tables/published.tex",
        "tables/missing.tex",
    } < names
    figures = {name for name in names if name.startswith("figures/")}
    assert {"figures/few_shot_1.png", "figures/few_shot_1.svg"} < figures
    assert {Path(name).suffix for name in figures} == {".png", ".svg"}


def test_figures_in_the_csv_files(reported):
    settings = [row for row in rows(reported.out / "settings.csv") if (row["dataset"], row["shots"]) == ("dtd", "16")]
    ((n, seeds, mean, sd, gain),) = [[row[key] for key in ("n", "seeds", "mean", "sd", "gain")] for row in settings]
    assert (n, seeds, float(mean)) == ("2", "1 2", pytest.approx(0.715))
    assert (float(sd), float(gain)) == pytest.approx((0.01 / 2**0.5, 0.115))
    per_seed = [row for row in rows(reported.out / "runs.csv") if (row["dataset"], row["shots"]) == ("dtd", "16")]
    assert [(row["seed"], row["acc"]) for row in per_seed] == [("1", "0.71"), ("2", "0.72")]
    assert per_seed[0]["path"] == str(reported.runs / "dataset=dtd,shots=16,seed=1/results.json")
    (row,) = [row for row in rows(reported.out / "published.csv") if row["accuracy_percent"] == "63.58"]
    assert (row["confidence"], float(row["difference"])) == ("verified", pytest.approx(7.92))
    assert {row["label"]: row["mean"] for row in rows(reported.out / "leaderboard.csv")}["coop"]


def test_markdown(reported):
    text = re.sub(" +", " ", (reported.out / "report.md").read_text())
    assert "| dtd | coop | | 71.50 ± 0.71 (2) | 71.50 ± 0.71 (2) |" in text
    assert "torn/results.json: not readable as JSON" in text
    assert "| \\<b>mine\\</b> | coop |" in text
    for link in re.findall(r"\]\((figures/[^)]*)\)", text):
        assert (reported.out / link).is_file()
    assert text.count("](figures/") == len(list((reported.out / "figures").glob("*.png")))


class Page(HTMLParser):
    """Collects tags and addresses, and checks that tags are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else(reported):
    page = Page()
    content = (reported.out / "report.html").read_text()
    page.feed(content)
    assert not page.open
    assert not {"script", "link", "iframe", "object", "i", "b"} & set(page.tags)
    assert "url(" not in content and "@import" not in content
    pictures = [source.removeprefix("data:image/svg+xml;base64,") for source in page.sources]
    drawn = sorted((reported.out / "figures").glob("*.svg"))
    assert len(pictures) == len(drawn) >= 2
    assert {base64.b64decode(one) for one in pictures} == {path.read_bytes() for path in drawn}
    assert "<b>mine</b>" in page.text and "Missing" in page.text and "mini_blur" in page.text
    assert "failed: dtd: an image is <missing>" in page.text
    assert "recalled" in page.text and "verified" in page.text


def test_the_report_is_reproducible(runs, not_drawn):
    run([str(runs), "out=one"])
    run([str(runs), "out=two"])
    names = sorted(path.relative_to("one") for path in Path("one").rglob("*") if path.is_file())
    for name in names:
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes(), name


def test_what_is_out_of_date_goes_and_what_is_not_ours_stays(runs, not_drawn):
    run([str(runs), "out=out"])
    stale = Path("out/tables/leaderboard_1_1_shot.tex")
    assert stale.is_file()
    mine = Path("out/tables/mine.tex")
    mine.write_text("my own")
    outside = Path("outside.txt")
    outside.write_text("precious")
    with open("out/.report_files", "a") as file:
        file.write("\n../outside.txt\n")
    for path in runs.glob("*,shots=1,*/results.json"):
        path.unlink()
    assert run([str(runs), "out=out"]) == 0
    assert not stale.exists()
    assert mine.read_text() == "my own" and outside.read_text() == "precious"


def test_what_a_killed_report_wrote_goes_too(runs, monkeypatch, not_drawn):
    """Killed at the last of its files, of a study that then changes."""

    class Killed(BaseException):
        pass

    def write(path, content):
        write_atomically(path, content)
        if path == stale:
            raise Killed

    stale = Path("out/tables/leaderboard_1_1_shot.tex")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(page, "write_atomically", write)
        run([str(runs), "out=out"])
    assert stale.is_file()
    for path in runs.glob("*,shots=1,*/results.json"):
        path.unlink()
    assert run([str(runs), "out=out"]) == 0
    assert not stale.exists()


def test_names_that_are_not_utf_8(runs, capsys, not_drawn):
    odd = Path(os.fsdecode(b"st\xffdy"))
    try:
        (runs / "dataset=dtd,shots=1,seed=1").rename(runs / odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (runs / "torn/results.json").write_text('{"task": "train", "method": "\\ud800"}')
    assert run([str(runs)]) == 0
    assert "results.json: not readable as JSON" in capsys.readouterr().err
    assert any("st\\xffdy/" in row["path"] for row in rows(runs / "report/runs.csv"))


def test_a_folder_that_cannot_be_written_to(runs, capsys, not_drawn):
    Path("blocked").write_text("a file")
    assert run([str(runs), "out=blocked"]) == 1
    assert re.fullmatch(
        r"error: blocked/\.report_files: cannot be written \(.*\n", capsys.readouterr().err.splitlines(True)[-1]
    )
    assert Path("blocked").read_text() == "a file"


def test_several_folders_with_equal_signs(runs, capsys, not_drawn):
    names = sorted(str(path) for path in runs.glob("dataset=*"))
    assert run([*names, "out=out"]) == 0
    assert "8 runs read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "error: gone: no such folder; give folders of runs"),
        (
            ["ouy=x", "RUNS"],
            "error: ouy=x: there is no such option; options are out=, expected=, mixed=",
        ),
        (["--out", "RUNS"], "error: --out: there is no such option; options are out="),
        (["out=x"], "error: give the folders of the runs"),
        (["RUNS", "expected=gone.csv"], "error: gone.csv: the published figures cannot be read"),
        (["empty"], "error: empty: no finished run beneath"),
    ],
)
def test_mistakes(runs, capsys, words, message):
    Path("empty").mkdir()
    assert run([str(runs) if word == "RUNS" else word for word in words]) == 1
    captured = capsys.readouterr()
    assert captured.err.lstrip().startswith(message) and "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help(words, capsys):
    assert run(words) == 0
    assert "python -m coop.report RUNS... [out=DIR]" in capsys.readouterr().out


def test_nothing_heavy_is_imported(runs):
    code = (
        "import sys; from coop.report.__main__ import main; assert main(sys.argv[1:]) == 0; "
        "heavy = {'torch', 'pytorch_lightning', 'open_clip', 'hydra', 'scipy.stats', 'matplotlib.pyplot'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, str(runs), "out=out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_thousands_of_runs_take_seconds(tmp_path):
    """25 methods x 4 data sets x 5 shots x 10 seeds, figures included: 5 s on an idle core; a busy one takes longer."""
    choices = itertools.product(range(25), ("caltech101", "dtd", "eurosat", "ucf101"), (1, 2, 4, 8, 16), range(1, 11))
    for number, (method, data, shots, seed) in enumerate(choices):
        acc = 0.5 + 0.01 * method + 0.001 * ((seed * (method + 3)) % 7)  # with ties: Wilcoxon's test has to be quick
        changed = {"method": f"method_{method}", "dataset": data, "shots": shots, "seed": seed}
        write_run(tmp_path / "runs" / str(number), acc=acc, **changed)
    started = time.process_time()
    assert run([str(tmp_path / "runs")]) == 0
    assert time.process_time() - started < 10
    boards = rows(tmp_path / "runs/report/leaderboard.csv")
    assert len(boards) == 5 * 26 and {row["n"] for row in boards} == {"1.0", "10.0"}
