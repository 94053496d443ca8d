"""`marey bank`: MMAction2's pickles become banks; banks are checked."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch

from marey import cli
from marey.data.bank import Bank, shard_files
from marey.errors import DataError, UsageError, WeightsError
from marey.jobs import bank as module
from marey.jobs.bank import check_bank, import_bank, model_hash
from marey.video.preprocess import Preprocess
from marey.weights.create import create_model, open_model
from marey.weights.native import save_checkpoint


def run(capsys, *words):
    """(exit code, stdout, stderr) of a command line."""
    old, sys.argv = sys.argv, ["marey", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = old
    return end.value.code, *capsys.readouterr()


def published(videos, dtype=torch.float32, channels=8):
    """A bank as MMAction2 saves it: vectors of a second are views of one tensor; or one table a second."""
    drawn = torch.Generator().manual_seed(len(videos))
    found = {}
    for number, video in enumerate(videos):
        found[video] = {}
        for second in range(902, 930, 1 + number):
            table = torch.randn(1 + second % 4, channels, generator=drawn).to(dtype)
            found[video][second] = table if number == 1 else list(table)
    return found


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_published_bank_is_imported_number_by_number(tmp_path, dtype, legacy):
    given = published(["vidA", "-b_c", "vidC"], dtype)
    torch.save(given, tmp_path / "lfb_train.pkl", _use_new_zipfile_serialization=not legacy)
    report = import_bank(tmp_path / "lfb_train.pkl", tmp_path / "bank")
    bank = Bank(tmp_path / "bank")
    count = sum(len(rows) for seconds in given.values() for rows in seconds.values())
    assert (report.videos, report.rows, len(bank), report.channels) == (3, count, count, 8)
    assert (report.first, report.last, report.most, report.problems) == (902, 929, 4, ())
    assert (report.dtype, report.model_sha256) == (str(dtype).removeprefix("torch."), None)
    for video, seconds in given.items():
        for second, rows in seconds.items():
            assert torch.equal(bank.rows(video, second)[0], torch.stack(list(rows)))


def test_arrays_of_numpy_and_another_precision_are_taken_too(tmp_path):
    given = {"v": {3: [np.arange(4, dtype=np.float32)], 4: np.ones((2, 4), np.float32)}}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(given))
    report = import_bank(tmp_path / "x.pkl", tmp_path / "bank", dtype="float16", window=4, per_step=2)
    assert (report.dtype, report.window, report.per_step) == ("float16", 4, 2)
    found = Bank(tmp_path / "bank").look_up([("v", 4)])
    assert found[0].tolist() == [*[[0] * 4] * 2, [0, 1, 2, 3], [0] * 4, *[[1] * 4] * 2, *[[0] * 4] * 2]


def test_parts_are_added_and_what_is_there_is_not_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 600)
    train, val = published(["a", "b", "c", "d"]), published(["v", "w"])
    torch.save(train, tmp_path / "lfb_train.pkl")
    torch.save(val, tmp_path / "lfb_val.pkl")
    import_bank(tmp_path / "lfb_train.pkl", tmp_path / "bank")
    files = shard_files(tmp_path / "bank")
    assert len(files) > 2
    files[0].unlink()  # as if interrupted before
    times = {file: file.stat().st_mtime_ns for file in files[1:]}
    assert import_bank(tmp_path / "lfb_train.pkl", tmp_path / "bank").videos == 4
    assert times == {file: file.stat().st_mtime_ns for file in files[1:]}
    assert files[0].exists()
    report = import_bank(tmp_path / "lfb_val.pkl", tmp_path / "bank")
    assert report.videos == len(Bank(tmp_path / "bank").videos) == 6
    torch.save(published(["w"]), tmp_path / "again.pkl")
    torch.save(published(["z"], torch.float16), tmp_path / "half.pkl")
    for name, text in (("again", "has 'w' already"), ("half", "holds another bank")):
        with pytest.raises(DataError, match=text) as error:
            import_bank(tmp_path / f"{name}.pkl", tmp_path / "bank")
        assert error.value.code == "BANK_MIXED"
    assert len(Bank(tmp_path / "bank").videos) == 6


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([1], "no dict"),
        ({}, "no dict"),
        ({"v": {}}, "no feature"),
        ({0: {902: [np.zeros(4)]}}, "paper's own banks"),
        ({"v": {"902": [np.zeros(4)]}}, "'902' of 'v' is no second"),
        ({"v": {902: [np.zeros(4), [0.0] * 4]}}, "second 902 of 'v'"),
        ({"v": {902: [np.zeros((2, 4))]}}, "second 902 of 'v'"),
        ({"v": {902: 5}}, "second 902 of 'v'"),
        ({"v": {902: np.zeros(())}}, "second 902 of 'v'"),
        ({"v": {902: [np.zeros(4)], 903: np.zeros(())}}, "second 903 of 'v'"),
        ({"v": {902: [np.zeros(4)], 903: [np.zeros(5)]}}, "not all of 4 numbers"),
    ],
)
def test_what_is_no_bank_is_refused_with_the_place(tmp_path, found, text):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(found))
    with pytest.raises(DataError, match=text) as error:
        import_bank(tmp_path / "x.pkl", tmp_path / "bank")
    assert error.value.code == "BANK_LAYOUT"
    assert not (tmp_path / "bank").exists()


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_nothing_of_a_pickle_is_run_and_changed_tensors_are_noticed(tmp_path, capsys):
    torch.save({"v": {902: [Evil()]}}, tmp_path / "evil.pkl")
    with pytest.raises(WeightsError, match="print") as error:
        import_bank(tmp_path / "evil.pkl", tmp_path / "bank")
    assert error.value.code == "WEIGHTS_UNSAFE"
    assert "run" not in capsys.readouterr().out
    torch.save({"v": {902: [torch.full((4,), 1.5)]}}, tmp_path / "x.pkl")
    data = (tmp_path / "x.pkl").read_bytes()
    (tmp_path / "x.pkl").write_bytes(data.replace(np.float32(1.5).tobytes(), np.float32(1.25).tobytes(), 1))
    with pytest.raises(WeightsError, match="has changed") as error:
        import_bank(tmp_path / "x.pkl", tmp_path / "bank")
    assert error.value.code == "WEIGHTS_DAMAGED"


def test_an_imported_bank_knows_whose_features_it_holds(tmp_path, capsys):
    model = create_model("slowonly_r50_det", 5, width=8)
    save_checkpoint(
        tmp_path / "base.safetensors",
        model,
        preprocess=Preprocess(),
        class_names=None,
        recipe={},
        metrics={},
    )
    torch.save(published(["v"]), tmp_path / "x.pkl")
    code, out, _ = run(
        capsys,
        *("bank", "import", tmp_path / "x.pkl", tmp_path / "bank", "--json"),
        *("--weights", tmp_path / "base.safetensors"),
    )
    told = json.loads(out)
    assert (code, told["model"], told["model_sha256"]) == (0, "slowonly_r50_det", model_hash(model))
    known = model_hash(open_model(tmp_path / "base.safetensors"))
    assert len(Bank(tmp_path / "bank", model_sha256=known)) == told["rows"]
    with torch.no_grad():
        model.head.bias[0] += 1
    with pytest.raises(UsageError, match="are needed") as error:
        Bank(tmp_path / "bank", model_sha256=model_hash(model))
    assert error.value.code == "BANK_MODEL"


def test_a_check_names_what_is_wrong_and_ends_with_3(tmp_path, capsys):
    torch.save(published(["v", "w"]), tmp_path / "x.pkl")
    import_bank(tmp_path / "x.pkl", tmp_path / "bank")
    code, out, _ = run(capsys, "bank", "check", tmp_path / "bank")
    assert (code, "problems  " in out, "videos" in out) == (0, True, True)
    (file,) = shard_files(tmp_path / "bank")
    data = bytearray(file.read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    start = head + json.loads(data[8:head])["features"]["data_offsets"][0]
    data[start] ^= 1
    file.write_bytes(data)
    assert check_bank(tmp_path / "bank").problems == (
        f"{file.name}: the features have changed since they were written",
    )
    code, out, _ = run(capsys, "bank", "check", tmp_path / "bank", "--json")
    assert (code, len(json.loads(out)["problems"])) == (3, 1)
    code, _, err = run(capsys, "bank", "check", tmp_path / "nothing")
    assert (code, "BANK_NOT_FOUND" in err) == (4, True)
