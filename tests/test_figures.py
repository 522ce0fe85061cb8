"""Figures in README and help pages are those of the committed raw results."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "demo" / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *sorted((ROOT / "js" / "docs").glob("*.md")),
]
FIGURE = re.compile(r"<!--([\w.]+)-->(-?[\d.]+)")
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
ROWS = {row["name"]: row for path in RESULTS for row in json.loads(path.read_text())["rows"]}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_file_says_where_it_comes_from(path):
    report = json.loads(path.read_text())
    assert report.keys() == {"device", "versions", "command", "date", "rows"}
    for row in report["rows"]:
        assert row.keys() == {"name", "measured", "goal", "unit", "better", "note"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_figures_agree_with_the_raw_results(path):
    text = path.read_text()
    assert not re.search("^<!--", text, re.MULTILINE), "such a line begins a paragraph of its own in ComfyUI"
    figures = FIGURE.findall(text)
    assert figures
    for name, shown in figures:
        decimals = len(shown.partition(".")[2])
        assert f"{ROWS[name]['measured']:.{decimals}f}" == shown, f"{name} in {path.name}"
