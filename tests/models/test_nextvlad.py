"""NeXtVLAD against Paddle's and TensorFlow's networks on drawn weights, and against its own padding."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from marey.errors import UsageError
from marey.models import build
from marey.models.nextvlad import NeXtVLAD, Stream, whitening
from tests.oracles import relative_error

FOLDER = Path(__file__).parent / "oracles" / "nextvlad"


def case_of(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def weight(name, shape, salt=""):
    """What the reference drew for a parameter."""
    name = name.replace("/", ".")
    if name == "eigen_param":
        return torch.from_numpy((0.12 + 3.7 / (1.0 + np.arange(shape[0]))).astype(np.float32))
    stream = np.random.RandomState(zlib.crc32((salt + name).encode()) & 0x7FFFFFFF)
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("w_2", "moving_variance"):
        value = stream.uniform(0.5, 1.5, shape)
    elif leaf == "moving_mean":
        value = 0.1 * stream.standard_normal(shape)
    elif len(shape) < 2:
        unit = leaf in ("w_0", "gamma")
        value = stream.uniform(0.5, 1.5, shape) if unit else 0.1 * stream.standard_normal(shape)
    else:
        value = stream.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, np.float32))


def paddle_names(model):
    """Our name -> Paddle's, of all parameters and statistics."""
    table = {"rgb.scale": "eigen_param", "head.weight": "logits_clf_weights", "head.bias": "logits_clf_bias"}
    table |= {"hidden.weight": "hidden1_fc_weights", "squeeze.weight": "gating_fc1_weights"}
    table["excite.weight"] = "gating_fc2_weights"
    norms = ("rgb.assignment_norm", "rgb.norm", "audio.assignment_norm", "audio.norm")
    for number, norm in enumerate((*norms, "hidden_norm", "squeeze_norm")):
        leaves = {"weight": "w_0", "bias": "b_0", "running_mean": "w_1", "running_var": "w_2"}
        table |= {f"{norm}.{ours}": f"batch_norm_{number}.{theirs}" for ours, theirs in leaves.items()}
    for ours, theirs in (("rgb", "video"), ("audio", "audio")):
        table |= {
            f"{ours}.expansion.weight": f"{theirs}_fc_expansion_w",
            f"{ours}.expansion.bias": f"{theirs}_fc_expansion_b",
            f"{ours}.attention.weight": f"{theirs}_fc_group_attention_w",
            f"{ours}.attention.bias": f"{theirs}_fc_group_attention_b",
            f"{ours}.assignment.weight": f"{theirs}_cluster_weights",
            f"{ours}.centres": f"{theirs}_cluster_weights2",
        }
    assert {n for n in model.state_dict() if "num_batches" not in n} == table.keys()
    return table


def tensorflow_names(model):
    """The same for the authors' network."""
    table = {"hidden.weight": "hidden1_weights", "squeeze.weight": "gating_weights_1"}
    table |= {"excite.weight": "gating_weights_2", "rgb.scale": "eigen_param"}
    table |= {"head.weight": "fully_connected/weights", "head.bias": "fully_connected/biases"}
    norms = {"hidden_norm": "hidden1_bn", "squeeze_norm": "gating_bn"}
    for ours, theirs in (("rgb", "video_VLAD"), ("audio", "audio_VLAD")):
        norms |= {f"{ours}.assignment_norm": f"{theirs}/cluster_bn", f"{ours}.norm": f"{theirs}/vlad_bn"}
        table |= {
            f"{ours}.expansion.weight": f"{theirs}/fully_connected/weights",
            f"{ours}.expansion.bias": f"{theirs}/fully_connected/biases",
            f"{ours}.attention.weight": f"{theirs}/fully_connected_1/weights",
            f"{ours}.attention.bias": f"{theirs}/fully_connected_1/biases",
            f"{ours}.assignment.weight": f"{theirs}/cluster_weights",
            f"{ours}.centres": f"{theirs}/cluster_weights2",
        }
    leaves = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    for ours, theirs in norms.items():
        table |= {f"{ours}.{leaf}": f"{theirs}/{name}" for leaf, name in leaves.items()}
    assert {n for n in model.state_dict() if "num_batches" not in n} == table.keys()
    return {ours: theirs if theirs == "eigen_param" else f"tower/{theirs}" for ours, theirs in table.items()}


