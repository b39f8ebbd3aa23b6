"""Amounts of memory and time in messages."""

import pytest

from Utils.amounts import bytes_text, seconds_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (16_300, "16 kB"),
        (16_300_000, "16 MB"),
        (2_440_000_000, "2.4 GB"),
        (999_600, "1 MB"),
        (9_960_000_000, "10 GB"),
        (999_000_000, "999 MB"),
        (481e9, "481 GB"),
        (3.2e15, "3200 TB"),
    ],
)
def test_bytes_are_told_in_the_unit_that_suits_them(size: float, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0456, "0.046 s"),
        (0.0, "0 s"),
        (5.5, "5.5 s"),
        (9.97, "10 s"),
        (90, "90 s"),
        (330, "5.5 min"),
        (5900, "98 min"),
        (4e4, "11 h"),
        (1e6, "12 days"),
    ],
)
def test_durations_are_told_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text
