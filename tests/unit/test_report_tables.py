"""How tables look in Markdown, LaTeX, HTML and CSV."""

from html.parser import HTMLParser

import pandas as pd
import pytest

from coop.report.page import template
from coop.report.tables import Table, mean_sd_n, percent, points, to_latex, to_markdown, to_text

TABLE = Table(
    "accuracy_1",
    "Title & 100%",
    pd.DataFrame(
        [["a|b", "x_1", "90.00 ± 0.50 (3)"], ["c", "$2^{3}\\~#", "–"]],  # noqa: RUF001
        columns=["data_set", "<b>", "acc"],
    ),
    left=2,
    note="A note.",
)


@pytest.mark.parametrize(
    ("mean", "sd", "n", "text"),
    [(0.91825, 0.00152, 3, "91.83 ± 0.15 (3)"), (0.5, None, 1, "50.00 (1)"), (1.0, 0.0, 2, "100.00 ± 0.00 (2)")],
)
def test_mean_sd_n(mean, sd, n, text):
    assert mean_sd_n(mean, sd, n) == text


def test_single_figures():
    assert percent(0.12344) == "12.34" and percent(None) == mean_sd_n(None, None, 0) == points(None) == "–"  # noqa: RUF001
    assert points(1.234) == "+1.23" and points(-0.5) == "−0.50"  # noqa: RUF001


def test_markdown():
    assert to_markdown(TABLE) == (
        "**Title & 100%**\n\n"
        "| data\\_set   | \\<b>       |              acc |\n"
        "|:------------|:-----------|-----------------:|\n"
        "| a\\|b        | x\\_1       | 90.00 ± 0.50 (3) |\n"
        "| c           | $2^{3}\\\\~# |                – |\n\n"  # noqa: RUF001
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
    section = {"title": "Section", "tables": [TABLE]}
    page = template("page.html.j2").render(title="Page", sections=[section])
    page = page[page.index('<div class="table">') : page.index("</body>")]
    reader.feed(page)
    assert reader.open_tags == []
    assert [text for text in reader.texts if text.strip()] == [
        *("Title & 100%", "data_set", "<b>", "acc"),
        *("a|b", "x_1", "90.00 ± 0.50 (3)"),
        *("c", "$2^{3}\\~#", "–", "A note."),  # noqa: RUF001
    ]
    assert page.count('<tr class="rule">') == 1


def test_on_a_terminal_that_is_too_narrow_means_stand_alone():
    assert "90.00 ± 0.50 (3)" in to_text(TABLE) and "90.00 ± 0.50 (3)" in to_text(TABLE, 80)
    narrow = to_text(TABLE, 30)
    assert "90.00" in narrow and "±" not in narrow