def network(case, names=paddle_names, **overrides):
    """The network of a case with its weights."""
    plan = case["architecture"]
    model = NeXtVLAD(
        plan["num_classes"],
        cluster_size=plan["cluster_size"],
        groups=plan["groups"],
        expansion=plan["expansion"],
        hidden_size=plan["hidden_size"],
        gating_reduction=plan["gating_reduction"],
        **{"dropout": plan["drop_rate"], **overrides},
    )
    own = model.state_dict()
    for ours, theirs in names(model).items():
        shape = case["state_dict"].get(theirs, [[1024]])[0]
        value = weight(theirs, shape)
        if own[ours].ndim == 2 and value.ndim == 2 and ours.endswith(".weight"):
            value = value.T
        own[ours].copy_(value[0].T if value.ndim == 3 else value)
    return model


def videos(case, *, fill=0, length=None):
    """The case's padded batch; what stands in the padding must not matter."""
    spec = case["input"]
    rng = np.random.RandomState(spec["seed"])
    length = length or max(spec["lengths"])
    batch = [
        torch.full((len(spec["lengths"]), length, spec[d]), fill, dtype=torch.uint8)
        for d in ("rgb_dim", "audio_dim")
    ]
    for i, n in enumerate(spec["lengths"]):
        for stream in batch:
            stream[i, :n] = torch.from_numpy(rng.randint(0, 256, (n, stream.shape[2])).astype(np.uint8))
    return *batch, torch.tensor(spec["lengths"])


def targets(case):
    rng = np.random.RandomState(case["labels"]["seed"])
    hot = torch.zeros(len(case["input"]["lengths"]), case["labels"]["num_classes"])
    for row in hot:
        row[rng.choice(len(row), rng.randint(1, 6), replace=False)] = 1
    return hot


@pytest.mark.parametrize("name", ["network_small_eval", "network_zero_frames_eval", "network_full_eval"])
@torch.inference_mode()
def test_logits_are_those_of_paddle(name):
    case = case_of(name)
    model = network(case).eval()
    logits = model(*videos(case))
    logits = logits[:, ::25] if "classes" in case else logits
    assert relative_error(logits, case["logits"]) < 5e-6
    if name == "network_full_eval":
        assert sum(p.numel() for p in model.parameters()) == 89_088_550
        assert sum(v.numel() for k, v in model.state_dict().items() if "num_" not in k) == 89_172_006


@torch.inference_mode()
def test_descriptors_and_hidden_layer_are_those_of_paddle():
    case = case_of("network_small_eval")
    model, batch = network(case).eval(), videos(case)
    descriptor, stages = model.features(*batch), case["stages"]
    parts = {"video_vlad": descriptor[:, :8192], "audio_vlad": descriptor[:, 8192:]}
    for name, value in parts.items():
        assert list(value.shape) == stages[name]["shape"]
        assert relative_error(value.flatten()[:8], stages[name]["first8"]) < 1e-5
        assert (value.mean().item(), value.std().item()) == pytest.approx(
            (stages[name]["mean"], stages[name]["std"]), rel=1e-3
        )
    torch.testing.assert_close(model.head(model.embed(*batch)), model(*batch))


