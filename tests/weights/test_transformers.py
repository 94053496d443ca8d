"""Files of PySlowFast, AlphAction, Video Swin and UniFormer: spellings, starts from images, other sizes."""

import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from marey.errors import WeightsError
from marey.models import build
from marey.weights.load import load_weights, recognise
from tests.models.published import table_of
from tests.models.small import SLIM
from tests.oracles import filled, load_case, mmaction_table, relative_error
from tests.weights.files import as_parallel

TABLES = load_case(Path(__file__).parent / "oracles" / "transformer_tables.json")
SMALL = dict(SLIM)
LEAVES = {"weight": "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}


def caffe2_blob(name):
    """What Caffe2's files call a tensor of PySlowFast; None for counters."""
    place, _, leaf = name.rpartition(".")
    if leaf == "num_batches_tracked":
        return None
    leaf = "s" if leaf == "weight" and place.endswith("bn") else LEAVES[leaf]
    fast = "t_" if "pathway1" in name or "_fuse" in name else ""
    if place == "head.projection":
        return f"pred_{leaf}"
    if "stem" in place:
        return f"{fast}{'res_conv1_bn' if place.endswith('bn') else 'conv1'}_{leaf}"
    if hit := re.fullmatch(r"s(\d)_fuse\.(conv_f2s|bn)", place):
        last = {2: 2, 3: 3, 4: 5}
        at = "pool1" if hit[1] == "1" else f"res{hit[1]}_{last[int(hit[1])]}_branch2c_bn"
        return f"t_{at}_subsample{'_bn' if hit[2] == 'bn' else ''}_{leaf}"
    stage, block, branch = re.fullmatch(r"s(\d)\.pathway\d_res(\d+)\.(.+)", place).groups()
    return f"{fast}res{stage}_{block}_{branch.replace('.', '')}_{leaf}"


def slowfast(**options):
    torch.manual_seed(0)
    return build("slowfast_r50", 5, **SMALL["slowfast_r50"], **options).eval()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def refused(model, weights):
    before = state(model)
    with pytest.raises(WeightsError) as error:
        load_weights(model, weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return error.value.code


def test_blobs_are_called_as_the_projects_own_converter_says():
    model = build("slowfast_r50", 400)
    names = [name for name in table_of(model, "pyslowfast") if caffe2_blob(name)]
    lines = "\n".join(sorted(f"{caffe2_blob(name)} {name}" for name in names))
    assert (len(names), zlib.crc32(lines.encode())) == (552, 2411970592)
    value = torch.zeros(1)
    from_blobs = recognise({caffe2_blob(name): value for name in names})
    assert not from_blobs.unknown
    assert {
        ours: caffe2_blob(name) for ours, name in recognise(dict.fromkeys(names, value)).filled.items()
    } == (from_blobs.filled)


@torch.inference_mode()
def test_a_caffe2_file_and_a_pytorch_file_give_the_same_network(tmp_path):
    weights = filled(table_of(slowfast(), "pyslowfast"))
    blobs = {
        caffe2_blob(name): np.squeeze(value.numpy(), tuple(range(2, value.ndim)))
        if value.shape[2:].numel() == 1 and value.ndim > 2
        else value.numpy()
        for name, value in weights.items()
        if caffe2_blob(name)
    }
    solver = {"conv1_w_momentum": blobs["conv1_w"], "lr": np.float32(0.1), "model_iter": np.int64(3)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": {**blobs, **solver}}, 2))
    torch.save(as_parallel(weights), tmp_path / "b.pyth")
    first, second = slowfast(), slowfast()
    report = load_weights(first, tmp_path / "a.pkl")
    assert (report.source, report.head, report.loaded) == ("pyslowfast", "loaded", len(blobs))
    assert set(report.left_out) == set(solver)
    assert load_weights(second, tmp_path / "b.pyth").loaded == len(weights)
    clip = torch.randn(1, 3, 8, 64, 64)
    assert torch.equal(first(clip), second(clip))


@torch.inference_mode()
def test_slow_files_load_into_slowonly():
    torch.manual_seed(0)
    names = {}
    table = mmaction_table(50, time=(1, 1, 3, 3), width=8, classes=5)
    for name in table:
        place = name.replace("backbone.conv1.", "s1.pathway0_stem.").replace(
            "cls_head.fc_cls", "head.projection"
        )
        if hit := re.fullmatch(r"backbone\.layer(\d)\.(\d)\.(conv(\d)|downsample)\.(conv|bn)\.(\w+)", name):
            branch = f"branch2.{' abc'[int(hit[4])]}" if hit[4] else "branch1"
            norm = "_bn" if hit[5] == "bn" else ""
            place = f"s{int(hit[1]) + 1}.pathway0_res{hit[2]}.{branch}{norm}.{hit[6]}"
        names[name] = place
    weights = filled(table)
    first, second = (build("slowonly_r50", 5, width=8).eval() for _ in range(2))
    assert load_weights(first, weights).source == "mmaction2"
    report = load_weights(second, {names[name]: value for name, value in weights.items()})
    assert (report.source, report.head, report.fresh) == ("pyslowfast", "loaded", ())
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(first(clip), second(clip))
    blobs = {caffe2_blob(names[name]): value for name, value in weights.items() if caffe2_blob(names[name])}
    report = load_weights(build("slowonly_r50", 5, width=8), blobs)
    assert (report.source, report.loaded) == ("pyslowfast", len(blobs))


@pytest.mark.parametrize("file", ["pyslowfast", "mmaction2"])
def test_a_slowfast_of_another_style_is_refused(file):
    other = {"pyslowfast": "mmaction2", "mmaction2": "pyslowfast"}[file]
    weights = filled(table_of(slowfast(style=file), file))
    assert load_weights(slowfast(style=file), weights).head == "loaded"
    assert refused(slowfast(style=other), weights) == "WEIGHTS_MISMATCH"
    assert refused(slowfast(style=file, lateral_kernel=5), weights) == "WEIGHTS_MISMATCH"


def test_alphactions_own_file_starts_nightcrawlers_network():
    name = "slowfast_r101_alphaction"
    model = build(name, 5, **SMALL[name])
    plain = filled(table_of(model, "alphaction", optional=False))
    assert load_weights(model, {"model_state": plain}).head == "loaded"
    tuned = state(model)
    start = {f"module.backbone.{n}": v for n, v in plain.items() if not n.startswith("projection.")}
    start["module.cls_head.pred.weight"] = torch.zeros(700, 2304)
    start["module.cls_head.pred.bias"] = torch.zeros(700)
    model = build(name, 5, **SMALL[name])
    report = load_weights(model, {"model": start})
    assert (report.source, report.head, report.fresh) == ("alphaction", "fresh", ("head.bias", "head.weight"))
    assert sorted(report.left_out) == ["cls_head.pred.bias", "cls_head.pred.weight"]
    assert all(torch.equal(v, tuned[n]) for n, v in model.state_dict().items() if not n.startswith("head."))


def test_mmaction2_calls_swins_last_norm_by_another_name():
    model = build("swin3d_t", 5, **SMALL["swin3d_t"])
    weights = filled(table_of(model, "video-swin", optional=False))
    weights["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(
        36, 36, dtype=torch.int64
    )
    load_weights(model, weights)
    first = state(model)
    renamed = {name.replace("backbone.norm.", "backbone.norm3."): value for name, value in weights.items()}
    assert renamed.keys() != weights.keys()
    report = load_weights(model, renamed)
    assert (report.source, report.fresh, len(report.left_out)) == ("video-swin", (), 1)
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())


def check(values, wanted):
    """The tensors of a case: shape, mean, spread and single numbers."""
    for name, want in wanted.items():
        if not isinstance(want, str):
            value = values[name]
            assert list(value.shape) == want["shape"], name
            places, numbers = zip(*want["at"], strict=True)
            assert value.flatten()[list(places)].tolist() == pytest.approx(numbers, rel=1e-4, abs=1e-6), name
            assert (value.mean().item(), value.std(correction=0).item()) == pytest.approx(
                (want["mean"], want["std"]), rel=1e-4, abs=1e-7
            ), name


def read_back(model, weights):
    """The network's values by the names of a file."""
    own = model.state_dict()
    return {theirs: own[ours] for ours, theirs in recognise(weights).filled.items() if ours in own}


@pytest.mark.parametrize("case", TABLES["swin_2d_to_3d"], ids=lambda c: str(c["window"]))
def test_a_2d_swin_starts_a_3d_one_as_upstream(case):
    window, rows = tuple(case["window"]), case["image_table_rows"]
    model = build("swin3d_t", 5, channels=12, depths=(1, 1), heads=(3, 6), window=window)
    shapes = {}
    for name, shape in table_of(model, "swin", optional=False).items():
        shapes[name] = (rows, shape[1]) if name.endswith("bias_table") else shape
    shapes["patch_embed.proj.weight"] = (12, 3, 4, 4)
    shapes |= {"head.weight": (1000, 24), "head.bias": (1000,), "layers.0.blocks.0.attn_mask": (4, 49, 49)}
    given = {name: tuple(shape) for name, (shape, _) in case["image_state_dict"].items()}
    assert given.items() <= shapes.items()
    weights = filled(shapes, case["salt"])
    report = load_weights(model, {"model": weights})
    assert (report.source, report.head, len(report.resized)) == ("swin", "fresh", 2)
    check(read_back(model, weights), case["after"])


def test_a_2d_uniformer_starts_a_3d_one_as_upstream():
    case = TABLES["uniformer_2d_to_3d"]
    model = build("uniformer_s", case["classes_of_the_video_model"], depths=(1, 1, 1, 1))
    shapes = {}
    for name, shape in table_of(model, "uniformer").items():
        shapes[name] = (*shape[:2], *shape[3:]) if len(shape) == 5 else shape
    shapes |= {"head.weight": (1000, 512), "head.bias": (1000,)}
    given = {name: tuple(shape) for name, (shape, _) in case["image_state_dict"].items()}
    assert given.items() <= shapes.items()
    weights = filled(shapes, case["salt"])
    report = load_weights(model, {"model": weights})
    assert (report.source, report.head) == ("uniformer", "fresh")
    assert sorted(report.left_out) == sorted(case["dropped"])
    check(read_back(model, weights), case["after"])


@pytest.mark.parametrize("case", TABLES["mvit_other_size"], ids=lambda c: c["config"].partition(".")[0])
def test_mvits_positions_are_resized_to_other_clips_as_upstream(case):
    version = 2 if "v2" in case["config"] else 1
    options = {"version": version, "depth": 4, "starts": (1, 3)}

    def network(clips):
        return build("mvit_b_16x4", clips["classes"], frames=clips["frames"], crop=clips["crop"], **options)

    shapes = table_of(network(case["from"]), "pyslowfast")
    given = {name: tuple(shape) for name, (shape, _) in case["from"]["tensors"].items()}
    assert given.items() <= shapes.items()
    weights = filled(shapes, case["from"]["salt"])
    model = network(case["to"])
    report = load_weights(model, {"model_state": weights})
    assert (report.head, sorted(report.left_out)) == (
        "fresh",
        ["head.projection.bias", "head.projection.weight"],
    )
    assert "resized" in report.summary()
    assert len(report.resized) == (2 if version == 1 else 12)
    check(read_back(model, weights), case["after"])
    untouched = network(case["from"])
    assert load_weights(untouched, weights).resized == {}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v.long(),
        lambda v: v[:, :0],
        lambda v: v[:, :255],  # on no square
        lambda v: v[..., :5],
        lambda v: v.to_sparse(),
    ],
    ids=["integers", "empty", "no square", "narrow", "sparse"],
)
def test_tables_that_cannot_be_resized_are_refused(spoil):
    weights = filled(table_of(build("mvit_b_16x4", 5, **SMALL["mvit_b_16x4"]), "pyslowfast"))
    weights["pos_embed_spatial"] = spoil(weights["pos_embed_spatial"])
    assert refused(build("mvit_b_16x4", 5, **SMALL["mvit_b_16x4"]), weights) == "WEIGHTS_MISMATCH"


@torch.inference_mode()
def test_a_resized_network_runs_and_depends_on_its_positions():
    torch.manual_seed(0)
    options = {**SMALL["mvit_b_16x4"]}
    small = build("mvit_b_16x4", 5, **options).eval()
    large = build("mvit_b_16x4", 5, **{**options, "frames": 12, "crop": 96}).eval()
    weights = filled(table_of(small, "pyslowfast"))
    load_weights(large, weights)
    clip = torch.randn(1, 3, 12, 96, 96)
    before = large(clip)
    large.trunk.patches.pos_space.zero_()
    assert relative_error(large(clip), before) > 1e-4
