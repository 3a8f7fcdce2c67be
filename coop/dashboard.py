"""python -m coop.dashboard: a saved W&B workspace laid out for the runs of this project."""

from coop.cli.options import run_command

USAGE = """python -m coop.dashboard [entity=NAME] [project=coop] [group=NAME] [name=coop]

  entity=NAME     whose project (without it: yours)
  project=NAME    as logger.project said
  group=NAME      only the runs of one group, such as few_shot_curve
  name=NAME       of the saved workspace

Makes a saved view in the W&B project: accuracies by shots, training curves, tables of classes, of confusions and of the
words nearest to what was learned. Needs: pip install 'coop-clip[dashboard]', and a W&B key."""

if __name__ == "__main__":  # before the imports below: --help and most mistakes need no torch
    run_command("dashboard", USAGE)

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coop.cli.options import parse
from coop.errors import CoopError

STEP = "trainer/global_step"  # the axis that Lightning logs


@dataclass
class Options:
    entity: str | None = None
    project: str = "coop"
    group: str | None = None
    name: str = "coop"


def main(words: list[str]) -> int:
    """Make the workspace and say where it is; returns the exit code."""
    plain, options = parse(words, Options)
    if plain:
        raise CoopError(f"{plain[0]}: there is no such option; they are written as key=value, such as project=coop")
    entity = options.entity or your_entity()
    made = workspace(entity, options.project, options.group, options.name)
    try:
        made.save()
    except Exception as error:  # whatever wandb makes of a refused key, a missing project, or no network
        raise CoopError(
            f"{entity}/{options.project}: the workspace could not be saved ({error}). Is the project there, with runs "
            "in it, may your key (wandb login) write to it, and is there a network?"
        ) from error
    print(f"workspace   {made.url}")
    return 0


def your_entity() -> str:
    """The entity of the user's W&B key.

    Raises:
        CoopError: there is no key, or no network.
    """
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise CoopError("W&B has no key here: run `wandb login` once, or set WANDB_API_KEY")
    try:
        entity = wandb.Api().default_entity
    except Exception as error:  # as above
        raise CoopError(f"W&B does not answer ({error}); is there a network, and is the key right?") from error
    if not entity:
        raise CoopError("your W&B key belongs to no entity; give entity=NAME")
    return entity


def workspace(entity: str, project: str, group: str | None, name: str) -> Any:
    """The layout, as a wandb_workspaces.workspaces.Workspace that is not saved yet.

    Raises:
        CoopError: the package is not installed.
    """
    try:
        import wandb_workspaces.expr as expr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise CoopError(f"wandb_workspaces cannot be imported ({error}); pip install 'coop-clip[dashboard]'") from error
    shown = []
    for title, columns, panels in sections():
        layout = ws.SectionLayoutSettings(columns, rows=len(panels) // columns)
        shown.append(ws.Section(name=title, panels=panels, is_open=True, layout_settings=layout))
    filters = [expr.Metric("Group") == group] if group else []
    pinned = ["summary:shots", "summary:seed", "summary:zero_shot/acc", "summary:test/acc"]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=shown,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(filters=filters, pinned_columns=pinned),
    )


def sections() -> Sequence[tuple[str, int, list[Any]]]:
    """(title, columns, panels) of each section of the workspace."""
    import wandb_workspaces.reports.v2 as wr

    by_shots = {"x": wr.Config("shots"), "y": wr.SummaryMetric("test/acc"), "log_x": True, "running_ymean": True}
    accuracy = [
        wr.ScatterPlot(title="By training images per class", **by_shots),
        wr.BarPlot(title="Learned", metrics=["test/acc"], range_x=(0, 1)),
        wr.BarPlot(title="Zero-shot", metrics=["zero_shot/acc"], range_x=(0, 1)),
    ]
    training = [
        wr.LinePlot(title="Loss", x=STEP, y=["train/loss"], smoothing_factor=0.6),
        wr.LinePlot(title="Accuracy on training images", x=STEP, y=["train/acc"]),
        wr.LinePlot(title="Accuracy on validation images", x=STEP, y=["val/acc"]),
    ]
    learned = [
        *(wr.WeavePanelSummaryTable(table_name=f"tables/{name}") for name in ("words", "per_class", "confused")),
        wr.MediaBrowser(title="Pictures", media_keys=["pictures/history", "pictures/per_class"]),
    ]
    return [
        ("Accuracy on the test images", 3, accuracy),
        ("Training", 3, training),
        ("What was learned, and what is confused", 2, learned),
    ]
