"""Files in every wrapping are read; hostile and damaged ones are refused by name, and nothing runs."""

import builtins
import importlib
import io
import marshal
import operator
import os
import pickle
import runpy
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from marey import pickles
from marey.errors import WeightsError
from marey.models import build
from marey.weights.load import load_weights
from marey.weights.reading import read_weights
from tests.weights.files import (
    TINY,
    AsNamed,
    Reduced,
    as_0x,
    as_1x,
    as_bare,
    as_parallel,
    lying,
    safetensors_with,
    tiny,
)


def same(got, want):
    return got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [as_0x, as_1x, as_parallel, as_bare])
def test_every_wrapping_gives_the_weights(tmp_path, wrap, legacy):
    weights = tiny()
    torch.save(
        wrap(weights), tmp_path / "file.pth", pickle_module=AsNamed if wrap is as_1x else pickle,
        _use_new_zipfile_serialization=not legacy,
    )  # fmt: skip
    tensors, metadata = read_weights(tmp_path / "file.pth")
    assert same(tensors, weights)
    assert metadata == {}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_bare_pickle_of_arrays_gives_tensors(tmp_path, protocol):
    arrays = {name: value.numpy() for name, value in tiny(3).items()}
    (tmp_path / "file.pkl").write_bytes(pickle.dumps({"state_dict": arrays}, protocol))
    assert same(read_weights(tmp_path / "file.pkl")[0], tiny(3))


def test_safetensors_of_others_give_tensors_and_metadata(tmp_path):
    save_file(tiny(3), tmp_path / "file.safetensors", {"format": "pt"})
    tensors, metadata = read_weights(tmp_path / "file.safetensors")
    assert same(tensors, tiny(3))
    assert metadata == {"format": "pt"}


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def pickled(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def with_extra(extra, **options):
    return lambda path: saved(path, {"state_dict": tiny(), "extra": extra}, **options)


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(30_000_000))
    assert path.stat().st_size < 100_000
    return path


def overlapping(path):
    """Three directory entries that share the data of one."""
    saved(path, tiny())
    data = path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    size, start = struct.unpack_from("<LL", data, end + 12)
    count = struct.unpack_from("<H", data, end + 10)[0]
    tail = bytearray(data[end:])
    struct.pack_into("<HHLL", tail, 8, 3 * count, 3 * count, 3 * size, start)
    path.write_bytes(data[:start] + 3 * data[start : start + size] + tail)
    return path


def traversal(path):
    saved(path, tiny())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/../../.profile", "x")
    return path


def cut(path, share, **options):
    data = saved(path, as_0x(tiny()), **options).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def loop(path):
    content = {}
    content["state_dict"] = content
    return saved(path, content)


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")
    return path


def written(path, data):
    path.write_bytes(data)
    return path


def big_endian(path):
    saved(path, tiny())
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else data)
    return path


def lying_pickle(path, data):
    """PyTorch's zip around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(40))
        archive.writestr("archive/version", "3\n")
    return path


def caffe2_array(kind, count):
    """{"conv1_w": an array of `count` items that brings four bytes}, as Python 2 writes it."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I%d\nt" % count
    dtype = b"cnumpy\ndtype\n(S'%s'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb" % kind
    return b"(dS'conv1_w'\n" + made + dtype + b"I00\nS'\\x00\\x00\\x00\\x00'\ntbs."


def many_times(path):
    """A megabyte that is written once and turned into bytes ten thousand times."""
    encode = b"c_codecs\nencode\nq\x00X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\x01"
    again = b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R0"
    return written(path, b"\x80\x02" + encode + again * 10_000 + b"}.")


