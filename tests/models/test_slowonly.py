"""SlowOnly: inflated 2D weights on a still video, time that is never shortened, windows of larger clips."""

from pathlib import Path

import torch
from torchvision.models import resnet50

from marey.models import build
from marey.weights.load import load_weights
from tests.models.published import clip_of, published
from tests.models.test_parts_frames import maps_of, with_statistics
from tests.oracles import load_case, relative_error

CASE = load_case(Path(__file__).parent / "oracles" / "slowonly" / "slow_windows.json")


@torch.inference_mode()
def test_clips_larger_than_the_crop_of_training_are_scored_as_by_pyslowfast():
    model, report = published(CASE)
    assert (report.source, report.fresh) == ("pyslowfast", ())
    model.head.weight.mul_(CASE["factor"])
    for more in CASE["more"]:
        assert relative_error(model(clip_of(more)).softmax(1), [more["scores"]]) < 1e-6
    large = CASE["more"][0]
    pooled = model.head(model.embed(clip_of(large))).softmax(1)
    assert relative_error(pooled, [large["scores"]]) > 1e-3


@torch.inference_mode()
def test_inflated_weights_see_in_the_middle_of_a_still_video_what_2d_weights_see_in_its_frame():
    network = with_statistics(resnet50(weights=None), 5)
    model = build("slowonly_r50").eval()
    report = load_weights(model, network.state_dict())
    assert (report.source, report.loaded, report.head) == ("torchvision", 318, "fresh")
    frame = torch.randn(1, 3, 32, 32)
    length = 20  # nine temporal kernels of three: zero padding reaches nine frames in from each end
    maps = model.features(frame[:, :, None].expand(-1, -1, length, -1, -1))
    want = maps_of(network, frame)
    assert relative_error(maps[:, :, 9], want) < 1e-5
    assert relative_error(maps[:, :, 10], want) < 1e-5
    assert relative_error(maps[:, :, 0], want) > 1e-2


@torch.inference_mode()
def test_stages_1_and_2_see_single_frames_and_stages_3_and_4_their_neighbours():
    model = build("slowonly_r50", 2, width=8).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.ones_(module.weight)
    clip = torch.randn(1, 3, 6, 64, 64)
    other = clip.clone()
    other[:, :, 0] = 0

    def touched(stage):
        seen = []
        hook = stage.register_forward_hook(lambda _m, _i, out: seen.append(out))
        model(clip), model(other)
        hook.remove()
        return (seen[0] != seen[1]).flatten(3).any(3).any(1)[0].nonzero().flatten().tolist()

    assert touched(model.trunk.stage2) == [0]
    assert touched(model.trunk.stage3[0]) == [0, 1]
    assert touched(model.trunk.stage4) == [0, 1, 2, 3, 4, 5]
