"""The rendered data sets: labels that only motion tells, numbers that survive compression."""

import csv
import subprocess
from shutil import which

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marey.errors import EnvironmentFault, MediaError, UsageError
from marey.video import synthetic
from marey.video.synthetic import BACKWARDS, CLASSES, FLIP_LABELS, number, numbered


def decoded(path):
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Clips and labels of both splits, uint8 [N, T, H, W, 3] and int [N], decoded from the files."""
    lists = synthetic.render_moving_shapes(
        tmp_path_factory.mktemp("shapes"), train=40, val=20, test=0, size=(64, 64), frames=12
    )
    return [
        (
            np.stack([decoded(path.parent / row["path"]) for row in rows(path)]),
            np.array([int(row["label"]) for row in rows(path)]),
        )
        for path in lists[:2]
    ]


def motion(clip):
    """The class whose motion explains the clip's changes best, by one least-squares fit of optical flow.

    Brightness constancy says change = -(gradient . velocity); velocity is (right, down) plus a turn about
    the middle of what changes.
    """
    grey = clip.astype(np.float64).mean(axis=3)
    change = grey[2:] - grey[:-2]
    down, right = np.gradient(grey[1:-1], axis=(1, 2))
    moving = np.abs(change) > 40
    _, y, x = np.nonzero(moving)
    middle_x, middle_y = (_circular_mean(v, n) for v, n in ((x, grey.shape[2]), (y, grey.shape[1])))
    arm_x, arm_y = _ring(x - middle_x, grey.shape[2]), _ring(y - middle_y, grey.shape[1])
    right, down, change = right[moving], down[moving], change[moving]
    terms = np.stack([right, down, (down * arm_x - right * arm_y) / 12], axis=1)
    velocity = np.linalg.lstsq(terms, -change, rcond=None)[0]
    axis = int(np.abs(velocity).argmax())
    names = (("move_right", "move_left"), ("move_down", "move_up"), CLASSES[4:])
    return CLASSES.index(names[axis][int(velocity[axis] < 0)])


def _circular_mean(values, period):
    angle = np.angle(np.exp(2j * np.pi * values / period).mean())
    return angle * period / (2 * np.pi)


def _ring(distance, period):
    return (distance + period / 2) % period - period / 2


def test_motion_tells_the_class(shapes):
    (_, _), (clips, labels) = shapes
    assert np.mean([motion(clip) == label for clip, label in zip(clips, labels, strict=True)]) > 0.85


def test_a_clip_played_backwards_shows_the_other_class_of_its_pair(shapes):
    clips, labels = shapes[1]
    other = dict(BACKWARDS) | {b: a for a, b in BACKWARDS}
    assert np.mean([motion(c[::-1]) == other[y] for c, y in zip(clips, labels, strict=True)]) > 0.85


def test_a_mirrored_clip_shows_the_label_that_flip_labels_gives(shapes):
    clips, labels = shapes[1]
    other = dict(FLIP_LABELS) | {b: a for a, b in FLIP_LABELS}
    seen = [motion(c[:, :, ::-1]) == other.get(y, y) for c, y in zip(clips, labels, strict=True)]
    assert np.mean(seen) > 0.85


@pytest.mark.parametrize("moment", [0, 5, 11])
def test_single_frames_do_not_tell_the_class(shapes, moment):
    (train, known), (val, labels) = shapes
    train, val = (c[:, moment, ::2, ::2].reshape(len(c), -1).astype(np.float64) / 255 for c in (train, val))
    mean = train.mean(axis=0)
    train, val = train - mean, val - mean

    distance = (val**2).sum(1)[:, None] - 2 * val @ train.T + (train**2).sum(1)
    neighbour = known[distance.argmin(axis=1)]

    kernel = train @ train.T
    targets = np.eye(len(CLASSES))[known] - 1 / len(CLASSES)
    linear = (
        val @ train.T @ np.linalg.solve(kernel + kernel.trace() / 1000 * np.eye(len(kernel)), targets)
    ).argmax(1)
    # chance is 0.167 with a standard error of 0.034 over 120 videos
    assert np.mean(neighbour == labels) < 0.29
    assert np.mean(linear == labels) < 0.29


def test_the_frames_of_a_clip_without_their_order_do_not_tell_apart_the_classes_of_a_pair(shapes):
    """Mean and spread over time stay the same whatever the order; within pairs they are at chance, 0.5."""
    (train, known), (val, labels) = shapes
    train, val = (
        np.concatenate([f(c[:, :, ::4, ::4], axis=1).reshape(len(c), -1) for f in (np.mean, np.std)], axis=1)
        for c in (train, val)
    )
    right = []
    for pair in BACKWARDS:
        a, b = train[np.isin(known, pair)], val[np.isin(labels, pair)]
        nearest = ((b[:, None] - a[None]) ** 2).sum(2).argmin(1)
        right.append(known[np.isin(known, pair)][nearest] == labels[np.isin(labels, pair)])
    assert 0.3 < np.mean(right) < 0.7


def test_places_are_uniform_at_the_first_frame_and_at_the_last():
    """The bright shape's centre, over many clips of one class, covers the whole width at any moment."""
    for moment in (0, 7):
        centres = []
        for seed in range(120):
            clip = synthetic.moving_shape(
                "move_right", generator=np.random.default_rng(seed), size=(32, 32), frames=8
            )
            spread = clip[moment].astype(float).std(axis=2).sum(axis=0)
            centres.append(
                _circular_mean(np.repeat(np.arange(32), (spread > np.median(spread)) * 1), 32) % 32
            )
        counts = np.histogram(centres, bins=4, range=(0, 32))[0]
        assert counts.min() > 14  # 30 expected, standard deviation 4.7


