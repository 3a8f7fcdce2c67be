"""python -m coop.search and coop.retrieve, on photographs and with a finished run."""

import csv
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import MINI

from coop import CoopError, retrieve, search
from coop.evaluation.images import predict_images
from coop.retrieval.encoding import encode_photographs, load_encoder
from coop.retrieval.options import RetrieveOptions
from coop.retrieval.ranking import best_photographs, label_of, query_feature
from coop.runs.trained import load_trained

BACKBONE = "backbone=local-dir:{}"


@pytest.fixture(scope="module")
def backbone(small_folder) -> str:
    return BACKBONE.format(small_folder)


@pytest.fixture
def captions(photographs, tmp_path) -> Path:
    """Two captions of each test photograph."""
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for image in sorted((photographs / "test").rglob("*.jpg")):
            for text in ("a photo of a {}", "{} seen from far away"):
                writer.writerow([image.relative_to(photographs), text.format(f"{image.parent.name} {image.stem}")])
    return tmp_path / "captions.csv"


def test_search_by_words_a_photograph_and_a_class(run, finished, photographs, backbone, tmp_path):
    folder = shutil.copytree(photographs / "test", tmp_path / "photos")
    images = sorted(str(path) for path in folder.rglob("*.jpg"))
    words = [str(folder), "accelerator=cpu", "num_workers=0", "json=true", "top=7", f"out={tmp_path / 'out'}"]
    done = run("search", *words, "a red car", "snow", backbone)
    assert done.code == 0, done.err
    hits = json.loads(done.out)
    scores = [hit["score"] for hit in hits]
    assert len(hits) == 7 and scores == sorted(scores, reverse=True) and {hit["path"] for hit in hits} <= set(images)
    assert "20 photographs, 20 of them new." in done.err and f"page     {tmp_path / 'out' / 'page.html'}" in done.err
    written = json.loads((tmp_path / "out" / "hits.json").read_text())
    assert written["query"] == "a red car + snow" and written["hits"] == hits and "run" in written
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["contact_sheet.png", "hits.json", "page.html"]

    done = run("search", *words, f"like={images[3]}", f"run={finished}")
    assert "20 photographs, 0 of them new." in done.err, "a run's backbone is the one above"
    hits = json.loads(done.out)
    assert hits[0]["path"] == images[3] and hits[0]["score"] == pytest.approx(1, abs=1e-5)
    method = load_trained(finished, accelerator="cpu").method
    predicted = {p["path"]: p["classes"] for p in predict_images(method, images, top=5)}
    for hit in hits:
        first = predicted[hit["path"]][0]
        assert hit["predicted"] == {**first, "probability": pytest.approx(first["probability"], abs=1e-5)}

    name = method.classnames[1]
    hits = json.loads(run("search", *words, f"run={finished}", f"classname={name}").out)
    probability = {p: next(c["probability"] for c in cs if c["classname"] == name) for p, cs in predicted.items()}
    expected = sorted(probability.values(), reverse=True)[:7]
    assert [hit["score"] for hit in hits] == pytest.approx(expected, abs=1e-5)


def test_broken_photographs_are_named_and_the_others_searched(run, photographs, backbone, tmp_path):
    folder = shutil.copytree(photographs / "val", tmp_path / "photos")
    for index in range(12):
        (folder / f"broken{index:02d}.jpg").write_bytes(b"x")
    out = folder / "search_results"  # its contact sheet is not a photograph of the second search
    for _ in range(2):
        done = run("search", str(folder), "snow", backbone, f"out={out}", "num_workers=0")
    assert done.code == 1 and "Traceback" not in done.err
    assert "10 photographs, 0 of them new, 12 left out." in done.out
    assert done.err.count("not a readable image") == 10 and "and 2 more could not be read" in done.err
    assert (out / "page.html").read_text().count("not a readable image") == 12
    shutil.rmtree(out)
    for path in folder.rglob("image*.jpg"):
        path.write_bytes(b"x")
    done = run("search", str(folder), "snow", backbone, f"out={tmp_path / 'none'}")
    assert "error: none of the 22 photographs can be read: " in done.err and not (tmp_path / "none").exists()