def test_training_is_that_of_paddle():
    case = case_of("network_small_train")
    model, batch, hot = network(case, dropout=0.0).train(), videos(case), targets(case)
    names = paddle_names(model)
    groups = [
        {"params": list(model.head.parameters()), "weight_decay": 1e-5},
        {"params": [p for n, p in model.named_parameters() if not n.startswith("head.")]},
    ]
    optimizer = torch.optim.Adam(groups, lr=2e-4)
    for step, expected in enumerate(case["adam_losses"]):
        logits = model(*batch)
        loss = F.binary_cross_entropy_with_logits(logits, hot, reduction="none").sum(1).mean()
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert relative_error(logits.detach(), case["logits"]) < 2e-5
            assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
            for ours, theirs in names.items():
                if theirs in case["gradients"] and theirs not in ("batch_norm_1.b_0", "batch_norm_3.b_0"):
                    norm = model.get_parameter(ours).grad.norm().item()
                    assert norm == pytest.approx(case["gradients"][theirs]["norm"], rel=1e-3), ours
                if theirs in case["moving_statistics_after_one_step"]:
                    want = case["moving_statistics_after_one_step"][theirs]
                    value = model.get_buffer(ours)
                    assert value.mean().item() == pytest.approx(want["mean"], rel=1e-4, abs=1e-7), ours
                    np.testing.assert_allclose(value[:4], want["first4"], rtol=2e-4, atol=1e-6)
        optimizer.step()


def test_settings_make_the_network_of_tensorflow():
    case = case_of("tf_small")
    plan = case["architecture"]
    settings = {
        "audio_cluster_size": plan["audio_cluster_size"],
        "audio_groups": plan["audio_groups"],
        "bn_eps": plan["bn_eps"],
        "inverted_dropout": True,
        "pad_to": 300,
        "l2_floor": True,
    }
    model = network(case, tensorflow_names, **settings).eval()
    with torch.inference_mode():
        assert relative_error(model(*videos(case)), case["logits"]) < 5e-6
    model = network(case, tensorflow_names, **settings, dropout=0.0).train()
    assert relative_error(model(*videos(case)).detach(), case["train_logits"]) < 2e-5
    short = dict(case, input=case["input"] | {"lengths": [1, 2, 5]})
    with torch.no_grad():
        first, again = (model(*videos(short, length=n)) for n in (5, 300))
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_padding_does_not_matter(training):
    case = case_of("network_small_eval")
    model = network(case, dropout=0.0).train(training)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for fill, length in ((0, None), (255, None), (77, 400)):
        model.load_state_dict(start)
        found.append(model(*videos(case, fill=fill, length=length)).detach())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_streams_may_differ_in_length_and_full_ones_need_none():
    model = NeXtVLAD(5, rgb=6, audio=4, cluster_size=3, groups=2, hidden_size=16, whitened=False).eval()
    rgb, audio = (torch.randint(0, 256, (2, 7, width), dtype=torch.uint8) for width in (6, 4))
    whole = model(rgb, audio)
    torch.testing.assert_close(model(rgb, audio, torch.tensor([7, 7])), whole)
    torch.testing.assert_close(model(rgb, audio, torch.tensor([[7, 7], [7, 7]])), whole)
    torch.testing.assert_close(model(rgb.float(), audio.float()), whole)
    for n, m in ((4, 7), (7, 4)):
        want = model(rgb[:, :n], audio[:, :m], torch.tensor([[n, m], [n, m]]))
        torch.testing.assert_close(model(rgb[:, :n], audio[:, :m]), want)
    mixed = model(rgb, audio, torch.tensor([[7, 7], [6, 5]]))
    torch.testing.assert_close(mixed[0], whole[0])
    torch.testing.assert_close(mixed[1:], model(rgb[1:, :6], audio[1:, :6], torch.tensor([[6, 5]])))
    assert (mixed[1] - whole[1]).abs().max() > 1e-4


def test_dropout_scales_in_evaluation_or_in_training():
    sizes = {"rgb": 6, "audio": 0, "cluster_size": 3, "groups": 2, "hidden_size": 16, "whitened": False}
    rgb = torch.randint(0, 256, (4, 7, 6), dtype=torch.uint8)
    torch.manual_seed(0)
    paddle = NeXtVLAD(5, dropout=0.75, **sizes).eval()
    inverted = NeXtVLAD(5, dropout=0.75, inverted_dropout=True, **sizes).eval()
    inverted.load_state_dict(paddle.state_dict())
    with torch.no_grad():
        paddle.hidden.weight *= 4
        torch.testing.assert_close(paddle(rgb), inverted(rgb))
    seen = []
    paddle.hidden.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    paddle.train()(rgb)
    kept = seen[0] != 0
    assert 0.05 < kept.float().mean() < 0.5
    assert (seen[0][kept] - paddle.features(rgb)[kept]).abs().max() < 1e-5  # not scaled up


