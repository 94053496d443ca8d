"""What several tests of jobs start from."""

import pytest

from marey.video.synthetic import render_moving_shapes


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six videos of 30 frames at 12 frames per second."""
    folder = tmp_path_factory.mktemp("videos")
    render_moving_shapes(folder, train=1, val=0, test=0, size=(48, 40), frames=30)
    return sorted(folder.rglob("*.mp4"))
