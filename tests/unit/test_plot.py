"""The proofs' percentiles and plots."""

import xml.etree.ElementTree as ET

from harness.plot import cumulative, percentile


def test_a_percentile_is_a_measured_value_that_the_share_does_not_exceed():
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.95) == 95.0
    assert percentile(values, 1.0) == 100.0
    assert percentile([3.0], 0.5) == 3.0


def test_a_plot_is_an_svg_with_a_curve_for_each_series(tmp_path):
    cumulative(tmp_path / "x.svg", "a & b", {"one": [0.1, 0.2], "two <": [0.3]}, 2.0)
    drawn = ET.parse(tmp_path / "x.svg").getroot()  # noqa: S314 - we wrote it
    texts = [element.text for element in drawn.iter() if element.tag.endswith("text")]
    assert "a & b" in texts
    assert "one: 95 % within 0.20 s" in texts
    assert "two <: 95 % within 0.30 s" in texts
