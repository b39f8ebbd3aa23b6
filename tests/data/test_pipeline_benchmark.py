"""The data benchmark runs and reports every pipeline."""

import pytest

from benchmarks.data_pipeline import measure


def test_measure_reports_every_pipeline() -> None:
    rows = measure(images=256, rival_images=128, repetitions=1, workers=(0,))
    assert [row["pipeline"] for row in rows] == ["in memory", "PIL, 0 workers"]
    assert rows[0]["in_memory_ratio"] == 1
    for row in rows:
        assert 0 < row["lowest"] <= row["images_per_second"] <= row["highest"]
        expected = rows[0]["images_per_second"] / row["images_per_second"]
        assert row["in_memory_ratio"] == pytest.approx(expected)