# a tuple of one tuple twice, of one tuple twice, ... 64 deep
TUPLES = b")q\x000" + b"h\x00h\x00\x86q\x000" * 64 + b"h\x00"
PID = b"\x80\x02}X\x01\x00\x00\x00a(X\x07\x00\x00\x00storage%bX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\ntQs."
OLD = {"_use_new_zipfile_serialization": False}
COMMAND = Reduced(os.system, "touch pwned")
GADGETS = {
    "system command": (with_extra(COMMAND), "system"),
    "system command, legacy": (with_extra(COMMAND, **OLD), "system"),
    "eval": (with_extra(Reduced(builtins.eval, "open('pwned', 'w')")), "builtins.eval"),
    "exec in a bare pickle": (lambda p: pickled(p, Reduced(exec, "open('pwned', 'w')"), 4), "builtins.exec"),
    "getattr": (with_extra(Reduced(getattr, os.path.join, "__globals__")), "getattr"),
    "subprocess": (
        with_extra(Reduced(subprocess.Popen, ["touch", "pwned"]), pickle_protocol=3),
        "subprocess.Popen",
    ),
    "numpy load": (with_extra(Reduced(np.load, "/etc/passwd")), "numpy.load"),
    "object array": (lambda p: pickled(p, {"w": np.array([COMMAND])}), "any object"),
    "torch function": (with_extra(Reduced(torch.hub.load, "a/b", "c")), "torch.hub.load"),
    "file opened": (with_extra(Reduced(open, "pwned", "w")), "open"),
    "extension code": (lambda p: written(p, b"\x80\x02\x82\x01."), "EXT1"),
    "import": (with_extra(Reduced(importlib.import_module, "pwned")), "importlib.import_module"),
    "module run": (with_extra(Reduced(runpy.run_path, "pwned.py")), "runpy.run_path"),
    "call by attribute": (with_extra(Reduced(operator.methodcaller, "system")), "operator.methodcaller"),
    "chain of attributes": (
        lambda p: written(p, b"\x80\x04\x8c\x05torch\x8c\x15serialization.os.name\x93."),
        "torch.serialization.os.name",
    ),
    "compiled code": (with_extra(Reduced(marshal.loads, b"x")), "marshal.loads"),
    "pickle in a pickle": (with_extra(Reduced(pickle.loads, b"cos\nsystem\n.")), "pickle.loads"),
    "torch load in a pickle": (with_extra(Reduced(torch.load, "other.pth")), "torch.serialization.load"),
    "storage from a file": (
        lambda p: written(p, b"\x80\x02ctorch\nUntypedStorage.from_file\nX\x01\x00\x00\x00a\x85R."),
        "torch.UntypedStorage.from_file",
    ),
    "memory on demand": (with_extra(Reduced(bytearray, 10**12)), "builtins.bytearray"),
    "state of a class": (
        lambda p: written(p, b"\x80\x02cos\n_wrap_close\n)\x81}X\x04\x00\x00\x00procK\x01sb."),
        "os._wrap_close",
    ),
    "state of a function": (
        lambda p: written(p, b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."),
        "state of a Name",
    ),
    "text of Python 2": (lambda p: written(p, b"cos\nsystem\n(S'touch pwned'\ntR."), "os.system"),
    "blobs of Caffe2": (lambda p: pickled(p, {"blobs": {"conv1_w": COMMAND}}, 0), "system"),
    "blobs of Caffe2, instance": (
        lambda p: written(p, b"(dS'blobs'\n(ios\nsystem\n(S'touch pwned'\ns."),
        "INST",
    ),
    "object array of Caffe2": (
        lambda p: pickled(p, {"blobs": {"conv1_w": np.array([COMMAND])}}, 2),
        "any object",
    ),
}


@pytest.mark.parametrize("kind", GADGETS)
def test_a_file_that_asks_for_more_than_data_is_refused_with_the_name_of_what_it_asks_for(
    kind, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make, name = GADGETS[kind]
    model = build("tsn_r18", **TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(model, make(tmp_path / "file.pth"))
    assert error.value.code == "WEIGHTS_UNSAFE"
    assert name in error.value.message
    assert "file.pth" in error.value.message
    assert not (tmp_path / "pwned").exists()
    assert same(model.state_dict(), before)


HUGE = {"w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}
BROKEN = {
    "zip bomb": (zip_bomb, "WEIGHTS_LIMIT"),
    "overlapping entries": (overlapping, "WEIGHTS_LIMIT"),
    "names outside": (traversal, "WEIGHTS_UNSAFE"),
    "cut at half": (lambda p: cut(p, 0.5), "WEIGHTS_DAMAGED"),
    "cut near the end": (lambda p: cut(p, 0.99), "WEIGHTS_DAMAGED"),
    "legacy cut at half": (lambda p: cut(p, 0.5, **OLD), "WEIGHTS_DAMAGED"),
    "legacy cut early": (lambda p: cut(p, 0.01, **OLD), "WEIGHTS_DAMAGED"),
    "view beyond its memory": (lambda p: lying(p, size=(1000,)), "WEIGHTS_DAMAGED"),
    "huge view": (lambda p: lying(p, size=(10**14,)), "WEIGHTS_DAMAGED"),
    "repeated memory": (lambda p: lying(p, size=(10**9, 10**4), stride=(0, 0)), "WEIGHTS_DAMAGED"),
    "negative size": (lambda p: lying(p, size=(-3,)), "WEIGHTS_DAMAGED"),
    "huge memory": (lambda p: lying(p, size=(3,), declared=10**13), "WEIGHTS_DAMAGED"),
    "legacy, huge memory": (lambda p: lying(p, size=(3,), declared=10**13, legacy=True), "WEIGHTS_DAMAGED"),
    "legacy, too little memory": (lambda p: lying(p, size=(3,), declared=99, legacy=True), "WEIGHTS_DAMAGED"),
    "legacy, view beyond": (lambda p: lying(p, size=(1000,), legacy=True), "WEIGHTS_DAMAGED"),
    "big header": (lambda p: safetensors_with(p, b"{" + b" " * 20_000_000 + b"}"), "WEIGHTS_LIMIT"),
    "header beyond the file": (lambda p: written(p, struct.pack("<Q", 10**9) + b"{}"), "WEIGHTS_LIMIT"),
    "header that is no JSON": (lambda p: safetensors_with(p, b"{broken"), "WEIGHTS_DAMAGED"),
    "data beyond the file": (lambda p: safetensors_with(p, HUGE), "WEIGHTS_DAMAGED"),
    "no tensors": (lambda p: saved(p, {"state_dict": {"a": "text"}}), "WEIGHTS_FORMAT"),
    "a list": (lambda p: saved(p, [torch.zeros(3)]), "WEIGHTS_FORMAT"),
    "a loop of wrappings": (loop, "WEIGHTS_FORMAT"),
    "text": (lambda p: written(p, b"<!DOCTYPE html><title>Not found</title>"), "WEIGHTS_FORMAT"),
    "empty": (lambda p: written(p, b""), "WEIGHTS_FORMAT"),
    "noise": (lambda p: written(p, np.random.RandomState(0).bytes(999)), "WEIGHTS_FORMAT"),
    "a zip of something else": (other_zip, "WEIGHTS_DAMAGED"),
    "numbers in another order": (big_endian, "WEIGHTS_DAMAGED"),
    "two names for one memory": (lambda p: lying(p, size=(10,), declared=-10), "WEIGHTS_DAMAGED"),
    "text of Python 2, cut": (
        lambda p: written(p, b"(dp0\nS'blobs'\np1\n(dp2\nS'conv1_w"),
        "WEIGHTS_DAMAGED",
    ),
    "array with too little memory": (lambda p: written(p, caffe2_array(b"f4", 10**9)), "WEIGHTS_DAMAGED"),
    "array of gigantic texts": (lambda p: written(p, caffe2_array(b"U999999999", 1)), "WEIGHTS_DAMAGED"),
    "key of nested tuples": (lambda p: written(p, b"\x80\x02}" + TUPLES + b"K\x01s."), "WEIGHTS_LIMIT"),
    "key of nested tuples, zip": (
        lambda p: lying_pickle(p, b"\x80\x02}" + TUPLES + b"K\x01s."),
        "WEIGHTS_LIMIT",
    ),
    "key that nests deep": (
        lambda p: written(p, b"\x80\x02}" + b")" + b"\x85" * 2 * 10**5 + b"K\x01s."),
        "WEIGHTS_LIMIT",
    ),
    "set of nested tuples": (lambda p: written(p, b"\x80\x04\x8f(" + TUPLES + b"\x90."), "WEIGHTS_LIMIT"),
    "memory named by nested tuples": (
        lambda p: lying_pickle(p, PID % TUPLES),
        "WEIGHTS_DAMAGED",
    ),
    "keys with one hash": (
        lambda p: pickled(p, {k * (2**61 - 1): 0 for k in range(1, 50)}),
        "WEIGHTS_LIMIT",
    ),
    "one text made a thousand arrays": (many_times, "WEIGHTS_LIMIT"),
    "missing": (lambda p: p, "WEIGHTS_NOT_FOUND"),
    "an empty folder": (lambda p: p.mkdir() or p, "WEIGHTS_FORMAT"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_or_lying_file_is_refused_with_its_code(kind, tmp_path):
    make, code = BROKEN[kind]
    model = build("tsn_r18", **TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(model, make(tmp_path / "file.pth"))
    assert error.value.code == code
    assert "file.pth" in error.value.message
    assert error.value.message.isprintable()
    assert same(model.state_dict(), before)


def test_no_hostile_file_takes_memory_or_time(tmp_path):
    """All of them in one process that may have 1.5 GB and a minute: the largest of them declares 40 TB."""
    code = (
        "import resource, sys, time; from pathlib import Path\n"
        "from tests.weights.test_reading import BROKEN, GADGETS\n"
        "from marey.errors import WeightsError\n"
        "from marey.weights.reading import read_weights\n"
        "files = []\n"
        "for number, (make, _) in enumerate([*BROKEN.values(), *GADGETS.values()]):\n"
        "    files.append(make(Path(sys.argv[1], f'{number}.pth')))\n"
        "before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()\n"
        "for file in files:\n"
        "    try:\n"
        "        read_weights(file)\n"
        "    except WeightsError:\n"
        "        continue\n"
        "    sys.exit(f'{file} was read')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500_000  # kilobytes above what making the files took


def test_names_in_a_file_reach_no_terminal_raw(tmp_path):
    weights = tiny() | {"\x1b[2J\x07evil": torch.zeros(2)}
    with pytest.raises(WeightsError) as error:
        load_weights(build("tsn_r18", **TINY), weights)
    assert error.value.message.isprintable()
    with pytest.raises(WeightsError) as error:
        read_weights(written(tmp_path / "file.pth", b"\x80\x02c\x1b[2Jos\nsystem\n."))
    assert error.value.code == "WEIGHTS_UNSAFE"
    assert error.value.message.isprintable()


def test_an_endless_pickle_ends_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_OPCODES", 1000)
    with pytest.raises(WeightsError) as error:
        read_weights(written(tmp_path / "file.pth", b"\x80\x02" + b"N0" * 600 + b"cos\nsystem\n."))
    assert error.value.code == "WEIGHTS_LIMIT"


def test_random_damage_never_escapes_as_another_error(tmp_path):
    stream = np.random.RandomState(1)
    for legacy in (False, True):
        whole = io.BytesIO()
        torch.save(
            as_1x({"w": torch.arange(6.0)}),
            whole,
            pickle_module=AsNamed,
            _use_new_zipfile_serialization=not legacy,
        )
        for _ in range(60):
            data = bytearray(whole.getvalue())
            for place in stream.randint(0, len(data), 3):
                data[place] = stream.randint(256)
            (tmp_path / "file.pth").write_bytes(data)
            try:
                read_weights(tmp_path / "file.pth")
            except WeightsError as error:
                assert error.code.startswith("WEIGHTS_")
