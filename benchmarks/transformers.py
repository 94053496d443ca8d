"""Video Swin, MViT, UniFormer and SlowFast side by side: Marey's, torchvision's, PyTorchVideo's and others'.

    build/peers/bin/python benchmarks/transformers.py [--train] [--rounds 5] [--threads N] [--case WORDS]
                                           [--out FILE.md] [--tuned]

As recognizers.py, which says how: the same weights, the same clip, one process, in turns. PySlowFast on the
registry is version 1.0, which has no MViT; it imports detectron2, which is not there, for a layer that only
detectors use. What MMAction2 has is the code of UniFormer's authors.
"""

import re
import sys
from types import ModuleType
from typing import Any

import torch
from recognizers import Case, Theirs, main, mmaction2
from torch import Tensor, nn

from marey.models.mvit import EPS
from marey.models.slowfast import spread

NO_DROPS = {"dropout": 0.0, "drop_path": 0.0}
# names of PyTorchVideo -> of PySlowFast
MVIT_NAMES = (
    (r"patch_embed\.patch_model", "patch_embed.proj"),
    (r"cls_positional_encoding\.", ""),
    (r"norm_embed", "norm"),
    (r"head\.proj", "head.projection"),
)
SLOWFAST_NAMES = (
    (r"blocks\.0\.multipathway_blocks\.(\d)\.conv\.", r"s1.pathway\1_stem.conv."),
    (r"blocks\.0\.multipathway_blocks\.(\d)\.norm\.", r"s1.pathway\1_stem.bn."),
    (r"multipathway_fusion\.conv_fast_to_slow", "multipathway_fusion.conv_f2s"),
    (r"multipathway_fusion\.norm", "multipathway_fusion.bn"),
    (r"multipathway_blocks\.(\d)\.res_blocks\.(\d+)\.", r"pathway\1_res\2."),
    (r"branch1_conv", "branch1"),
    (r"branch1_norm", "branch1_bn"),
    (r"branch2\.conv_([abc])", r"branch2.\1"),
    (r"branch2\.norm_([abc])", r"branch2.\1_bn"),
    (r"blocks\.6\.proj", "head.projection"),
)


