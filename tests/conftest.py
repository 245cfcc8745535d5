"""Fixtures that several packages' tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def untrained_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in Z-Image-Turbo's layout with the miniature's architecture and random weights."""
    from l2p_mini.architecture import write_untrained_source

    return write_untrained_source(tmp_path_factory.mktemp("source"), seed=0)
