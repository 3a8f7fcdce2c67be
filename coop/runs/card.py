"""The model card of a run on the Hugging Face hub, written from its config and results."""

from collections.abc import Mapping, Sequence
from typing import Any

from coop.clip.loading import hub_repository
from coop.runs.folder import accuracy_rows, by_test_set

TEMPLATE = """---
{{ card_data }}
---
# {{ name }}

What {{ r.method }} learned on a frozen CLIP ({{ r.backbone }}{{ ", " ~ r.pretrained if r.pretrained }}) from
{{ "all training images" if r.shots < 1 else r.shots ~ " images" }} of each of the {{ r.num_classes }} classes of
{{ r.dataset }}: {{ "{:,}".format(r.trainable_params) }} trained parameters. CLIP's weights are not in this repository.

```python
import coop  # pip install coop-clip

run = coop.load_run("hf:{{ name }}")
run.predict(["photo.jpg"], top=3)
```

| | accuracy % | macro % |
| --- | --- | --- |
{% for label, s in rows %}| {{ label }} | {{ "%.2f" % (100 * s.acc) }} | \
{{ "%.2f" % (100 * s.macro_acc) if s.macro_acc is not none }} |
{% endfor %}
- data: {{ r.dataset }}{{ " (" ~ r.classes ~ " classes)" if r.classes != "all" }}, split: \
{{ r.split }}{{ "; " ~ r.n_test ~ " test images" if r.n_test }}
- seed: {{ r.seed }}{% if r.epochs %}; epochs: {{ r.epochs }}{% endif %}{% if r.augmentation %}; \
augmentation: {{ r.augmentation }}{% endif %}
- options of the method: {% for key, value in r.options.items() %}`{{ key }}={{ value }}` {% endfor %}
- every key of the run: `config.yaml`; every figure: `results.json`
- license of what was learned: {{ license or "not stated" }}; of the data and of CLIP's weights: their owners'

<details><summary>{{ r.num_classes }} classes</summary>

{{ classnames | join(", ") }}

</details>

Written by `python -m coop.export` {{ r.version }}.
"""


def model_card(
    name: str, results: Mapping[str, Any], backbone: Mapping[str, Any], classnames: Sequence[str], license: str | None
) -> str:
    """The README.md of a repository.

    Args:
        name: of the repository, USER/NAME.
        results: what results.json holds.
        backbone: that node of the run's config.
        classnames: K class names.
        license: the hub's name of one, such as "mit"; None: it is not stated.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        license=license,
        library_name="coop",
        pipeline_tag="image-classification",
        tags=["clip", "prompt-learning", "few-shot", results["method"]],
        base_model=hub_repository(backbone["model"], backbone["pretrained"]),
        metrics=["accuracy"],
        model_name=name.rpartition("/")[2],
        eval_results=_eval_results(results),
        ignore_metadata_errors=False,
    )
    about = {"options": {}, "pretrained": None, "split": "unknown", **results}
    rows = accuracy_rows(results)
    card = ModelCard.from_template(
        data, template_str=TEMPLATE, name=name, r=about, rows=rows, classnames=classnames, license=license
    )
    return f"{str(card).rstrip()}\n"


def _eval_results(results: Mapping[str, Any]) -> list | None:
    """Test accuracies in the form that the hub's pages show."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type="accuracy",
            metric_value=scores["test/acc"],
        )
        for dataset, scores in by_test_set(results).items()
    ] or None
