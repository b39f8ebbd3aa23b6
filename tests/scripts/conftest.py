"""The stand-in for gcloud, fresh for each test."""

from pathlib import Path

import pytest

from tests.scripts.gcloud import GCloud


@pytest.fixture
def gcloud(tmp_path: Path) -> GCloud:
    return GCloud(tmp_path / "gcloud")