def test_a_stopped_search_resumes(run, photographs, backbone, tmp_path):
    words = [str(photographs), "snow", backbone, "num_workers=0", f"out={tmp_path / 'out'}"]
    for seconds in (1, 4):  # at a tenth of a second each; on a machine under load the first eight may take longer
        folder = tmp_path / f"cache{seconds}"
        cache = {"COOP_CACHE": str(folder)}
        process = run.start("search", *words, COOP_TEST_SLOW="coop.data.features.open_image", **cache)
        deadline = time.monotonic() + 60
        while not list(folder.rglob(".*.lock")) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGTERM)
        stopped = run.finish(process)
        assert stopped.code == 128 + signal.SIGTERM and "start the same command again" in stopped.err
        done = run("search", *words, **cache)
        new = int(done.out.partition(" photographs, ")[2].split()[0])
        if new < 60:
            break
    assert done.code == 0 and 0 < new < 60, done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give photographs and words: python -m coop.search PHOTOS"),
        (["PHOTOS"], "look for what? Give words"),
        (["PHOTOS", " "], "look for what? Give words"),
        (["nowhere", "snow"], "nowhere: no such image, and no folder or pattern that has any"),
        (["EMPTY", "snow"], ": no such image, and no folder or pattern that has any"),
        (["PHOTOS", "classname=cat"], "classname=cat: a class of a run; add run=RUN_DIR"),
        (["PHOTOS", "snow", "classname=cat", "RUN"], "classname=cat beside words or like=: give one of them"),
        (["PHOTOS", "classname=cat", "RUN"], "classname=cat: not one of the 5 classes of this run"),
        (["PHOTOS", "snow", "RUN", "backbone=tiny"], "tiny beside run="),
        (["PHOTOS", "snow", "backbone=tyni"], "backbone=tyni: open_clip has no such model"),
        (["PHOTOS", "snow", "backbone=tyni"], "configs in conf/backbone: datacomp_vit_b16"),
        (["PHOTOS", "snow", "backbone=ViT-B-32"], "needs pretrained=TAG"),
        (["PHOTOS", "like=nothing.jpg"], "nothing.jpg: the image file does not exist"),
        (["PHOTOS", "snow", "top=0"], "top=0: must be at least 1 and at most 1000"),
        (["PHOTOS", "snow", "tpo=3"], "tpo=3: there is no such option"),
        (["PHOTOS", "snow", "run=nowhere"], "nowhere/prompt.safetensors: no such file"),
        (["PHOTOS", "snow", "run=hf:herons"], "hf:herons: not the whole name of a repository; expected USER/NAME"),
    ],
)
def test_search_says_what_is_wrong(finished, photographs, tmp_path_factory, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    places = {"PHOTOS": str(photographs), "RUN": f"run={finished}", "EMPTY": str(tmp_path_factory.mktemp("empty"))}
    given = [places.get(word, word) for word in words]
    with pytest.raises(CoopError, match=re.escape(message)):
        search.main(given)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_retrieval(run, finished, captions, photographs, backbone, tmp_path):
    words = [f"captions={captions}", f"images={photographs}", "num_workers=0", f"out={tmp_path / 'out'}"]
    done = run("retrieve", *words, backbone)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["task"], results["n_images"], results["n_captions"], results["run"]) == ("retrieve", 20, 40, None)
    rows = list(csv.DictReader(open(tmp_path / "out" / "ranks.csv", newline="")))  # noqa: SIM115
    for way, count in (("image_to_text", 20), ("text_to_image", 40)):
        ranks = [int(row["rank"]) for row in rows if row["direction"] == way]
        assert len(ranks) == count and min(ranks) >= 1
        for k in (1, 5, 10):
            assert results[f"{way}/recall@{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / count)
    assert "20 images, 40 captions" in done.out and "R@5 %" in done.out
    learned = run("retrieve", *words, f"run={finished}")
    assert learned.code == 0 and f"behind the context of {finished}" in learned.out.replace("\n", "")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["run"] == str(finished)
    broken = shutil.copytree(photographs, tmp_path / "photos")
    image = next((broken / "test").rglob("*.jpg"))
    image.write_bytes(b"x")
    done = run("retrieve", words[0], f"images={broken}", *words[2:], backbone)
    assert done.code == 1 and f"error: {image}: not a readable image" in done.err and "Traceback" not in done.err
    assert "19 images, 1 left out, 38 captions" in done.out.replace("\n", "")
    figures = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (figures["n_images"], figures["n_captions"], figures["n_left_out"]) == (19, 38, 1)
    refused = run("retrieve", *words[:-1], f"out={finished}", backbone)
    assert "holds a run (config.yaml), whose results would be overwritten" in refused.err and refused.code == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images=x"], "captions= is missing"),
        (["captions=CAPTIONS", "photos"], "photos: expected key=value"),
        (["captions=CAPTIONS", "images=nowhere"], "20 of its 20 images are not there: nowhere/test/"),
        (["captions=none.csv"], "captions=none.csv: can't be read as a CSV file in UTF-8"),
        (["captions=CAPTIONS", "caption_column=text"], "has no column 'text' but image, caption; give image_column="),
    ],
)
def test_retrieval_says_what_is_wrong(captions, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CoopError, match=re.escape(message)):
        retrieve.main([word.replace("CAPTIONS", str(captions)) for word in words])
    assert list(tmp_path.iterdir()) == [captions], "nothing is written"


@pytest.mark.slow
def test_nine_of_ten_first_hits_are_right_for_each_bundled_class(run, tmp_path, monkeypatch):
    done = run("train", "logger=none", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    rows = json.loads((MINI / "split_mini.json").read_text())
    classes = {str(MINI / "images" / path): name for part in rows.values() for path, _, name in part}
    monkeypatch.setenv("COOP_CACHE", str(tmp_path / "cache"))
    encoder = load_encoder(RetrieveOptions(run=str(tmp_path / "run"), accelerator="cpu"))
    photographs = encode_photographs(encoder.photographs, list(classes))
    for name in sorted(set(classes.values())):
        for query in (label_of(encoder.method, name), query_feature(encoder, [name], None)):
            rows = best_photographs(encoder, photographs.features, query, top=10)[1].tolist()
            right = sum(classes[photographs.paths[row]] == name for row in rows)
            assert right >= 9, (name, right)
