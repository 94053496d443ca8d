"""Names of torchvision's 2D ResNets, which start TSN, TSM and (inflated) SlowOnly, and of its MViT.

Source of the rules: open-mmlab/mmaction2@v0.24.1:mmaction/models/backbones/{resnet,resnet3d}.py. A 3D
convolution gets the 2D weight at every step of its temporal kernel, divided by the kernel's length.
torchvision.models.video.mvit_v1_b and mvit_v2_s are PySlowFast's networks.
"""

from torch import nn

from marey.errors import WeightsError
from marey.models.csn import CSN
from marey.weights.names import Layout, Match, table
from marey.weights.pyslowfast import resize


def check(_found: Match, model: nn.Module) -> None:
    """Raises WEIGHTS_MISMATCH for CSN: no 2D convolution becomes a depthwise one."""
    if isinstance(model, CSN):
        raise WeightsError(
            "WEIGHTS_MISMATCH",
            "the file is a 2D ResNet, and CSN is never started from one: its 3x3x3 convolutions are "
            "depthwise. Give a file of CSN, or train from scratch",
        )


LAYOUT = Layout(
    "torchvision",
    frozenset({"bn1.weight"}),
    table("""
        conv1.weight                        trunk.stem.conv.weight                      inflate
        bn1.{p}                             trunk.stem.bn.{p}
        layer{s}.{b}.conv{i}.weight         trunk.stage{s}.{b}.conv{i}.conv.weight      inflate
        layer{s}.{b}.bn{i}.{p}              trunk.stage{s}.{b}.conv{i}.bn.{p}
        layer{s}.{b}.downsample.0.weight    trunk.stage{s}.{b}.shortcut.conv.weight     inflate
        layer{s}.{b}.downsample.1.{p}       trunk.stage{s}.{b}.shortcut.bn.{p}
        fc.{p}                              -                                           classifier of ImageNet
    """),
    may_lack=(".non_local.",),  # what a 2D file cannot hold
    check=check,
)
MVIT = Layout(
    "torchvision",
    frozenset({"pos_encoding.class_token"}),
    table("""
        conv_proj.{p}                         trunk.patches.proj.{p}
        pos_encoding.class_token              trunk.patches.cls_token                   line
        pos_encoding.class_pos                trunk.patches.pos_class                   line
        pos_encoding.spatial_pos              trunk.patches.pos_space                   space
        pos_encoding.temporal_pos             trunk.patches.pos_time                    line
        blocks.{b}.norm{i}.{p}                trunk.blocks.{b}.norm{i}.{p}
        blocks.{b}.project.{p}                trunk.blocks.{b}.proj.{p}
        blocks.{b}.mlp.0.{p}                  trunk.blocks.{b}.mlp.fc1.{p}
        blocks.{b}.mlp.3.{p}                  trunk.blocks.{b}.mlp.fc2.{p}
        blocks.{b}.attn.qkv.{p}               trunk.blocks.{b}.attn.qkv.{p}
        blocks.{b}.attn.project.0.{p}         trunk.blocks.{b}.attn.proj.{p}
        blocks.{b}.attn.pool_{x}.pool.{p}     trunk.blocks.{b}.attn.{x}.conv.{p}
        blocks.{b}.attn.pool_{x}.norm_act.0.{p}  trunk.blocks.{b}.attn.{x}.norm.{p}
        blocks.{b}.attn.rel_pos_{x}           trunk.blocks.{b}.attn.relative.{x}        line
        norm.{p}                              trunk.norm.{p}
        head.1.{p}                            head.{p}
    """),
    adapt=resize,
)
