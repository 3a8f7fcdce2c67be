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
    """The README.md of a repository USER/NAME, from what results.json and the node `backbone` of config.yaml hold."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    tested = [
        EvalResult("image-classification", dataset, dataset, metric_type="accuracy", metric_value=scores["test/acc"])
        for dataset, scores in by_test_set(results).items()
    ]
    data = ModelCardData(
        license=license,
        library_name="coop",
        pipeline_tag="image-classification",
        tags=["clip", "prompt-learning", "few-shot", results["method"]],
        base_model=hub_repository(backbone["model"], backbone["pretrained"]),
        metrics=["accuracy"],
        model_name=name.rpartition("/")[2],
        eval_results=tested or None,  # in the form that the hub's pages show
        ignore_metadata_errors=False,
    )
    about = {"options": {}, "pretrained": None, "split": "unknown", **results}
    content = {"name": name, "r": about, "rows": accuracy_rows(results), "classnames": classnames, "license": license}
    card = ModelCard.from_template(data, template_str=TEMPLATE, **content)
    return f"{str(card).rstrip()}\n"
