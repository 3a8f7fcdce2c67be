"""How tables look in Markdown, LaTeX, HTML and CSV."""

import csv
import io
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from coop.reporting.tables import Table, mean_sd_n, percent, points, to_csv, to_html, to_latex, to_markdown

TABLE = Table(
    "accuracy_1",
    "Title & 100%",
    ["data_set", "<b>", "acc"],
    [["a|b", "x_1", "90.00 ± 0.50 (3)"], None, ["c", "$2^{3}\\~#", "–"]],  # noqa: RUF001
    left=2,
    note="A note.",
)


@pytest.mark.parametrize(
    ("mean", "sd", "n", "text"),
    [(0.91825, 0.00152, 3, "91.83 ± 0.15 (3)"), (0.5, None, 1, "50.00 (1)"), (1.0, 0.0, 2, "100.00 ± 0.00 (2)")],
)
def test_mean_sd_n(mean, sd, n, text):
    assert mean_sd_n(SimpleNamespace(mean=mean, sd=sd, n=n)) == text


def test_single_figures():
    assert percent(0.12344) == "12.34" and percent(None) == mean_sd_n(None) == points(None) == "–"  # noqa: RUF001
    assert points(1.234) == "+1.23" and points(-0.5) == "−0.50"  # noqa: RUF001


def test_markdown():
    assert to_markdown(TABLE) == (
        "**Title & 100%**\n\n"
        "| data\\_set | \\<b> | acc |\n"
        "| --- | --- | ---: |\n"
        "| a\\|b | x\\_1 | 90.00 ± 0.50 (3) |\n"
        "| c | $2^{3}\\\\~# | – |\n\n"  # noqa: RUF001
        "A note.\n"
    )


def test_latex():
    text = to_latex(TABLE)
    assert "\\caption{Title \\& 100\\%. A note.}" in text
    assert "\\begin{tabular}{llr}\n\\toprule\ndata\\_set & <b> & acc \\\\\n\\midrule\n" in text
    assert "a|b & x\\_1 & 90.00 $\\pm$ 0.50 (3) \\\\\n\\midrule\n" in text
    assert "c & \\$2\\textasciicircum{}\\{3\\}\\textbackslash{}\\textasciitilde{}\\# & -- \\\\\n\\bottomrule" in text


def test_html_is_escaped_and_closed():
    class Reader(HTMLParser):
        open_tags, texts = [], []

        def handle_starttag(self, tag, attrs):
            self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

        def handle_data(self, data):
            self.texts.append(data)

    reader = Reader()
    reader.feed(to_html(TABLE))
    assert not reader.open_tags
    assert reader.texts == [
        *("Title & 100%", "data_set", "<b>", "acc"),
        *("a|b", "x_1", "90.00 ± 0.50 (3)"),
        *("c", "$2^{3}\\~#", "–", "A note."),  # noqa: RUF001
    ]
    assert to_html(TABLE).count('<tr class="rule">') == 1


def test_csv():
    content = to_csv(["a", "b"], [["x,y", None], ['"', 1.5]])
    assert list(csv.reader(io.StringIO(content.decode()))) == [["a", "b"], ["x,y", ""], ['"', "1.5"]]
