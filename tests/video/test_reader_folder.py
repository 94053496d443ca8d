"""Folders of numbered pictures: any numbering, gaps told, one decoder."""

import os
from pathlib import Path

import faults
import numpy as np
import pytest
from PIL import Image

from marey.errors import MediaError, UsageError
from marey.video.limits import Limits
from marey.video.reader import read_video


def fill(folder: Path, names: dict[str, int], *, size: tuple[int, int] = (64, 48), **options: object) -> Path:
    """Pictures by name, with the number that each shows."""
    folder.mkdir(exist_ok=True)
    for name, shown in names.items():
        Image.fromarray(faults.picture(shown, *size)).save(folder / name, **options)
    return folder


@pytest.mark.parametrize("template", [None, "img_{:05}.jpg", "img_{}.jpg"])
@pytest.mark.parametrize("first", [0, 1, 7, 98])
@pytest.mark.parametrize("padding", [1, 3, 5])
def test_any_first_number_and_padding_is_found(
    tmp_path: Path, template: str | None, first: int, padding: int
) -> None:
    folder = fill(tmp_path / "x", {f"img_{first + i:0{padding}}.jpg": i for i in range(12)})
    with read_video(folder, template=template) as video:
        assert (len(video), video.size, video.decoder) == (12, (64, 48), "pillow")
        assert faults.numbers(video.frames([11, 0, 5, 5])) == [11, 0, 5, 5]
        assert [note.code for note in video.notes] == ["FPS_ASSUMED"]
        np.testing.assert_allclose(video.timestamps, np.arange(12) / 25)
        assert video.seconds == pytest.approx(12 / 25)


def test_frames_may_begin_at_a_number(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {f"{i:04}.png": i for i in range(1, 21)})
    with read_video(folder, start=8, fps=10) as video:
        assert faults.numbers(video.frames(range(len(video)))) == list(range(8, 21))
        assert not video.notes
        assert (video.fps, video.seconds) == (pytest.approx(10), pytest.approx(1.3))
        assert video.at([0, 0.1, 1.25]).tolist() == [0, 1, 12]
    with pytest.raises(MediaError, match="from number 21 on"):
        read_video(folder, start=21)


def test_gaps_are_told_and_left_out(tmp_path: Path) -> None:
    kept = [1, 2, 5, 6, 7, 9, 20]
    folder = fill(tmp_path / "x", {f"img_{i:05}.jpg": i for i in kept})
    with read_video(folder, fps=25) as video:
        assert faults.numbers(video.frames(range(7))) == kept
        assert video.notes == (
            ("FRAMES_MISSING", "13 numbers are missing and left out: 3 to 4, 8, 10 to 19"),
        )
    with read_video(folder, start=1, fps=25) as video:
        assert len(video.notes) == 1
    with read_video(folder, start=0, fps=25) as video:
        assert "14 numbers are missing and left out: 0, 3 to 4" in video.notes[0].text


def test_png_gives_the_pixels_that_were_written(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {f"{i}.png": i for i in range(3)})
    with read_video(folder) as video:
        np.testing.assert_array_equal(video.frames([2, 1]), [faults.picture(2), faults.picture(1)])


