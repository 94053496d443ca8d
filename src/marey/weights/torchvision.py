"""Names of torchvision's 2D ResNets, which start TSN, TSM and (inflated) SlowOnly.

Source of the rules: open-mmlab/mmaction2@v0.24.1:mmaction/models/backbones/{resnet,resnet3d}.py. A 3D
convolution gets the 2D weight at every step of its temporal kernel, divided by the kernel's length.
"""

from collections.abc import Collection

from torch import nn

from marey.weights.names import Match, match, table

SIGNS = {"bn1.weight"}
HEAD = None  # the classifier of ImageNet is never used
MAY_LACK = (".non_local.",)  # what a 2D file cannot hold

TABLE = table("""
    conv1.weight                        stem.conv.weight                      inflate
    bn1.{p}                             stem.bn.{p}
    layer{s}.{b}.conv{i}.weight         stage{s}.{b}.conv{i}.conv.weight      inflate
    layer{s}.{b}.bn{i}.{p}              stage{s}.{b}.conv{i}.bn.{p}
    layer{s}.{b}.downsample.0.weight    stage{s}.{b}.shortcut.conv.weight     inflate
    layer{s}.{b}.downsample.1.{p}       stage{s}.{b}.shortcut.bn.{p}
    fc.{p}                              -                                     classifier of ImageNet
""")


def translate(names: Collection[str], model: nn.Module) -> Match:
    """Our names for the file's; the same for every network."""
    return match(TABLE, names)
