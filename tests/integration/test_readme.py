"""What the README shows, run."""

import json
import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_a_data_set_config_of_ones_own(run, small, photographs, tmp_path):
    (text,) = re.findall(r"`conf/dataset/birds.yaml`.*?```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    config = tmp_path / "conf" / "dataset" / "birds.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(text.replace("/data/birds", str(photographs)))
    others = [word for word in small if not word.startswith("dataset")]
    done = run(
        "train", f"--config-dir={tmp_path / 'conf'}", *others, "dataset=birds", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["dataset"], results["num_classes"], results["n_test"]) == ("birds", 5, 20)
    assert "template: a photo of a {}, a type of bird." in (tmp_path / "run" / "config.yaml").read_text()
