"""The 2D trunk against torchvision's, and the way from clips to frames and back."""

import pytest
import torch
from torchvision.models import resnet18, resnet50

from marey.models import build
from marey.models.parts import to_clips, to_frames
from marey.weights.load import load_weights
from tests.oracles import relative_error


def with_statistics(network, seed):
    """Norms as after training: no weight, bias or statistic at its start value."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    return network.eval()


def maps_of(network, frames):
    """torchvision's own way to its last map."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(frames))))
    return network.layer4(network.layer3(network.layer2(network.layer1(x))))


@pytest.mark.parametrize(("name", "theirs"), [("tsn_r18", resnet18), ("tsn_r50", resnet50)])
@torch.inference_mode()
def test_a_frame_has_the_features_that_torchvision_gives_it(name, theirs):
    network = with_statistics(theirs(weights=None), 3)
    model = build(name, 1000).eval()
    report = load_weights(model, network.state_dict())
    assert (report.source, report.head) == ("torchvision", "fresh")
    model.head.load_state_dict(network.fc.state_dict())
    frames = torch.randn(2, 3, 64, 96)
    assert relative_error(model.features(frames[:, :, None])[:, :, 0], maps_of(network, frames)) < 1e-5
    assert relative_error(model(frames[:, :, None]), network(frames)) < 1e-5


@torch.inference_mode()
def test_frames_come_from_a_permuted_clip_without_a_copy_and_stay_channels_last():
    pixels = torch.randn(2, 8, 32, 32, 3)
    clip = pixels.permute(0, 4, 1, 2, 3)
    frames = to_frames(clip)
    assert frames.data_ptr() == pixels.data_ptr()
    assert torch.equal(to_clips(frames, 8), clip)
    assert to_clips(frames, 8).data_ptr() == pixels.data_ptr()
    model, formats = build("tsm_r18", 2, width=16).eval(), []
    for stage in model.trunk:
        stage.register_forward_hook(
            lambda _m, _i, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    model(clip)
    assert formats == [True] * 6