def test_jpeg_is_decoded_as_pillow_does(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {"1.jpg": 1}, quality=60)
    with read_video(folder) as video, Image.open(folder / "1.jpg") as image:
        np.testing.assert_array_equal(video.frames([0])[0], np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_kind_become_rgb(tmp_path: Path, mode: str) -> None:
    gray = np.repeat(faults.picture(5)[:, :, :1], 3, axis=2)
    if mode == "I;16":
        image = Image.fromarray(gray[:, :, 0].astype(np.uint16) * 256 + 7)
    else:
        image = Image.fromarray(gray).quantize() if mode == "P" else Image.fromarray(gray).convert(mode)
    (tmp_path / "x").mkdir()
    image.save(tmp_path / "x" / "1.tif")
    with read_video(tmp_path / "x") as video:
        assert np.abs(video.frames([0])[0].numpy().astype(int) - gray).max() <= 8


def test_pictures_are_shown_upright(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6  # to be turned by 90 degrees clockwise
    folder = fill(tmp_path / "x", {"1.jpg": 9, "2.jpg": 10}, exif=tags)
    with read_video(folder, upright=False) as video:
        stored = video.frames([0, 1]).numpy()
        assert faults.numbers(stored) == [9, 10]
    with read_video(folder) as video:
        assert video.size == (48, 64)
        np.testing.assert_array_equal(video.frames([0, 1]), np.rot90(stored, -1, axes=(1, 2)))


def test_another_size_is_resized_and_told(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {"1.png": 1, "2.png": 2})
    fill(folder, {"3.png": 3}, size=(128, 96))
    with read_video(folder, fps=25) as video:
        assert faults.numbers(video.frames([0, 1, 2])) == [1, 2, 3]
        assert [note.code for note in video.notes] == ["SIZE_CHANGED"]


@pytest.mark.parametrize("thorough", [False, True])
def test_a_damaged_picture_shows_the_one_before_and_is_counted(tmp_path: Path, thorough: bool) -> None:
    folder = fill(tmp_path / "x", {f"{i:02}.jpg": i for i in range(6)}, quality=95)
    whole = (folder / "03.jpg").read_bytes()
    (folder / "03.jpg").write_bytes(whole[: len(whole) - 200])
    (folder / "00.jpg").write_bytes(b"")
    with read_video(folder, fps=25, thorough=thorough) as video:
        assert bool(video.notes) == thorough
        assert faults.numbers(video.frames(range(6))) == [1, 1, 2, 2, 4, 5]
        assert [note.code for note in video.notes] == ["FRAMES_DAMAGED"]
        assert "2 of the frames" in video.notes[0].text and "'00.jpg'" in video.notes[0].text


def test_several_series_need_a_template(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {f"img_{i:05}.jpg": i for i in range(4)})
    fill(folder, {f"flow_x_{i:05}.jpg": 10 + i for i in range(4)})
    with pytest.raises(UsageError, match=r"flow_x_\{\}\.jpg.*img_\{\}\.jpg"):
        read_video(folder)
    with read_video(folder, template="flow_x_{:05d}.jpg") as video:
        assert faults.numbers(video.frames(range(4))) == [10, 11, 12, 13]


@pytest.mark.parametrize("template", ["img.jpg", "{}_{}.jpg", "../{}.jpg", "{.jpg", "{0.__class__}/{}"])
def test_a_template_must_be_a_name_with_one_number(tmp_path: Path, template: str) -> None:
    folder = fill(tmp_path / "x", {"1.jpg": 1})
    with pytest.raises(UsageError) as error:
        read_video(folder, template=template)
    assert error.value.code == "TEMPLATE"


def test_a_folder_without_frames_is_not_media(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {"cover.jpg": 1})
    (folder / "1.txt").write_text("1")
    for template in (None, "img_{:05}.jpg"):
        with pytest.raises(MediaError) as error:
            read_video(folder, template=template)
        assert error.value.code == "NOT_MEDIA"


def test_pictures_that_are_none_are_not_decodable(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_text("<svg><image href='file:///etc/passwd'/></svg>")
    with pytest.raises(MediaError) as error:
        read_video(folder)
    assert error.value.code == "NOT_DECODABLE"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only where pipes have names")
def test_pipes_in_a_folder_are_left_out(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {"1.jpg": 1, "3.jpg": 3})
    os.mkfifo(folder / "2.jpg")
    with read_video(folder) as video:
        assert faults.numbers(video.frames([0, 1])) == [1, 3]


def test_limits_hold_for_folders(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {f"{i}.png": i for i in range(5)})
    for limits in (Limits(frames=4), Limits(pixels=64 * 48 - 1)):
        with pytest.raises(MediaError) as error:
            read_video(folder, limits=limits)
        assert error.value.code == "LIMIT_EXCEEDED"


def test_a_picture_that_goes_away_is_told(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", {f"{i}.png": i for i in range(5)})
    with read_video(folder) as video:
        (folder / "3.png").unlink()
        assert faults.numbers(video.frames([2])) == [2]
        with pytest.raises(MediaError) as error:
            video.frames([3])
        assert error.value.code == "MEDIA_CHANGED"


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_a_rate_must_be_above_zero(tmp_path: Path, fps: float) -> None:
    with pytest.raises(UsageError):
        read_video(fill(tmp_path / "x", {"1.jpg": 1}), fps=fps)
