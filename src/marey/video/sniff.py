"""Which container a file is, told from its own bytes, and opening it without following where it points.

Only the containers listed here are read. FFmpeg is handed the open file and the one demuxer that belongs to
the container, so that neither a name nor a content (play lists, scripts) can make it open anything else.
What the outermost headers promise is read here too: it names a file that was cut short, and refuses an MP4
whose few bytes promise so many frames that listing them would fill the memory.
"""

import errno
import io
import os
import re
import stat
import weakref
from dataclasses import dataclass

from marey.errors import MediaError
from marey.video.limits import Limits, exceeded

# FFmpeg's demuxer -> how its files begin; from the formats' specifications
_BEGINNINGS = {
    "mp4": rb"\0.{3}(?:ftyp|moof|styp|sidx|wide|free|skip|pnot|uuid)|.{4}(?:moov|mdat)",  # ISO/IEC 14496-12
    "matroska": rb"\x1aE\xdf\xa3",
    "avi": rb"RIFF.{4}AVI[ X\x19]",
    "mpeg": rb"\0\0\x01\xba",
    "flv": rb"FLV\x01",
    "ogg": rb"OggS",
    "asf": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "gif": rb"GIF8[79]a",
    "mxf": rb"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01[\x02-\x04]",
    "ivf": rb"DKIF",
    "nut": rb"nut/multimedia container\0",
    "yuv4mpegpipe": rb"YUV4MPEG2 ",
    "mpegvideo": rb"\0\0\x01\xb3",
    "m4v": rb"\0\0\x01\xb0",
    "h264": rb"\0?\0\0\x01[\x09\x27\x47\x67]",  # access unit delimiter or sequence parameter set
    "hevc": rb"\0?\0\0\x01[\x40\x42\x46]\x01",
}
_CONTAINER = re.compile(
    b"|".join(b"(?P<%s>%s)" % (name.encode(), rule) for name, rule in _BEGINNINGS.items()), re.DOTALL
)
_OTHERS = (
    (
        rb"\s*(?:ffconcat |#EXTM3U|(?:<\?xml.{,200}?>.{,2000}?)?<(?:\w+:)?MPD|v=0\r?\n|\[playlist\])",
        "is a play list, which names other files or addresses; give the media files themselves",
    ),
    (
        rb"ID3|fLaC|RIFF.{4}WAVE|FORM.{4}AIF|\xff[\xe2-\xff][\x10-\xfe]|#!AMR|MThd",
        "is an audio file; give a video",
    ),
    (
        rb"\xff\xd8\xff|\x89PNG|BM.{4}\0{4}|RIFF.{4}WEBP|II\*\0|MM\0\*",
        "is a still image; give a video, or the folder of all frames",
    ),
    (
        rb"\s*(?:<|\{|\[|[\x20-\x7e\s]{64})",
        "is text, perhaps an error page in place of the download; fetch it again",
    ),
)
_STILL_BRANDS = (b"heic", b"heix", b"heim", b"mif1", b"avif")
_HOLD_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
_MOST_BOXES = 1_000_000  # ten hours recorded in one-second fragments have 300,000


class RawFile(io.FileIO):
    """An unbuffered file that says no, instead of raising, where a damaged container sends FFmpeg nowhere."""

    def seek(self, offset: int, whence: int = 0) -> int:
        """The new position, or below 0 where there is no such place."""
        try:
            return super().seek(offset, whence)
        except (OSError, OverflowError):
            return -errno.EINVAL


@dataclass
class MediaFile:
    """An open regular file; closed when forgotten.

    path     as the user named it
    raw      the file, unbuffered; handed to the decoders
    kind     FFmpeg's demuxer for it
    stamp    (size in bytes, time of last change) when it was opened
    end      where it ends according to its headers, in bytes; 0 where they do not say
    indexed  False for an MP4 without its index (`moov`)
    """

    path: str
    raw: RawFile
    kind: str
    stamp: tuple[int, int]
    end: int = 0
    indexed: bool = True


