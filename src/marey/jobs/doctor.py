"""`marey doctor`: what works on this machine and what does not; and the facts that results record.

Packages are imported inside functions: here, one that is broken is a finding, not the end.
"""

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from marey.errors import MareyError

GIB = 1 << 30
LIBRARIES = ("libavcodec", "libavformat", "libavutil", "libswscale")
IMPORTED_AS = {"pillow": "PIL"}  # the others are imported by their own names

State = Literal["ok", "warning", "broken"]


class Check(NamedTuple):
    """One thing tried. "broken": Marey cannot work; "warning": something is slower, smaller or missing."""

    name: str
    state: State
    text: str


def environment() -> dict[str, Any]:
    """Versions, decoder and devices, as plain JSON values; the same each time on an unchanged machine.

    marey, python, platform   versions
    packages                  version of each package that Marey requires or can use; None: not installed
    ffmpeg                    versions of FFmpeg's libraries in PyAV, and of the FFmpeg that torchcodec found
    decoder                   name and reason, which `read_video` would choose here; name None: it cannot
    cuda                      version that torch was built for, or None
    devices                   the processor, then the accelerators, each with its memory in bytes
    threads                   cores this process may use, and torch's threads
    """
    import torch

    return _versions() | {
        "ffmpeg": _ffmpeg(),
        "decoder": _decoder(),
        "cuda": torch.version.cuda,
        "devices": [_processor(), *_accelerators()],
        "threads": {"cores": cores(), "torch": torch.get_num_threads()},
    }


