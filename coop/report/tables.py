"""The tables of a report, and how they are written: on the page, as Markdown and as LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from coop.report.groups import ALWAYS_SAID, NOTHING, Curves, shots_text, sort_shots
from coop.report.published import MARKS
from coop.report.records import OWN
from coop.report.study import Study

MINUS, UNCHECKED = "\N{MINUS SIGN}", " †"
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {
        "\\": "\\textbackslash{}",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "±": "$\\pm$",
        "†": "$\\dagger$",
        "…": "\\ldots{}",
        "\n": " ",
        NOTHING: "--",
        MINUS: "$-$",
        MARKS["verified"]: "$\\blacklozenge$",
        MARKS["recalled"]: "$\\lozenge$",
    }
)
MARKDOWN = str.maketrans({character: f"\\{character}" for character in "|<*_`\\"} | {"\n": " "})
READING = "Accuracy in %: mean ± sample standard deviation (number of seeds)"


@dataclass
class Table:
    """A table as it is shown."""

    name: str  # of its file
    title: str  # one line above it
    frame: pd.DataFrame  # texts
    left: int = 1  # how many columns, from the first, hold words; the others hold figures and stand to the right
    note: str = ""  # what has to be known to read it
    blocks: bool = True  # whether a rule is drawn where the first column changes

    @property
    def rules(self) -> list[bool]:
        """Whether a rule stands above each row, because another block begins."""
        first = self.frame.iloc[:, 0]
        return [False, *(self.blocks & (first != first.shift())).tolist()[1:]][: len(first)]


def percent(value: float | None) -> str:
    """A fraction as percent, without the sign."""
    return NOTHING if pd.isna(value) else f"{100 * value:.2f}"


def points(value: float | None) -> str:
    """A difference in percentage points, with its sign."""
    return NOTHING if pd.isna(value) else f"{value:+.2f}".replace("-", MINUS)


def mean_sd_n(mean: float, sd: float, n: float) -> str:
    """ "71.92 ± 0.15 (3)"; without deviation where there is but one."""
    if pd.isna(mean):
        return NOTHING
    return f"{percent(mean)}{'' if pd.isna(sd) else f' ± {percent(sd)}'} ({n:.0f})"


def shots_column(shots: int) -> str:
    """The head of a column of shots; "" where they do not apply."""
    return "all" if shots < 0 else str(shots)


def average_name(data: Sequence[str]) -> str:
    """ "average of 11 data sets"."""
    return f"average of {len(data)} data sets"


def panels(study: Study) -> list[tuple[str, Curves]]:
    """Curves that share a table and figures, under their name: one panel per backbone, base and new classes apart."""
    own, found = study.curves.of(kind=OWN), []
    for backbone, classes in own.table.groupby(["backbone", "classes"], sort=False).groups:
        name = backbone if classes == "all" else f"{backbone}, {classes} classes"
        found.append((name, own.of(backbone=backbone, classes=classes)))
    return found


def places(curves: Curves) -> list[tuple[str, list[str]]]:
    """(name, data sets) of each data set, then of the average of those that most curves have.

    A data set is averaged if at least half of the trained curves have it at all their shots: so one that was only
    begun, or a method tried on a single data set, does not take the average away.
    """
    names = sorted(curves.points["data"].unique())
    trained = curves.of(zero_shot=False)
    have = (trained if len(trained.table) else curves).points.drop_duplicates(["curve", "data", "shots"])
    counts = have.groupby(["curve", "data"]).size().unstack(fill_value=0)
    complete = counts.eq(have.groupby("curve")["shots"].nunique(), axis=0).mean()
    averaged = [name for name in names if complete.get(name, 0) >= 0.5]
    return [*((name, [name]) for name in names), *([(average_name(averaged), averaged)] * (len(averaged) > 1))]


def _averages(curves: Curves) -> pd.Series:
    """All averages of a panel as they are shown, by data set (`places`), curve and shots."""
    found = pd.concat({place: curves.average(data) for place, data in places(curves)}, names=["data set"])
    columns = (found[name] for name in ("mean", "sd", "n"))
    return pd.Series([mean_sd_n(*values) for values in zip(*columns, strict=True)], found.index, dtype=object)


def few_shot_tables(study: Study) -> list[Table]:
    """One table per backbone: data sets and methods down, shots across; the average over data sets last."""
    tables = []
    for number, (name, curves) in enumerate(panels(study), 1):
        frame = _averages(curves).unstack("shots", fill_value=NOTHING, sort=False)
        frame = frame[sort_shots(frame.columns)]
        zero_shot = curves.table["zero_shot"][frame.index.get_level_values("curve")]
        # Zero-shot stands at 0 shots and nowhere else.
        frame = frame.mask(np.not_equal.outer(zero_shot.to_numpy(), frame.columns == 0), "")
        frame = frame.rename(columns=shots_column).reset_index().rename(columns={"curve": "method"})
        frame["method"] = frame["method"].map(curves.table["label"])
        *singles, (last, averaged) = places(curves)
        note = f"{READING}; 0 is zero-shot."
        if left_out := [place for place, _ in singles if len(averaged) > 1 and place not in averaged]:
            note += f" Not in the {last}, because incomplete: {', '.join(left_out)}."
        title = f"{name}: accuracy by training images per class"
        tables.append(Table(f"few_shot_{number}", title, frame, 2, note))
    return tables


def settings_tables(study: Study) -> list[Table]:
    """What the compared settings differ in beyond their labels: a row for each trained curve, a column for each key."""
    table = study.curves.of(zero_shot=False).table
    hidden = ("kind", "method", "classes", "zero_shot", "label", "source", "trained_on", "trained_classes")
    keys = [key for key in table if key not in hidden and key.partition(".")[0] != "backbone" and key != "pretrained"]
    # What only one method has is in its label if it varies.
    shared = [key for key in keys if table.loc[table[key].notna(), "method"].nunique() > 1]
    shared = [key for key in shared if table[key].nunique() > 1]
    frame = table[["label", *shared]].drop_duplicates("label").astype(object)
    if not set(shared) - set(ALWAYS_SAID):  # labels say it all
        return []
    frame = frame.where(frame.notna(), NOTHING).map(str)
    frame = frame.rename(columns=lambda key: {"label": "method", "n_ctx": "M"}.get(key, key))
    note = f"Keys in which these settings differ; {NOTHING}: the method does not have it, or nothing was set."
    return [Table("settings", "What the compared settings differ in", frame, len(frame.columns), note)]


def backbone_tables(study: Study) -> list[Table]:
    """Backbones across, settings down (M among them), at the largest number of shots that two backbones have."""
    trained = study.curves.of(kind=OWN, zero_shot=False)
    backbones = trained.points.join(trained.table["backbone"], on="curve").groupby("shots")["backbone"].nunique()
    shared = sort_shots(backbones.index[backbones > 1])
    if not shared:
        return []
    averages = _averages(trained.at_shots(shared[-1])).rename("text").reset_index()
    rows = averages.join(trained.table[["label", "backbone"]].rename(columns={"label": "method"}), on="curve")
    frame = rows.pivot_table("text", ["data set", "method"], "backbone", aggfunc="first", sort=False)
    frame = frame.fillna(NOTHING).reset_index()
    return [Table("backbones", f"{shots_text(shared[-1])}: settings by backbone", frame, 2, f"{READING}.")]


def missing_table(study: Study) -> Table | None:
    """What a curve lacks of the data sets and shots that its backbone's other curves have, and of the usual seeds.

    Usual are seeds that at least half of the settings have: an extra seed somewhere is not asked for everywhere.
    """
    blocks = []
    for _, curves in panels(study):
        trained = curves.of(zero_shot=False)
        have = pd.MultiIndex.from_frame(trained.points[["curve", "data", "shots", "seed"]])
        counts = trained.points.groupby("seed")["setting"].nunique()
        seeds = sorted(counts.index[2 * counts >= trained.points["setting"].nunique()])
        wanted = [trained.table.index, trained.points["data"].unique(), curves.shots(), seeds]
        wanted = pd.MultiIndex.from_product(wanted, names=have.names)
        blocks.append(wanted[~wanted.isin(have)].to_frame(index=False).join(trained.table, on="curve", rsuffix="_"))
    absent = pd.concat(blocks).astype({"seed": str})
    if absent.empty:
        return None
    absent["shots"] = absent["shots"].map(shots_column)
    place = ["backbone", "label", "data"]
    absent = absent.groupby([*place, "shots"], sort=False)["seed"].agg(", ".join).rename("seeds").reset_index()
    title = f"Missing: {len(absent)} setting{'s are' if len(absent) > 1 else ' is'} incomplete"
    frame = absent.groupby([*place, "seeds"], sort=False)["shots"].agg(", ".join).reset_index()
    frame = frame.rename(columns={"label": "method", "data": "data set"})
    note = (
        "Expected is every data set and number of shots that some run of the same backbone has, with every seed that "
        "at least half of its settings have."
    )
    return Table("missing", title, frame[["backbone", "method", "data set", "shots", "seeds"]], 5, note)


def published_tables(study: Study) -> list[Table]:
    """Published figures beside ours where the setting is the same, and what the others differ in."""
    pairs, tables = study.comparisons, []
    other = pairs[~pairs["same_setting"]]
    averages = [
        study.beside(curves, [place for place in places(curves) if len(place[1]) > 1]) for _, curves in panels(study)
    ]
    same = pd.concat([pairs[pairs["same_setting"]], *averages])
    if len(same):
        frame = pd.DataFrame([_compared(row) for row in same.to_dict("records")]).drop_duplicates()
        note = (
            f"{READING}; the difference is ours less the published figure, in percentage points. verified: read in a "
            "public source; recalled: written down from memory, agrees with published averages; low: a recollection, "
            "from which nothing is subtracted."
        )
        if keys := sorted({key for unchecked in same["unchecked"] for key in unchecked}):
            note += f"{UNCHECKED}: not recorded by our runs, so not known to be the same: {', '.join(keys)}."
        tables.append(Table("published", "Beside the published figures", frame, 5, note))
    if len(other):
        reasons = pd.DataFrame({"published in": other["table"], "because": other.apply(why_not, axis=1)})
        frame = reasons.value_counts(sort=False).rename("figures").reset_index().map(str)
        title = "Published for the same data set, method, backbone and shots, but not compared"
        tables.append(Table("not_compared", title, frame, 2))
    return tables


def why_not(pair: Any) -> str:
    """What keeps a published figure from being compared."""
    return "; ".join(pair["differing"]) or "the source does not say in which setting"


def _compared(pair: dict[str, Any]) -> dict[str, str]:
    return {
        "data set": pair["data"],
        "method": pair["method"],
        "backbone": pair["backbone"],
        "published in": f"{pair['table']}: {pair['source']}",
        "confidence": f"{MARKS[pair['confidence']]} {pair['confidence']}{UNCHECKED * bool(pair['unchecked'])}",
        "shots": shots_column(pair["shots"]) if pair["shots"] else "",
        "M": "" if pd.isna(pair["n_ctx"]) else str(pair["n_ctx"]),
        "ours": mean_sd_n(pair["ours"], pair["sd"], pair["n"]),
        "published": f"{pair['accuracy_percent']:.2f}",
        "difference": points(pair["difference"]),
    }


def to_markdown(table: Table) -> str:
    """A pipe table under its title."""
    frame = table.frame.map(escape_markdown).rename(columns=escape_markdown)
    note = f"\n\n{escape_markdown(table.note)}" if table.note else ""
    return f"**{escape_markdown(table.title)}**\n\n{_tabulated(frame, table.left, 'pipe')}{note}\n"


def to_text(table: Table, width: int | None = None) -> str:
    """For a terminal; means alone where it would be wider than `width`."""
    text = _tabulated(table.frame, table.left, "simple")
    if width and text.index("\n") > width:
        means = table.frame.map(lambda value: value.partition(" ±")[0])
        text = _tabulated(means, table.left, "simple")
    return f"{table.title}\n{text}\n{table.note}\n"


def _tabulated(frame: pd.DataFrame, left: int, form: str) -> str:
    align = ["left" if index < left else "right" for index in range(len(frame.columns))]
    return frame.to_markdown(index=False, tablefmt=form, disable_numparse=True, colalign=align)


def escape_markdown(text: str) -> str:
    """Text that stands for itself in Markdown, on one line."""
    return text.translate(MARKDOWN)


def to_latex(table: Table) -> str:
    """A table environment for LaTeX with the booktabs package."""
    frame = table.frame.map(_latex).rename(columns=_latex)
    first = zip(table.rules, frame.iloc[:, 0], strict=True)
    frame.isetitem(0, [f"\\midrule\n{text}" if rule else text for rule, text in first])
    return "% needs \\usepackage{booktabs}\n" + frame.to_latex(
        index=False,
        column_format="l" * table.left + "r" * (len(frame.columns) - table.left),
        caption=_latex(f"{table.title}. {table.note}".strip()),
        label=f"tab:{table.name}",
    )


def _latex(text: str) -> str:
    return text.translate(LATEX)