class Renamed(nn.Module):
    """A network whose tensors are given out under the names of published files."""

    def __init__(self, net: nn.Module, names: tuple[tuple[str, str], ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of a clip [B, 3, T, H, W]."""
        return self.net(clip)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Under names of PySlowFast; queries, keys and values of one block in one piece."""
        found: dict[str, Tensor] = {}
        for name, value in self.net.state_dict(*args, **kwargs).items():
            for theirs, published in self.names:
                name = re.sub(theirs, published, name)
            name = re.sub(r"blocks\.(\d)\.multipathway_fusion", lambda m: f"s{int(m[1]) + 1}_fuse", name)
            name = re.sub(r"blocks\.(\d)\.pathway", lambda m: f"s{int(m[1]) + 1}.pathway", name)
            found[name] = value
        for name in [n for n in found if re.search(r"attn\.q\.", n)]:
            parts = [found.pop(name.replace("attn.q.", f"attn.{x}.")) for x in "qkv"]
            found[name.replace("attn.q.", "attn.qkv.")] = torch.cat(parts)
        return found


class Pathways(Renamed):
    """A SlowFast that takes both pathways' clips: the frames are picked as PySlowFast does."""

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of a clip [B, 3, T, H, W]."""
        return self.net([clip[:, :, spread(clip.shape[2], clip.shape[2] // 4)], clip])


def pytorchvideo_mvit() -> nn.Module:
    """With the epsilon that PySlowFast has now in norms within attention, too; here they have 1e-5."""
    from pytorchvideo.models.hub import mvit_base_16x4

    net = mvit_base_16x4()
    for norm in net.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = EPS
    return Renamed(net, MVIT_NAMES)


def pytorchvideo_slowfast() -> nn.Module:
    from pytorchvideo.models.hub import slowfast_r50

    return Pathways(slowfast_r50(), SLOWFAST_NAMES)


def pyslowfast() -> nn.Module:
    """SlowFast-R50 8x8 of its config, with logits in evaluation, too."""
    stand_in: Any = ModuleType("detectron2.layers")
    stand_in.ROIAlign = nn.Module
    sys.modules.setdefault("detectron2", ModuleType("detectron2"))
    sys.modules.setdefault("detectron2.layers", stand_in)
    from slowfast.config.defaults import get_cfg
    from slowfast.models.video_model_builder import SlowFastModel

    config = get_cfg()
    config.DATA.NUM_FRAMES, config.SLOWFAST.ALPHA, config.SLOWFAST.FUSION_KERNEL_SZ = 32, 4, 7
    for field, value in (
        ("NUM_BLOCK_TEMP_KERNEL", [[3, 3], [4, 4], [6, 6], [3, 3]]),
        ("SPATIAL_STRIDES", [[1, 1], [2, 2], [2, 2], [2, 2]]),
        ("SPATIAL_DILATIONS", [[1, 1]] * 4),
    ):
        setattr(config.RESNET, field, value)
    config.NONLOCAL.LOCATION, config.NONLOCAL.GROUP = [[[], []]] * 4, [[1, 1]] * 4
    net = SlowFastModel(config)
    net.head.act = nn.Identity()
    return Pathways(net, ())


def torchvision(name: str) -> nn.Module:
    from torchvision.models import video

    return getattr(video, name)()


class Pooled(Theirs):
    """UniFormer of MMAction2 with a linear classifier, under the names of its authors."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone, nn.Linear(512, 400))

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of a clip [B, 3, T, H, W]."""
        return self.cls_head(self.backbone(clip).flatten(2).mean(2))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Of backbone and classifier."""
        head = {f"head.{name}": value for name, value in self.cls_head.state_dict().items()}
        return {**self.backbone.state_dict(*args, **kwargs), **head}


def mmaction2_uniformer(depth: list[int]) -> nn.Module:
    return Pooled(mmaction2()[0].UniFormer(depth=depth, pretrained2d=False))


LONG, SHORT = (32, 224, 224), (16, 224, 224)
DEPTH_S, DEPTH_B = [3, 4, 8, 3], [5, 8, 20, 7]
CASES = [
    Case("Swin3D-T", "swin3d_t", NO_DROPS, LONG, {"torchvision": lambda: torchvision("swin3d_t")}),
    Case("Swin3D-S", "swin3d_s", NO_DROPS, LONG, {"torchvision": lambda: torchvision("swin3d_s")}),
    Case("Swin3D-B", "swin3d_b", NO_DROPS, LONG, {"torchvision": lambda: torchvision("swin3d_b")}),
    Case("MViT-B", "mvit_b_16x4", NO_DROPS, SHORT, {"torchvision": lambda: torchvision("mvit_v1_b")}),
    Case("MViT-B", "mvit_b_16x4", NO_DROPS, SHORT, {"PyTorchVideo": pytorchvideo_mvit}),
    Case("MViTv2-S", "mvit_v2_s", NO_DROPS, SHORT, {"torchvision": lambda: torchvision("mvit_v2_s")}),
    Case("UniFormer-S", "uniformer_s", NO_DROPS, SHORT, {"MMAction2": lambda: mmaction2_uniformer(DEPTH_S)}),
    Case("UniFormer-B", "uniformer_b", NO_DROPS, SHORT, {"MMAction2": lambda: mmaction2_uniformer(DEPTH_B)}),
    Case("SlowFast-R50", "slowfast_r50", {"dropout": 0.0}, LONG, {"PyTorchVideo": pytorchvideo_slowfast}),
    Case("SlowFast-R50", "slowfast_r50", {"dropout": 0.0}, LONG, {"PySlowFast": pyslowfast}),
]

if __name__ == "__main__":
    main(CASES, "transformers", __doc__)