def test_lists_label_every_file_and_are_balanced(tmp_path):
    lists = synthetic.render_moving_shapes(tmp_path, train=2, val=1, test=1, size=(32, 24), frames=3, fps=10)
    assert [p.name for p in lists] == ["train.csv", "val.csv", "test.csv"]
    assert list(CLASSES) == sorted(CLASSES)
    for path, count in zip(lists, (2, 1, 1), strict=True):
        entries = rows(path)
        assert [int(e["label"]) for e in entries] == [c for c in range(6) for _ in range(count)]
        assert all(CLASSES[int(e["label"])] == e["class"] == e["path"].split("/")[1] for e in entries)
        assert all(decoded(tmp_path / e["path"]).shape == (3, 24, 32, 3) for e in entries)
    assert not list(tmp_path.rglob(".part*"))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    def everything(name, seed, train):
        folder = tmp_path / name
        synthetic.render_moving_shapes(folder, train=train, val=1, test=0, seed=seed, size=(32, 32), frames=4)
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.mp4")}

    first, more, other = everything("a", 0, 1), everything("b", 0, 2), everything("c", 1, 1)
    assert first.items() <= more.items()  # a larger set holds the smaller one unchanged
    assert first.keys() == other.keys()
    assert all(first[k] != other[k] for k in first)
    assert len(set(more.values())) == len(more)  # no clip twice, within a split or across


def test_without_libx264_the_clips_are_still_written(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    path = synthetic.render_numbered(tmp_path / "n.mp4", frames=5)
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.name == "mpeg4"
    assert [number(f) for f in decoded(path)] == list(range(5))


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(UsageError):
        synthetic.render_moving_shapes(tmp_path, train=-1)
    with pytest.raises(UsageError):
        synthetic.render_numbered(tmp_path / "n.mp4", frames=0)
    with pytest.raises(EnvironmentFault, match="odd sizes"):
        synthetic.render_numbered(tmp_path / "n.mp4", frames=1, size=(33, 33))
    assert not list(tmp_path.iterdir())


@given(st.integers(0, synthetic.NUMBERS - 1), st.integers(16, 200), st.integers(6, 150))
def test_every_number_is_read_back_at_every_size(value, width, height):
    picture = numbered(value, (width, height))
    assert number(picture) == number(torch.from_numpy(picture)) == value


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mp4", {"size": (32, 12), "encoder": {"crf": "30"}}),
        ("a.mp4", {"size": (131, 97), "pixel_format": "yuv444p"}),
        ("a.mkv", {"encoder": {"bf": "3", "g": "250"}}),
        ("a.avi", {"codec": "mpeg4", "encoder": {"b": "100000"}}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.gif", {"codec": "gif", "pixel_format": "gray", "fps": 10}),
        ("a.ts", {"codec": "mpeg2video"}),
    ],
)
def test_numbers_survive_compression(tmp_path, name, options):
    path = synthetic.render_numbered(tmp_path / name, frames=40, **options)
    assert [number(f) for f in decoded(path)] == list(range(40))


def test_frames_are_shown_at_the_times_given(tmp_path):
    times = [0, 0.1, 0.15, 3, 3.04, 36_000]
    path = synthetic.render_numbered(tmp_path / "v.mp4", frames=6, times=times)
    with av.open(str(path)) as file:
        assert [f.time for f in file.decode(video=0)] == pytest.approx(times, abs=1e-4)
    path = synthetic.render_numbered(tmp_path / "c.mp4", frames=4, fps=30000 / 1001)
    with av.open(str(path)) as file:
        assert [f.time for f in file.decode(video=0)] == pytest.approx([i * 1001 / 30000 for i in range(4)])


@settings(max_examples=30)
@given(st.integers(0, synthetic.NUMBERS - 1))
def test_pictures_without_a_number_are_mostly_refused(value):
    for blank in (0, 255):
        with pytest.raises(MediaError, match="does not show"):
            number(np.full((48, 64, 3), blank, np.uint8))
    turned = numbered(value)[::-1, ::-1]
    try:
        assert (numbered(number(turned)) == turned).mean() > 0.9  # another valid picture, one time in 16
    except MediaError as error:
        assert error.code == "NOT_NUMBERED"


def test_a_numbered_video_reads_the_same_with_the_ffmpeg_program(tmp_path):
    if (ffmpeg := which("ffmpeg")) is None:
        pytest.skip("FFmpeg's program is not installed")
    path = synthetic.render_numbered(tmp_path / "n.mp4", frames=20, size=(64, 48))
    command = [ffmpeg, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    assert [number(f) for f in np.frombuffer(raw, np.uint8).reshape(-1, 48, 64, 3)] == list(range(20))


def test_darkness_is_a_share_of_the_light_with_shot_noise_and_a_cast():
    """A white wall under 5 % of a warm light: 20, 16 and 11 of 400 electrons, give or take their roots."""
    wall = np.full((8, 60, 60, 3), 255, np.uint8)
    dark = synthetic.darken(wall, generator=np.random.default_rng(0), exposure=0.05, noise=0.0)
    assert dark.dtype == np.uint8 and dark.shape == wall.shape
    electrons = (dark / 255.0) ** 2.2 * 400
    expected = np.array([20, 16, 11])
    assert electrons.mean((0, 1, 2)) == pytest.approx(expected, rel=0.02)
    assert electrons.std((0, 1, 2)) == pytest.approx(np.sqrt(expected), rel=0.05)
    again = synthetic.darken(wall, generator=np.random.default_rng(0), exposure=0.05, noise=0.0)
    assert np.array_equal(dark, again)
    black = synthetic.darken(np.zeros_like(wall), generator=np.random.default_rng(1), noise=2.0)
    assert 0.4 < (black == 0).mean() < 0.6, "reading noise alone, cut off at none"
