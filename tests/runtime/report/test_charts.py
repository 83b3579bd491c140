"""Bars, columns, curve and histogram show the numbers that they are given."""

import re

import pytest
from reports import Parsed

from runtime.contract.labels import NOISE
from runtime.report import Cluster, Curve, Norms, charts


def sizes(*sizes: int, noise: int = 0) -> list[Cluster]:
    made = [Cluster(number, size) for number, size in enumerate(sizes)]
    return [*made, Cluster(NOISE, noise)] if noise else made


def widths(markup: str) -> list[float]:
    return [float(got["width"].rstrip("%")) for got in Parsed(markup).all("rect")]


def test_bars_are_as_long_as_clusters_are_large_whatever_the_noise():
    page = Parsed(charts.cluster_sizes(sizes(40, 20, 0, noise=900)))
    assert widths(page.html) == [100, 50, 0]
    assert [part for part in page.text.split() if "%" in part] == ["4.2%", "2.1%", "0.0%", "93.8%"]
    assert "noise" in page.text


def test_the_part_of_the_most_frequent_class_is_drawn():
    made = charts.cluster_sizes(
        [Cluster(0, 40, label="cat", label_count=30), Cluster(1, 20, label="dog", label_count=5)]
    )
    assert widths(made) == [100, 75, 50, 12.5]
    assert "cat 75%" in made
    assert "dog 25%" in made


@pytest.mark.parametrize("count", [41, 1000])
def test_many_clusters_are_columns_and_a_table_to_open(count):
    page = Parsed(charts.cluster_sizes(sizes(*range(count, 0, -1))))
    columns = [got for got in page.all("rect") if "x" in got]
    heights = [float(got["height"]) for got in columns]
    assert len(columns) == count
    assert heights == sorted(heights, reverse=True)
    assert heights[count // 2] == pytest.approx(heights[0] * (count - count // 2) / count, abs=0.01)
    (chart,) = page.all("svg", class_="chart")
    assert chart["aria-label"] == f"Sizes of {count:,} clusters, from 1 to {count:,} images"
    assert page.all("details")
    assert len(page.all("tr")) == count + 1


def test_no_image_at_all_is_no_trouble():
    assert charts.cluster_sizes(sizes(0, 0))
    assert charts.norm_histogram(Norms(0, [0.0, 0.0], [0], [0]))


def test_the_curve_rises_where_the_score_does_and_marks_the_chosen():
    page = Parsed(charts.score_curve(Curve([2, 4, 6], [0.1, 0.5, 0.2], 4)))
    heights = [float(got["cy"]) for got in page.all("circle")]
    assert heights[1] < heights[2] < heights[0]
    (chosen,) = page.all("circle", class_="chosen")
    assert float(chosen["cy"]) == heights[1]
    (line,) = page.all("polyline")
    assert len(line["points"].split()) == 3
    assert "silhouette for k from 2 to 6; k = 4 was chosen" in page.html


def test_the_histogram_puts_the_flagged_on_top_and_counts_them():
    page = Parsed(charts.norm_histogram(Norms(7, [0.0, 1.0, 2.0, 3.0], [9, 99, 0], [0, 0, 9])))
    normal, flagged = page.all("rect", class_="normal"), page.all("rect", class_="flagged")
    assert (len(normal), len(flagged)) == (2, 1)
    small, large = (float(got["height"]) for got in normal)
    assert large == pytest.approx(2 * small, abs=0.02)  # 99 and 9, by the logarithm of one more
    assert float(flagged[0]["height"]) == pytest.approx(small, abs=0.02)
    assert "Layer 7: 9 of 117 patches flagged (7.7%)" in page.text
    assert re.search(r"2\.00 to 3\.00: 0 normal, 9 flagged", page.text)


@pytest.mark.parametrize(("largest", "ticks"), [(1, [1]), (7, [2, 4, 6]), (34, [10, 20, 30]), (239, [100, 200])])
def test_ticks_are_round(largest, ticks):
    assert charts._ticks(largest) == ticks


def test_the_histogram_shows_the_valley_between_its_bins_and_whose_norms_they_are():
    norms = Norms(3, [1.0, 2.0, 4.0, 8.0, 16.0], [9, 0, 0, 0], [0, 0, 0, 9], source="residual", valley=(1, 3))
    page = Parsed(charts.norm_histogram(norms))
    (valley,) = page.all("rect", class_="valley")
    (normal,), (flagged,) = page.all("rect", class_="normal"), page.all("rect", class_="flagged")
    assert float(normal["x"]) + float(normal["width"]) < float(valley["x"])
    assert float(valley["x"]) + float(valley["width"]) == pytest.approx(float(flagged["x"]), abs=0.02)
    assert "Layer 3, residual: 9 of 18 patches flagged" in page.text
