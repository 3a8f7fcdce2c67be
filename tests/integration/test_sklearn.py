"""The scikit-learn estimator: scikit-learn's own checks, and what it learns is what coop.train learns."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import cross_val_score
from sklearn.utils import estimator_checks

import coop
from coop import CoopError
from coop.sklearn import FewShotClassifier

# scikit-learn's checks that give the estimator no data, or ask for the error before it has had any. All others fit
# arrays of numbers (N, features), which are no images; those that mean something for images stand below, with images.
CHECKS = [
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_estimators_unfitted",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
]


@pytest.fixture(autouse=True)
def cached(work, monkeypatch):
    monkeypatch.setenv("COOP_CACHE", str(work / "cache"))


@pytest.fixture(scope="module")
def estimator(small_folder) -> FewShotClassifier:
    """The small CLIP, quickly."""
    options = {"backbone.model": f"local-dir:{small_folder}", "epochs": 3, "batch_size": 10, "num_workers": 0}
    return FewShotClassifier("open_clip", options=options)


@pytest.fixture(scope="module")
def images(photographs) -> tuple[list[str], list[str]]:
    """All training images and their labels, in the order in which coop.train reads the folder."""
    paths = sorted((photographs / "train").rglob("*.jpg"))
    return [str(path) for path in paths], [path.parent.name for path in paths]


@pytest.fixture(scope="module")
def fitted(estimator, images) -> FewShotClassifier:
    return clone(estimator).fit(*images)


@pytest.mark.parametrize("name", CHECKS)
def test_scikit_learns_own_checks(name):
    getattr(estimator_checks, name)("FewShotClassifier", FewShotClassifier())


def test_scikit_learn_knows_that_it_takes_no_arrays_of_numbers():
    with pytest.warns(SkipTestWarning, match="Can't test estimator FewShotClassifier"):
        results = estimator_checks.check_estimator(FewShotClassifier())
    assert {result["status"] for result in results} == {"passed"}


def test_parameters(estimator):
    names = ["backbone", "method", "options", "pretrained", "seed"]
    assert sorted(estimator.get_params()) == names and is_classifier(estimator)
    changed = clone(estimator).set_params(seed=3, method="kgcoop")
    assert changed.get_params() == estimator.get_params() | {"seed": 3, "method": "kgcoop"}
    with pytest.raises(ValueError, match="Invalid parameter 'shots'"):
        changed.set_params(shots=4)
    with pytest.raises(NotFittedError):
        changed.predict(["image.jpg"])


def test_it_learns_what_the_command_learns(fitted, images, small, photographs, tmp_path):
    words = [word for word in small if not word.startswith("shots=")]
    run = coop.run(*words, "shots=-1", f"hydra.run.dir={tmp_path / 'run'}")
    torch.testing.assert_close(fitted.method_.ctx, run.method.ctx, rtol=0, atol=0)
    held_out = sorted((photographs / "test").rglob("*.jpg"))
    right = fitted.score(held_out, [path.parent.name for path in held_out])
    assert right == pytest.approx(run.results["test/acc"], abs=1e-6)
    probabilities = fitted.predict_proba(held_out[:3])
    for row, prediction in zip(probabilities, run.predict(held_out[:3], top=1), strict=True):
        assert row.max() == pytest.approx(prediction["classes"][0]["probability"], abs=1e-6)


def test_probabilities_and_labels(fitted, images):
    assert fitted.classes_.tolist() == sorted(set(images[1])) and not hasattr(fitted, "n_features_in_")
    probabilities = fitted.predict_proba(images[0][:4])
    assert probabilities.shape == (4, 5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(fitted.predict_proba(images[0][3::-1]), probabilities[::-1], atol=1e-6)
    np.testing.assert_allclose(fitted.predict_proba(images[0][2:3]), probabilities[2:3], atol=1e-6)
    assert fitted.predict(images[0][:4]).tolist() == fitted.classes_[probabilities.argmax(axis=1)].tolist()
    assert fitted.predict_proba([]).shape == (0, 5)


def test_pil_images_and_arrays_teach_the_same(estimator, fitted, images):
    opened = [Image.open(path).convert("RGB") for path in images[0]]
    mixed = [image if number % 2 else np.asarray(image) for number, image in enumerate(opened)]
    again = clone(estimator)
    assert again.fit(mixed, images[1]) is again and again.get_params() == estimator.get_params()
    torch.testing.assert_close(again.method_.ctx, fitted.method_.ctx, rtol=0, atol=0)


def test_labels_of_any_type(estimator, images):
    numbers = np.unique(images[1], return_inverse=True)[1] + 10
    fitted = clone(estimator).set_params(options=estimator.options | {"epochs": 1}).fit(images[0], numbers)
    assert fitted.classes_.tolist() == [10, 11, 12, 13, 14] and fitted.method_.classnames == [
        "10",
        "11",
        "12",
        "13",
        "14",
    ]
    assert fitted.predict(images[0][:2]).dtype == numbers.dtype


def test_a_fitted_one_is_pickled(fitted, images):
    pickled = pickle.dumps(fitted)
    assert len(pickled) < 50_000, "without the weights of CLIP"
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again.predict_proba(images[0][:3]), fitted.predict_proba(images[0][:3]))


def test_cross_validation_takes_lists_of_paths(estimator, images):
    quick = clone(estimator).set_params(
        method="zero_shot", options={"backbone.model": estimator.options["backbone.model"]}
    )
    scores = cross_val_score(quick, *images, cv=2, error_score="raise")
    assert scores.shape == (2,) and ((scores >= 0) & (scores <= 1)).all()


def test_what_is_wrong_is_said(estimator, fitted, images, tmp_path):
    paths, labels = images
    (tmp_path / "cut.jpg").write_bytes(Path(paths[0]).read_bytes()[:300])
    broken = [str(tmp_path / "cut.jpg"), *paths[1:]]
    for action, message in (
        (lambda: clone(estimator).fit(paths, labels[:-1]), "inconsistent numbers of samples"),
        (lambda: clone(estimator).fit(paths, ["dog"] * len(paths)), "^y: 1 classes; a classifier needs at least 2"),
        (lambda: clone(estimator).fit(broken, labels), "cut.jpg: not a readable image"),
        (lambda: clone(estimator).set_params(method="cop").fit(paths, labels), "^method=cop: there is no such method"),
        (lambda: clone(estimator).set_params(options={"epoch": 1}).fit(paths, labels), "^epoch: there is no such key"),
        (
            lambda: fitted.predict([paths[0], "gone.jpg", "lost.jpg"]),
            "gone.jpg: .*does not exist.*and 1 more of 3 images",
        ),
        (lambda: FewShotClassifier("ViT-B-16", "openai").fit(paths, labels), "use backbone.model=ViT-B-16-quickgelu"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            action()
        assert isinstance(caught.value, CoopError) or "inconsistent" in message
    assert not [name for name in vars(clone(estimator)) if name.endswith("_")]
