"""What the machine allows: decoders alone, and copying memory; one thread."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import av
import decord
import numpy as np
import numpy.typing as npt

from marey.errors import EnvironmentFault
from marey.video.reader import decoder_choice

Ints = npt.NDArray[np.int64]

TAKEN_AT_ONCE = 32  # frames
RUNS = 3  # the best counts


def _usable() -> tuple[str, ...]:
    try:
        decoder_choice("torchcodec")
    except EnvironmentFault:
        return ("pyav",)
    return ("torchcodec", "pyav")


DECODERS = _usable()


def decode_rates(paths: Sequence[str]) -> dict[str, float]:
    """Frames per CPU second of each decoder that reads whole files from their beginning, without resizing.

    "FFmpeg" leaves the frames in YUV: the limit of all that decode with it. The others make RGB.
    """
    decoders = {"FFmpeg": _ffmpeg, "PyAV": _pyav, "decord": _decord}
    if "torchcodec" in DECODERS:
        decoders["torchcodec"] = _torchcodec
    return {name: _best(decode, paths) for name, decode in decoders.items()}


def _best(decode: Callable[[str], int], paths: Sequence[str]) -> float:
    """CPU time, as clocks on the wall also count what else the machine does."""
    rates = []
    for _ in range(RUNS):
        start = time.process_time()
        frames = sum(decode(path) for path in paths)
        rates.append(frames / (time.process_time() - start))
    return max(rates)


def _ffmpeg(path: str) -> int:
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return sum(1 for _ in container.decode(video=0))


def _pyav(path: str) -> int:
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return sum(len(frame.to_ndarray(format="rgb24")) > 0 for frame in container.decode(video=0))


def _decord(path: str) -> int:
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    for first, stop in pairwise([*range(0, len(reader), TAKEN_AT_ONCE), len(reader)]):
        reader.get_batch(list(range(first, stop))).asnumpy()
    return len(reader)


def _torchcodec(path: str) -> int:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    for first, stop in pairwise([*range(0, len(decoder), TAKEN_AT_ONCE), len(decoder)]):
        decoder.get_frames_in_range(first, stop)
    return len(decoder)


def key_frames(path: str) -> Ints:
    """The numbers of a file's key frames, in order of display."""
    with av.open(path) as container:
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    return np.flatnonzero([key for _, key in sorted(packets)])


def coded_frames(keys: Ints, wanted: Ints) -> int:
    """How many frames must be decoded for some: from the key frame at or before, up to each."""
    entry = np.searchsorted(keys, wanted, side="right") - 1
    return sum(int(wanted[entry == one].max() - keys[one]) + 1 for one in np.unique(entry))


def copy_rate(size: int = 1 << 28) -> float:
    """Bytes per second that numpy copies from memory to memory."""
    source, target, best = np.ones(size, np.uint8), np.ones(size, np.uint8), 0.0
    for _ in range(2 * RUNS):
        start = time.perf_counter()
        np.copyto(target, source)
        best = max(best, size / (time.perf_counter() - start))
    return best
