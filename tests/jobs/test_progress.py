"""Progress lines: rate and time left, for fast and slow items."""

import pytest

from marey.jobs import progress
from marey.jobs.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "done", "shown"),
    [
        (12.0, 24, "reading 24/100  2.0/s  left 0:00:38"),
        (50.0, 2, "reading 2/100  25.0 s each  left 0:40:50"),
        (30.0, 1.5, "reading 1.50/100  20.0 s each  left 0:32:50"),
        (11.0, 0, "reading 0/100  0.0/s"),
    ],
)
def test_a_line_tells_rate_and_time_left(monkeypatch, capsys, seconds, done, shown):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tell = Progress("reading")
    tell(0.5, 100)
    assert capsys.readouterr().err == "", "less than ten seconds after the start"
    now[0] += seconds
    tell(done, 100)
    assert capsys.readouterr().err.startswith(shown)


def test_the_end_is_always_shown_and_a_quiet_process_shows_nothing(capsys):
    Progress("reading", quiet=True)(3, 3)
    assert capsys.readouterr().err == ""
    Progress("reading")(3, 3)
    assert capsys.readouterr().err.startswith("reading 3/3  ")


def test_durations_are_hours_minutes_and_seconds():
    assert duration(3723.9) == "1:02:03"
