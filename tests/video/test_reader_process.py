"""Videos in several processes, over many opens, and quiet on standard error."""

import gc
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import faults
import pytest
import torch

from marey.errors import MediaError
from marey.video.reader import Video, read_video
from marey.video.torchcodec import load_torchcodec

needs_torchcodec = pytest.mark.skipif(load_torchcodec()[1] != "", reason="torchcodec is optional")
DECODERS = ("pyav", pytest.param("torchcodec", marks=needs_torchcodec))
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("decoder", DECODERS)
def test_after_a_fork_both_processes_read_the_right_frames(
    tmp_path: Path, decoder: str, threads: int
) -> None:
    path = faults.write(tmp_path / "x.mp4", 60, options=faults.CLOSED_GOPS)
    video = read_video(path, decoder=decoder, threads=threads)
    assert faults.numbers(video.frames([30, 31])) == [30, 31]
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            result = 1
            try:
                for i in range(59, 0, -7):
                    assert faults.numbers(video.frames([i, i - 1])) == [i, i - 1]
                video.close()
                result = 0
            finally:
                os._exit(result)
        children.append(child)
    for i in range(5, 60, 3):
        assert faults.numbers(video.frames([i])) == [i]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert faults.numbers(video.frames([32])) == [32]
    video.close()


@needs_fork
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_forked_process_ends_although_it_has_the_threads_of_its_parent(
    tmp_path: Path, decoder: str
) -> None:
    path = faults.write(tmp_path / "x.mp4", 60)
    code = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from marey.video.reader import read_video\n"
        "unused, used = [read_video(sys.argv[1], decoder=sys.argv[2], threads=4) for _ in range(2)]\n"
        "for video in (unused, used): video.frames([3])\n"
        "if os.fork() == 0:\n"
        "    used.frames([30, 4])\n"
        "else:\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    run = [sys.executable, "-c", code, str(path), decoder]
    assert subprocess.run(run, capture_output=True, timeout=60).returncode == 0


def first_number(video: Video) -> int:
    return faults.number(video.frames([7])[0])


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_worker_processes_read_a_video_opened_before(tmp_path: Path) -> None:
    video = read_video(faults.write(tmp_path / "x.mp4", 10))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(first_number, [video] * 6) == [7] * 6
    video.close()


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_pickled_video_opens_its_file_again(tmp_path: Path, decoder: str) -> None:
    path = faults.write(tmp_path / "x.mp4", 60)
    video = read_video(path, decoder=decoder)
    # safe, here and below: the bytes were pickled in the same line
    copy = pickle.loads(pickle.dumps(video))
    assert (len(copy), copy.size, copy.fps, copy.notes) == (60, (64, 48), video.fps, video.notes)
    assert torch.equal(copy.frames([50, 3]), video.frames([50, 3]))
    assert copy.decoder == decoder
    copy.close()
    video.close()
    path.unlink()
    with pytest.raises(MediaError) as error:
        pickle.loads(pickle.dumps(video)).frames([0])
    assert error.value.code == "NOT_FOUND"


def test_a_closed_video_opens_its_file_again(tmp_path: Path) -> None:
    video = read_video(faults.write(tmp_path / "x.mp4", 10))
    video.close()
    video.close()
    assert faults.numbers(video.frames([4])) == [4]
    video.close()


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.mark.parametrize("decoder", DECODERS)
def test_files_and_memory_stay_flat_over_many_opens(tmp_path: Path, decoder: str) -> None:
    path = faults.write(tmp_path / "x.mp4", 10)
    broken = faults.index_at_end_cut(tmp_path / "y.mp4")
    turned = faults.turned(tmp_path / "z.mp4", 90)

    def use(times: int) -> tuple[int, int]:
        for i in range(times):
            video = read_video(path, decoder=decoder)
            video.frames([0, 9, 3])
            if i % 2:
                video.close()  # else by being forgotten
            read_video(turned, decoder=decoder).frames([1])
            with pytest.raises(MediaError):
                read_video(broken, decoder=decoder)
        del video
        gc.collect()
        return open_files(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    files, memory = use(60)
    files_then, memory_then = use(300)
    assert files_then == files
    assert memory_then - memory < 10_000  # kilobytes, over 900 opens


def test_a_forgotten_video_closes_its_file(tmp_path: Path) -> None:
    path = faults.write(tmp_path / "x.mp4", 10)
    gc.disable()
    try:
        before = open_files()
        video = read_video(path, decoder="pyav")
        assert open_files() == before + 1
        video.frames([3])
        del video
        assert open_files() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_write_nothing_to_standard_error(tmp_path: Path, decoder: str) -> None:
    paths = [
        faults.flipped_bits(tmp_path / "1.mp4"),
        faults.index_in_front_cut(tmp_path / "2.mp4"),
        faults.index_at_end_cut(tmp_path / "3.mp4"),
        faults.begun_inside_a_group(tmp_path / "4.ts"),
        faults.without_times(tmp_path / "5.h264"),
        faults.packed_bitstream(tmp_path / "6.avi"),
        faults.write(tmp_path / "7.mp4", 10, pixels="yuvj420p"),
    ]
    code = (
        "import sys\n"
        "from marey.errors import MareyError\n"
        "from marey.video.reader import read_video\n"
        "for path in sys.argv[2:]:\n"
        "    try:\n"
        "        with read_video(path, decoder=sys.argv[1]) as video: video.frames(range(len(video)))\n"
        "        read_video(path, thorough=True).close()\n"
        "    except MareyError as error: print(error.code)\n"
    )
    run = [sys.executable, "-W", "error", "-X", "dev", "-c", code, decoder, *map(str, paths)]
    # warnings of torch itself, while it is imported, are not ours
    run[2:3] = ["error:::marey"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["NOT_DECODABLE"]
    assert "h264" not in done.stderr and "mpeg4" not in done.stderr and "marey" not in done.stderr