def doctor() -> dict[str, Any]:
    """`ok`, `checks` (name, state, text), `cache`, `disk` and `memory` (bytes free), and `environment`.

    `ok` is False when something that Marey needs is broken; warnings leave it True. Where a package cannot
    even be imported, that is the only check, and `environment` holds versions only.
    """
    checks = list(_packages())
    usable = not checks
    if usable:
        checks = list(_checks())
    return {
        "ok": all(check.state != "broken" for check in checks),
        "checks": [check._asdict() for check in checks],
        "cache": str(_cache_folder()) if usable else None,
        "disk": {str(folder): shutil.disk_usage(folder).free for folder in _folders()} if usable else {},
        "memory": _memory(),
        "environment": environment() if usable else _versions(),
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """What `doctor` found, for people."""
    found, memory = facts["environment"], facts["memory"]
    packages = (f"{name} {version}" for name, version in found["packages"].items() if version)
    rows = [
        ("Marey", f"{found['marey']}, Python {found['python']}, {found['platform']}"),
        ("packages", ", ".join(packages)),
        *(_media_rows(found) if "ffmpeg" in found else ()),
        ("memory", f"{_bytes(memory['available'])} free of {_bytes(memory['total'])}"),
        *([("cache", facts["cache"])] if facts["cache"] else ()),
        *((check["state"], f"{check['name']}: {check['text']}") for check in facts["checks"]),
    ]
    verdict = "everything needed works" if facts["ok"] else "something needed is broken, see above"
    return [f"{name:>8}  {text}" for name, text in rows] + ["", verdict]


def _media_rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    libraries = " ".join(f"{name} {version}" for name, version in found["ffmpeg"]["pyav"].items())
    yield "FFmpeg", f"in PyAV: {libraries}"
    yield "FFmpeg", f"for torchcodec: {found['ffmpeg']['torchcodec'] or found['ffmpeg']['torchcodec_error']}"
    yield "decoder", f"{found['decoder']['name']}: {found['decoder']['reason']}"
    for device in found["devices"]:
        text = f"{device['name']}: {device['model']} {device['capability']}"
        yield "device", f"{text}, {_bytes(device['memory'])}"
    yield "threads", f"{found['threads']['torch']} of torch on {found['threads']['cores']} cores"


def required() -> list[str]:
    """Names of the packages that Marey requires, from its metadata, extras left out."""
    try:
        wanted = importlib.metadata.requires("marey") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return ["torch", "av", "numpy"]
    return [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in wanted if "extra ==" not in text]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Checks -----------------------------------------------------------------------------------------------


def _packages() -> Iterator[Check]:
    """The required packages that are missing or cannot be imported."""
    for package in required():
        try:
            importlib.import_module(IMPORTED_AS.get(package.lower(), package.replace("-", "_")))
        except Exception as error:  # a broken binary may raise anything
            text = f"cannot be imported: {_line(error)}; run: pip install --force-reinstall {package}"
            yield Check(package, "broken", text)


def _checks() -> Iterator[Check]:
    import av
    import torch

    yield _tried("compute", "broken", _compute)
    choice = _decoder()
    if choice["name"] is None:
        yield Check("decoder", "broken", f"{choice['reason']}")
    yield _tried("decode with pyav", "broken", lambda: _decode("pyav"))
    if _version("torchcodec"):
        yield _tried("decode with torchcodec", "warning", lambda: _decode("torchcodec"))
    if "libx264" not in av.codecs_available:
        yield Check("encode", "warning", "PyAV has no libx264; the demo writes MPEG-4 videos instead")
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        yield Check(
            "gpu", "warning", "there is an NVIDIA driver, but this torch cannot use it; see pytorch.org"
        )
    for folder in _folders():
        yield _disk(folder)
    free = _memory()["available"]
    if free is not None and free < 2 * GIB:
        yield Check("memory", "warning", f"{_bytes(free)} free; use small batches and few data.workers")


def _tried(name: str, worst: State, attempt: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", attempt())
    except Exception as error:  # whatever it is, it is what the user came to know
        return Check(name, worst, _line(error))


def _line(error: Exception) -> str:
    text = error.message if isinstance(error, MareyError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def _compute() -> str:
    """A small convolution on every device, compared with the same on the processor."""
    import torch

    weight, clip = torch.ones(2, 3, 3, 3, 3), torch.arange(375.0).reshape(1, 3, 5, 5, 5)
    expected = torch.nn.functional.conv3d(clip, weight)
    names = ["cpu", *(device["name"] for device in _accelerators())]
    for name in names[1:]:
        got = torch.nn.functional.conv3d(clip.to(name), weight.to(name)).cpu()
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1.0)
    return f"a convolution gives the right numbers on {', '.join(names)}"


def _decode(decoder: Literal["pyav", "torchcodec"]) -> str:
    """Write a numbered video, read frames of it out of order and look at their numbers."""
    from marey.video.reader import read_video
    from marey.video.synthetic import number, render_numbered

    wanted = [0, 29, 7, 7, 18]
    with tempfile.TemporaryDirectory() as folder:
        path = render_numbered(Path(folder) / "numbered.mp4", frames=30)
        with read_video(path, decoder=decoder) as video:
            seen = [number(frame) for frame in video.frames(wanted)]
    if seen != wanted:
        raise MareyError("DECODER_WRONG", f"frames {wanted} were asked for, {seen} came")
    return "the frames asked for came"


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Check(
            "disk", "warning", f"{folder} is not writable; work in another folder, or set MAREY_CACHE"
        )
    if free < GIB:
        return Check("disk", "warning", f"only {_bytes(free)} free in {folder}")
    return Check("disk", "ok", f"{folder} is writable, {_bytes(free)} free")


def _folders() -> list[Path]:
    """The working folder and the nearest existing one to the cache folder."""
    cache = _cache_folder().absolute()
    return [Path.cwd(), next(folder for folder in (cache, *cache.parents) if folder.is_dir())]


def _cache_folder() -> Path:
    from marey.weights.published import cache_folder

    return cache_folder()


# Facts ------------------------------------------------------------------------------------------------


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, Any]:
    return {
        "marey": _version("marey"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in (*required(), "torchcodec")},
    }


def _ffmpeg() -> dict[str, Any]:
    import av

    found = {name: ".".join(map(str, av.library_versions[name])) for name in LIBRARIES}
    version, error = _torchcodec()
    return {"pyav": found, "torchcodec": version, "torchcodec_error": error}


def _decoder() -> dict[str, str | None]:
    from marey.video.reader import decoder_choice

    try:
        name, reason = decoder_choice()
    except MareyError as error:  # MAREY_DECODER names one that is not there
        return {"name": None, "reason": error.message}
    return {"name": name, "reason": reason}


def _torchcodec() -> tuple[str | None, str | None]:
    """The version of FFmpeg that torchcodec loaded, or why it could not be loaded."""
    if _version("torchcodec") is None:
        return None, "not installed"
    try:
        core = importlib.import_module("torchcodec._core")
        return str(core.get_ffmpeg_library_versions()["ffmpeg_version"]), None
    except Exception as error:  # its loader raises RuntimeError with a page of text, or ImportError
        return None, _line(error)


def _processor() -> dict[str, Any]:
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)):
        model = found[1]
    capability = torch.backends.cpu.get_cpu_capability()
    return {"name": "cpu", "model": model, "capability": capability, "memory": _memory()["total"]}


def _accelerators() -> list[dict[str, Any]]:
    import torch

    from marey.training.devices import accelerators

    found: list[dict[str, Any]] = []
    for name in accelerators():
        facts: dict[str, Any] = {"name": name, "model": "Apple GPU", "capability": "", "memory": None}
        if name.startswith("cuda"):
            card = torch.cuda.get_device_properties(name)
            facts |= {"model": card.name, "capability": f"{card.major}.{card.minor}"}
            facts["memory"] = card.total_memory
        found.append(facts)
    return found


def _memory() -> dict[str, int | None]:
    """Bytes of main memory: total and available; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found = re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        kib: dict[str, str] = dict(found)
        return {
            "total": int(kib["MemTotal"]) << 10,
            "available": int(kib.get("MemAvailable", kib["MemFree"])) << 10,
        }
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    return {"total": pages, "available": None}


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / GIB:.1f} GiB"
