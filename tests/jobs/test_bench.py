"""`marey bench`: the figures belong together, memory is seen, and a wrong network is not timed."""

import json

import msgspec
import pytest
import torch

from marey.errors import MareyError
from marey.jobs import bench as job
from marey.jobs.bench import bench, lines, parse_size, peak_memory
from marey.models import build
from marey.models.cost import macs
from marey.models.fold import folded
from marey.weights.create import create_model
from marey.weights.native import save_checkpoint
from tests.systems.conftest import marey

CPU = torch.device("cpu")


@pytest.mark.parametrize("train", [False, True])
def test_the_figures_of_a_row_belong_together(train):
    (row,) = bench(["tsn_r18"], size="2x32x48", batch=3, rounds=3, threads=1, train=train, device="cpu")
    middle, low, high = row.milliseconds
    assert low <= middle <= high
    assert row.clips_per_second == pytest.approx(3000 / middle)
    assert row.gmacs == pytest.approx(macs(build("tsn_r18"), (3, 2, 32, 48)) / 1e9)
    assert row.gmacs_per_second == pytest.approx(row.gmacs * row.clips_per_second * (3 if train else 1))
    assert (row.input, row.batch, row.threads, row.device) == ("2x32x48", 3, 1, "cpu")
    assert row.training == train and not row.compiled
    assert row.parameters == sum(p.numel() for p in build("tsn_r18").parameters())
    assert row.share > 0 and row.gemm > 0
    assert row.difference <= 1e-5


def test_patterns_give_their_networks_and_segments_follow_the_input():
    rows = bench(["tsm_r?8", "tsn_r18"], size="4x32x32", rounds=1, device="cpu")
    assert [row.model for row in rows] == ["tsm_r18", "tsn_r18"]
    head, *table = lines(rows)
    assert len({len(line) for line in (head, *table)}) == 1
    assert [line.split()[:3] for line in table] == [[name, "4x32x32", "1"] for name in ("tsm_r18", "tsn_r18")]


def test_without_a_size_clips_are_what_the_network_sees(tmp_path):
    model = create_model("tsn_r18", 3, width=8)
    for crop, seen in ((64, None), (64, 32)):
        fed = msgspec.structs.replace(model.preprocess, frames=2, crop=crop, short_side=crop, input_size=seen)
        path = tmp_path / f"{seen}.safetensors"
        save_checkpoint(path, model, preprocess=fed, class_names=None, recipe={}, metrics={})
        (row,) = bench([str(path)], rounds=1, device="cpu")
        assert row.input == f"2x{seen or crop}x{seen or crop}"


def test_threads_are_given_back():
    before = torch.get_num_threads()
    bench(["tsn_r18"], size="1x32x32", rounds=1, threads=before + 1, device="cpu")
    assert torch.get_num_threads() == before


def test_checkpointing_and_bf16_can_be_measured():
    (row,) = bench(
        ["csn_ir_r50"],
        size="4x32x32",
        batch=2,
        rounds=1,
        train=True,
        checkpoint_activations=True,
        device="cpu",
    )
    assert row.difference <= 1e-5
    (row,) = bench(["tsn_r18"], size="2x64x64", rounds=1, precision="bf16", device="cpu")
    assert 1e-5 < row.difference <= 0.1


def wrong(model):
    copy = folded(model)
    with torch.no_grad():
        copy.head.weight.mul_(1.001)
    return copy


def test_a_network_with_other_outputs_is_not_timed(monkeypatch):
    monkeypatch.setattr(job, "folded", wrong)
    with pytest.raises(MareyError, match="tsn_r18 differs") as error:
        bench(["tsn_r18"], size="2x32x32", rounds=1, device="cpu")
    assert error.value.code == "OUTPUT_DIFFERS"


def test_what_is_compiled_is_compared_and_what_cannot_be_is_said(monkeypatch):
    monkeypatch.setattr(torch, "compile", wrong)
    with pytest.raises(MareyError) as error:
        bench(["tsn_r18"], size="2x32x32", rounds=1, compiled=True, device="cpu")
    assert error.value.code == "OUTPUT_DIFFERS"

    def broken(model):
        def run(clip):
            raise RuntimeError("no compiler\nin the path")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(MareyError, match=r"no compiler$") as error:
        bench(["tsn_r18"], size="2x32x32", rounds=1, compiled=True, device="cpu")
    assert error.value.code == "COMPILE_FAILED"


@pytest.mark.parametrize("text", ["32x224", "32x224x224x3", "0x4x4", "-1x4x4", "axbxc", "1.5x4x4", ""])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(MareyError) as error:
        parse_size(text)
    assert error.value.code == "INPUT_SIZE"


def test_a_size_is_frames_height_width():
    assert parse_size("32X224x256") == (32, 224, 256)


def test_the_peak_is_seen_after_the_memory_is_given_back():
    with peak_memory(CPU) as peak:
        torch.ones(48 << 18)  # 48 MiB, freed at once
    if not peak:
        pytest.skip("this system does not tell")
    assert 47 << 20 <= peak[0] < 80 << 20
    with peak_memory(CPU) as peak:
        pass
    assert peak[0] < 16 << 20


def test_the_command_prints_one_json_document():
    done = marey("bench", "tsn_r18", "--input", "1x32x32", "--rounds", "2", "--device", "cpu", "--json")
    (row,) = json.loads(done.stdout)
    assert (done.returncode, row["model"], row["precision"]) == (0, "tsn_r18", "32")
    assert "measuring" in done.stderr
    done = marey("bench", "tsn_r18", "--precision", "16")
    assert (done.returncode, done.stdout) == (2, "")
    assert "bf16" in done.stderr