def open_media(path: str, limits: Limits) -> MediaFile:
    """Opens a video file, without waiting on pipes and devices.

    Raises MediaError NOT_FOUND, NO_ACCESS, NO_VIDEO (an audio file), NOT_MEDIA (not a regular file, or none
    of the containers above) or LIMIT_EXCEEDED (an MP4 that promises too many frames).
    """
    try:  # without O_NONBLOCK, opening a pipe waits for its writer
        raw = RawFile(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)))
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from error
    try:
        status = os.fstat(raw.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(
                "NOT_MEDIA", f"{path!r} is not a regular file; copy what it gives into a file first"
            )
        head = raw.read(4096)
        match = _CONTAINER.match(head)
        kind = str(match.lastgroup) if match else _other_kind(head, path)
        file = MediaFile(path, raw, kind, (status.st_size, status.st_mtime_ns))
        if kind == "mp4":
            _read_boxes(file, limits)
        elif kind in ("avi", "matroska"):
            file.end = _riff_end(raw, status.st_size) if kind == "avi" else _segment_end(head)
    except OSError as error:
        raw.close()
        raise cannot_read(path, error) from error
    except BaseException:
        raw.close()
        raise
    weakref.finalize(file, raw.close)
    return file


def _read_boxes(file: MediaFile, limits: Limits) -> None:
    """Walks the boxes of an MP4 for `file.end` and `file.indexed`; frame tables are only counted.

    Fields: ISO/IEC 14496-12, 4.2 (box), 8.4.3 (hdlr), 8.7.3 (stsz, stz2) and 8.8.8 (trun). Boxes that make no
    sense end the walk: FFmpeg will judge them.
    """
    place, ends, picture, in_fragments = 0, [file.stamp[0]], False, 0
    file.indexed = False
    for _ in range(_MOST_BOXES):
        while ends and place + 8 > ends[-1]:
            place = ends.pop()
        if not ends or in_fragments > 16 * limits.frames:  # fragments count sound too
            break
        file.raw.seek(place)
        head = file.raw.read(32)
        size, kind, fields = int.from_bytes(head[:4]), head[4:8], head[8:]
        if size == 1:  # the length follows in 64 bits
            size, fields = int.from_bytes(fields[:8]), fields[8:]
        end = place + size if size else ends[-1]
        if end < place + 8:
            break
        if kind == b"ftyp" and fields[:4] in _STILL_BRANDS:
            raise MediaError("NOT_MEDIA", f"{file.path!r} is a still image; give a video")
        if kind in (b"moov", b"mdat", b"moof"):
            file.indexed |= kind != b"mdat"
            file.end = max(file.end, end)
        elif kind == b"hdlr":
            picture = fields[8:12] == b"vide"
        elif kind == b"trun":
            in_fragments += int.from_bytes(fields[4:8])
        elif kind in (b"stsz", b"stz2") and picture and int.from_bytes(fields[8:12]) > limits.frames:
            count = int.from_bytes(fields[8:12])
            raise exceeded(file.path, f"has {count:,} frames", "frames", limits.frames)
        if kind in _HOLD_BOXES:
            ends.append(min(end, ends[-1]))
            place += len(head) - len(fields)
        else:
            place = end
    if ends and in_fragments > 16 * limits.frames:
        raise exceeded(file.path, f"has {in_fragments:,} samples", "frames", 16 * limits.frames)


def _other_kind(head: bytes, path: str) -> str:
    """The demuxer for transport streams; for all else the error that says what the file is."""
    if _is_transport_stream(head):
        return "mpegts"
    if not head:
        raise MediaError("NOT_MEDIA", f"{path!r} is empty; fetch or record it again")
    for rule, what in _OTHERS:
        if re.match(rule, head, re.DOTALL):
            raise MediaError("NO_VIDEO" if "audio" in what else "NOT_MEDIA", f"{path!r} {what}")
    raise MediaError(
        "NOT_MEDIA",
        f"{path!r} begins like no video container that is read here; convert it to MP4 or Matroska",
    )


def _is_transport_stream(head: bytes) -> bool:
    """A sync byte every 188 bytes (192 and 204 with time or parity), from anywhere in the first packet on."""
    for size in (188, 192, 204):
        for start in range(min(size, len(head) - 2 * size)):
            if set(head[start : start + 8 * size : size]) == {0x47}:
                return True
    return False


def _riff_end(raw: RawFile, size: int) -> int:
    """Where the last RIFF chunk of an AVI ends; large files have several."""
    end = 0
    while end + 8 <= size:
        raw.seek(end)
        head = raw.read(8)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):  # written to a pipe
            break
        end += 8 + length + length % 2
    return end if end > size + 1 else 0


def _segment_end(head: bytes) -> int:
    """Where a Matroska segment ends (RFC 9559): after its identifier stands a length, whose first byte begins
    with as many zero bits as bytes follow it; all bits after the first 1 being 1 mean that it is unknown."""
    place = head.find(b"\x18\x53\x80\x67") + 4
    if place < 4 or place >= len(head) or head[place] == 0:
        return 0
    width = 9 - head[place].bit_length()
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[place : place + width]) & unknown
    return 0 if length == unknown else place + width + length


# Errors -------------------------------------------------------------------------------------------------


def cannot_read(path: str, error: OSError | ValueError) -> MediaError:
    """NOT_FOUND, or NO_ACCESS for a file that the system does not let us read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        linked = os.path.islink(path)  # noqa: PTH114 - Path.is_symlink raises where it may not look
        what = "is a link to a file that does not exist" if linked else "does not exist"
        return MediaError("NOT_FOUND", f"{path!r} {what}; check the name")
    reason = getattr(error, "strerror", None) or error
    return MediaError("NO_ACCESS", f"{path!r} cannot be read: {reason}; check its permissions and its disk")


def changed(path: str) -> MediaError:
    """MEDIA_CHANGED, for a file that is no longer what it was."""
    return MediaError(
        "MEDIA_CHANGED", f"{path!r} changed while it was read; open it again when it is complete"
    )


def check_unchanged(file: MediaFile) -> None:
    """Raises MEDIA_CHANGED where the open file was written to; its name may be gone, or be another's."""
    status = os.fstat(file.raw.fileno())
    if (status.st_size, status.st_mtime_ns) != file.stamp:
        raise changed(file.path)