def test_a_stream_and_a_batch_of_one_and_no_frames_at_all():
    model = NeXtVLAD(5, rgb=6, audio=0, cluster_size=3, groups=2, hidden_size=16, whitened=False)
    before = model.hidden_norm.running_var.clone()
    logits = model.train()(torch.zeros((1, 3, 6), dtype=torch.uint8), lengths=torch.tensor([0]))
    assert logits.isfinite().all()
    assert torch.equal(model.hidden_norm.running_var, before)
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_fresh_weights_have_the_published_spread():
    torch.manual_seed(0)
    model = build("nextvlad", 3862)
    for layer, rows in ((model.rgb.expansion, 1024), (model.rgb.assignment, 2048), (model.head, 2048)):
        assert layer.weight.std().item() == pytest.approx((2 / rows) ** 0.5, rel=0.02)
    assert model.rgb.centres.std().item() == pytest.approx(0.125, rel=0.02)
    assert not model.head.bias.any()
    scale = whitening()
    assert scale[[0, -1]].tolist() == pytest.approx([3.83917618, 0.124026731], rel=1e-7)
    assert scale.sum(dtype=torch.float64).item() == pytest.approx(356.73489, rel=1e-6)
    final = build(
        "nextvlad", 3862, cluster_size=112, gating_reduction=16, audio_cluster_size=56, audio_groups=4
    )
    assert sum(p.numel() for p in final.parameters()) == 78_643_170


def test_what_cannot_be_is_named():
    for overrides, reason in (
        ({"groups": 7}, "multiple of the groups"),
        ({"rgb": 512}, "whitened=False"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"gating_reduction": 0}, "gating_reduction 0"),
    ):
        with pytest.raises(UsageError, match=reason):
            build("nextvlad", 5, **overrides)
    model = NeXtVLAD(5, rgb=6, audio=4, cluster_size=3, groups=2, hidden_size=16, whitened=False).eval()
    with pytest.raises(UsageError, match="audio stream"):
        model(torch.zeros(1, 2, 6))
    with pytest.raises(UsageError, match="features from -2 to 1") as error:
        model(torch.tensor([[[-2.0, 1, 1, 1, 1, 1]]]), torch.zeros(1, 1, 4))
    assert error.value.code == "FEATURE_RANGE"


@torch.inference_mode()
def test_half_precision_stays_near():
    case = case_of("network_small_eval")
    model, batch = network(case).eval(), videos(case)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(*batch)
    assert relative_error(logits.float(), case["logits"]) < 0.05


def test_the_pool_is_the_sum_over_all_frames_groups_and_clusters():
    """Formula by formula, without any batched product."""
    torch.manual_seed(0)
    pool = (
        Stream(6, 3, 2, 2, offset=0.0, scale=None, eps=1e-5, momentum=0.1, pad_to=0, l2_floor=False)
        .double()
        .eval()
    )
    frames = torch.randint(0, 256, (1, 5, 6), dtype=torch.uint8)
    h = pool.expansion(frames[0].double() * 4 / 255 - 2)
    share = pool.assignment_norm(pool.assignment(h)).view(5, 2, 3).softmax(2)
    t = pool.attention(h).sigmoid()
    y = torch.zeros(6, 3, dtype=torch.float64)
    for i in range(5):
        for g in range(2):
            for k in range(3):
                y[:, k] += share[i, g, k] * t[i, g] * (h[i, 6 * g : 6 * g + 6] - pool.centres[k])
    y = y / (y.square().sum(0, keepdim=True) + 1e-12).sqrt()
    torch.testing.assert_close(
        pool(frames, torch.tensor([5])), pool.norm(y.flatten()[None].float().double()), rtol=1e-5, atol=1e-6
    )
