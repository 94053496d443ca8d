"""Files in every wrapping are read; hostile and damaged ones are refused by name, and nothing runs."""

import builtins
import io
import os
import pickle
import struct
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from marey.errors import WeightsError
from marey.models import build
from marey.weights import pickles
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
    "missing": (lambda p: p, "WEIGHTS_NOT_FOUND"),
    "a folder": (lambda p: p.mkdir() or p, "WEIGHTS_NOT_FOUND"),
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
