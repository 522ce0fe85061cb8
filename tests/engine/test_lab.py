"""Values, statistics, tables and pictures of a sweep."""

import csv
import io
import json

import numpy as np
import pytest
from kontextkit.engine.lab import plot
from kontextkit.engine.lab.settings import SETTINGS, parse_values
from kontextkit.engine.lab.sweep import Picture, Sweep, low_outliers, summarize
from kontextkit.engine.lab.table import brief, comma_separated, markdown, raw
from matplotlib.cbook import boxplot_stats
from PIL import Image
from scipy import stats


def some(value, likeness, seconds=(2.0,), prompt="p"):
    pairs = zip(likeness, np.resize(seconds, len(likeness)).tolist(), strict=True)
    return [Picture(value, prompt, i, took, s, {"context": s / 2}) for i, (s, took) in enumerate(pairs)]


@pytest.fixture
def sweep():
    rng = np.random.default_rng(0)
    low = [0.5, *(0.9 + 0.02 * rng.random(11))]
    return Sweep("steps", 28, (*some(28, [1.0] * 12, [4.0, 6.0]), *some(8, low, [1.0, 1.5])))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 24])
def test_statistics_are_numpy_s_and_scipy_s(n):
    likeness = np.random.default_rng(n).random(n)
    summary = summarize(some(8, likeness.tolist(), [1.0, 2.0, 9.0]), 6.0)
    seconds = np.median(np.resize([1.0, 2.0, 9.0], n))
    assert summary.mean == pytest.approx(np.mean(likeness))
    assert summary.std == pytest.approx(stats.tstd(likeness) if n > 1 else 0.0)
    assert (summary.minimum, summary.worst.seed) == (likeness.min(), likeness.argmin())
    assert (summary.seconds, summary.speed) == (seconds, 6.0 / seconds)
    assert summary.to == {"context": pytest.approx(likeness.mean() / 2)}


@pytest.mark.parametrize("seed", range(20))
def test_outliers_are_matplotlib_s_low_fliers(seed):
    values = np.random.default_rng(seed).standard_t(2, 24)
    fliers = boxplot_stats(values, whis=1.5)[0]["fliers"]
    assert values[low_outliers(values.tolist())].tolist() == sorted(fliers[fliers < np.median(values)])


def test_three_pictures_have_no_outlier():
    assert low_outliers([0.1, 0.99, 0.99]) == []
    assert low_outliers([0.99, 0.1, 0.99, 0.99, 0.99]) == [1]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_guide_s_values_are_in_range(name):
    if SETTINGS[name].words:
        with pytest.raises(ValueError, match="values is empty; precision takes names"):
            parse_values(name, " ")
        return
    assert parse_values(name, "") == SETTINGS[name].values
    assert parse_values(name, ", ".join(map(str, SETTINGS[name].values))) == SETTINGS[name].values


def test_values_are_read_between_commas_and_lines_each_once():
    assert parse_values("steps", "4, 8\n8.0,12,") == (4, 8, 12)
    assert parse_values("precision", "a b.gguf, Q8_0\na b.gguf") == ("a b.gguf", "Q8_0")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("steps", "4, x", "values has 'x'; steps takes whole numbers from 1 to 200, such as 4, 8"),
        ("steps", "4.5", "'4.5'"),
        ("steps", "0", "'0'"),
        ("guidance", "nan", "'nan'; guidance takes numbers from 0 to 30"),
        ("guidance", "inf", "'inf'"),
        ("denoise", "0", "'0'; denoise takes numbers from 0.01 to 1"),
        ("denoise", "1.5", "'1.5'"),
        ("context weight", "-0.1", "'-0.1'; context weight takes numbers from 0 to 1"),
        ("cache threshold", "3", "'3'"),
        ("sharpness", "1", "setting is 'sharpness', expected one of precision, steps"),
    ],
)
def test_a_value_that_cannot_be_is_named(name, text, words):
    with pytest.raises(ValueError, match=words):
        parse_values(name, text)


def test_the_table_has_a_row_a_value_and_names_outliers_by_prompt_and_seed(sweep):
    lines = markdown(sweep).splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")][1:-1]
    assert cells == ["28 (baseline)", "1.0000", "0.0000", "1.0000", "0.5000", "5", "1.00"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert brief(sweep) == f"steps 8: SSIM {np.mean([p.ssim for p in sweep.pictures[12:]]):.4f}, 4.00 times as fast"
    assert [cell.strip() for cell in lines[3].split("|")][1:4:2] == [
        "8",
        f"{np.std([p.ssim for p in sweep.pictures[12:]], ddof=1):.4f}",
    ]
    assert "- steps 8: 0.5000 at p (seed 0)" in lines
    assert "12 pictures each" in lines[5]


def test_csv_and_json_hold_every_picture(sweep):
    rows = list(csv.DictReader(io.StringIO(comma_separated(sweep))))
    assert [float(row["ssim"]) for row in rows] == [picture.ssim for picture in sweep.pictures]
    assert rows[12] == {
        "steps": "8",
        "prompt": "p",
        "seed": "0",
        "seconds": "1.0",
        "ssim": "0.5",
        "ssim_to_context": "0.25",
    }
    data = json.loads(raw(sweep, {"sampler": "euler"}))
    assert data["made_with"] == {"sampler": "euler"}
    assert [(each["value"], each["n"]) for each in data["values"]] == [(28, 12), (8, 12)]
    assert data["values"][1]["outliers"] == [{"prompt": "p", "seed": 0, "ssim": 0.5}]
    assert [each["ssim"] for each in data["pictures"]] == [picture.ssim for picture in sweep.pictures]


def test_a_plot_and_a_sheet_are_drawn(sweep):
    drawn = plot.draw_plot(sweep)
    assert drawn.size == (1215, 342)
    assert np.asarray(drawn).std() > 10
    tiles = {(p.value, p.prompt, p.seed): Image.new("RGB", (160, 90), (200, 40, 10 * p.seed)) for p in sweep.pictures}
    sheet = np.asarray(plot.draw_sheet(sweep, tiles))
    assert sheet.shape == (18 + 6 * (166 + 36), 6 + 2 * 166, 3)
    assert (sheet == (200, 40, 0)).all(axis=2).sum() >= 2 * 160 * 90  # the outlier's row is among the six
