"""Names of VMZ's files: CSN and R(2+1)D, as PyTorch (.pth) and as Caffe2 (.pkl) files call their tensors.

Source: facebookresearch/VMZ@4cc542d5:utilities/model_conversion. A .pth file has the names of torchvision's
VideoResNet, in which a number means another layer in each network; a name that one network alone has tells
which it is. A .pkl file numbers the blocks of all stages in a row, from 0; its names are spelt with stage and
block before the table is read. `riv` is the variance itself, whatever its name suggests.
"""

import re
from collections.abc import Collection

from marey.weights.names import Layout, table

STAGES = {16: (3, 4, 6, 3), 33: (3, 4, 23, 3), 50: (3, 8, 36, 3)}  # by the number of blocks
LEAVES = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
PLACED = re.compile(r"(comp|shortcut_projection)_(\d+)_?(.*)")


def spell(names: Collection[str]) -> dict[str, str]:
    """Caffe2's names with stage, block and PyTorch's last component.

    comp_7_spatbn_2_riv becomes stage3.0.spatbn_2.running_var, last_out_L400_w last_out.weight. Names of other
    forms are left out.
    """
    blocks = {int(found[2]) for name in names if (found := PLACED.fullmatch(name))}
    places = []
    for number, count in enumerate(STAGES.get(len(blocks), ()), start=1):
        for block in range(count):
            places.append(f"stage{number}.{block}")
    spelt = {}
    for name in names:
        stem, _, leaf = name.rpartition("_")
        found = PLACED.fullmatch(stem)
        if leaf not in LEAVES or (found and int(found[2]) >= len(places)):
            continue
        if found:
            kind = "shortcut_" if found[1] == "shortcut_projection" else ""
            stem = f"{places[int(found[2])]}.{kind}{found[3]}".removesuffix("_")
        spelt[name] = f"{re.sub(r'_L[0-9]+$', '', stem)}.{LEAVES[leaf]}"
    return spelt


def _layout(sign: str, *parts: str) -> Layout:
    return Layout(
        "vmz",
        frozenset({sign}),
        table("\n".join(parts)),
        spell=spell if sign.endswith("_w") else None,
    )


TORCH = """
    layer{s}.{b}.downsample.0.weight    trunk.stage{s}.{b}.shortcut.conv.weight
    layer{s}.{b}.downsample.1.{p}       trunk.stage{s}.{b}.shortcut.bn.{p}
    fc.{p}                              head.{p}
"""
TORCH_STEM = """
    stem.0.weight                       trunk.stem.conv.weight
    stem.1.{p}                          trunk.stem.bn.{p}
"""
TORCH_SPLIT_STEM = """
    stem.0.weight                       trunk.stem.0.conv.weight
    stem.1.{p}                          trunk.stem.0.bn.{p}
    stem.3.weight                       trunk.stem.1.conv.weight
    stem.4.{p}                          trunk.stem.1.bn.{p}
"""
TORCH_ENDS = """
    layer{s}.{b}.conv1.0.weight         trunk.stage{s}.{b}.conv1.conv.weight
    layer{s}.{b}.conv1.1.{p}            trunk.stage{s}.{b}.conv1.bn.{p}
    layer{s}.{b}.conv3.0.weight         trunk.stage{s}.{b}.conv3.conv.weight
    layer{s}.{b}.conv3.1.{p}            trunk.stage{s}.{b}.conv3.bn.{p}
"""
TORCH_IR = """
    layer{s}.{b}.conv2.0.weight         trunk.stage{s}.{b}.conv2.0.conv.weight
    layer{s}.{b}.conv2.1.{p}            trunk.stage{s}.{b}.conv2.0.bn.{p}
"""
TORCH_IP = """
    layer{s}.{b}.conv2.0.0.weight       trunk.stage{s}.{b}.conv2.0.conv.weight
    layer{s}.{b}.conv2.0.1.{p}          trunk.stage{s}.{b}.conv2.0.bn.{p}
    layer{s}.{b}.conv2.0.2.weight       trunk.stage{s}.{b}.conv2.1.conv.weight
    layer{s}.{b}.conv2.1.{p}            trunk.stage{s}.{b}.conv2.1.bn.{p}
"""
TORCH_SPLIT = """
    layer{s}.{b}.conv{i}.0.0.weight     trunk.stage{s}.{b}.conv{i}.0.conv.weight
    layer{s}.{b}.conv{i}.0.1.{p}        trunk.stage{s}.{b}.conv{i}.0.bn.{p}
    layer{s}.{b}.conv{i}.0.3.weight     trunk.stage{s}.{b}.conv{i}.1.conv.weight
    layer{s}.{b}.conv{i}.1.{p}          trunk.stage{s}.{b}.conv{i}.1.bn.{p}
"""
TORCH_MIDDLE = TORCH_SPLIT.replace("{i}", "2")
CAFFE2 = """
    stage{s}.{b}.shortcut.weight        trunk.stage{s}.{b}.shortcut.conv.weight
    stage{s}.{b}.shortcut_spatbn.{p}    trunk.stage{s}.{b}.shortcut.bn.{p}
    last_out.{p}                        head.{p}
"""
CAFFE2_STEM = """
    conv1.weight                        trunk.stem.conv.weight
    conv1_spatbn_relu.{p}               trunk.stem.bn.{p}
"""
CAFFE2_SPLIT_STEM = """
    conv1_middle.weight                 trunk.stem.0.conv.weight
    conv1_middle_spatbn_relu.{p}        trunk.stem.0.bn.{p}
    conv1.weight                        trunk.stem.1.conv.weight
    conv1_spatbn_relu.{p}               trunk.stem.1.bn.{p}
"""
CAFFE2_IR = """
    stage{s}.{b}.conv_1.weight          trunk.stage{s}.{b}.conv1.conv.weight
    stage{s}.{b}.spatbn_1.{p}           trunk.stage{s}.{b}.conv1.bn.{p}
    stage{s}.{b}.conv_3.weight          trunk.stage{s}.{b}.conv2.0.conv.weight
    stage{s}.{b}.spatbn_3.{p}           trunk.stage{s}.{b}.conv2.0.bn.{p}
    stage{s}.{b}.conv_4.weight          trunk.stage{s}.{b}.conv3.conv.weight
    stage{s}.{b}.spatbn_4.{p}           trunk.stage{s}.{b}.conv3.bn.{p}
"""
CAFFE2_MIDDLE = """
    stage{s}.{b}.conv_1.weight          trunk.stage{s}.{b}.conv1.conv.weight
    stage{s}.{b}.spatbn_1.{p}           trunk.stage{s}.{b}.conv1.bn.{p}
    stage{s}.{b}.conv_2_middle.weight   trunk.stage{s}.{b}.conv2.0.conv.weight
    stage{s}.{b}.spatbn_2_middle.{p}    trunk.stage{s}.{b}.conv2.0.bn.{p}
    stage{s}.{b}.conv_2.weight          trunk.stage{s}.{b}.conv2.1.conv.weight
    stage{s}.{b}.spatbn_2.{p}           trunk.stage{s}.{b}.conv2.1.bn.{p}
    stage{s}.{b}.conv_3.weight          trunk.stage{s}.{b}.conv3.conv.weight
    stage{s}.{b}.spatbn_3.{p}           trunk.stage{s}.{b}.conv3.bn.{p}
"""
CAFFE2_SPLIT = "\n".join(
    f"""
    stage{{s}}.{{b}}.conv_{i}_middle.weight   trunk.stage{{s}}.{{b}}.conv{i}.0.conv.weight
    stage{{s}}.{{b}}.spatbn_{i}_middle.{{p}}  trunk.stage{{s}}.{{b}}.conv{i}.0.bn.{{p}}
    stage{{s}}.{{b}}.conv_{i}.weight          trunk.stage{{s}}.{{b}}.conv{i}.1.conv.weight
    stage{{s}}.{{b}}.spatbn_{i}.{{p}}         trunk.stage{{s}}.{{b}}.conv{i}.1.bn.{{p}}
"""
    for i in (1, 2)
)
LAYOUTS = (  # in this order: each sign is in no file of the layouts after it
    _layout("layer1.0.conv2.0.weight", TORCH, TORCH_STEM, TORCH_ENDS, TORCH_IR),
    _layout("layer1.0.conv2.0.2.weight", TORCH, TORCH_STEM, TORCH_ENDS, TORCH_IP),
    _layout("layer1.0.conv1.0.3.weight", TORCH, TORCH_SPLIT_STEM, TORCH_SPLIT),
    _layout(
        "layer1.0.conv2.0.3.weight", TORCH, TORCH_SPLIT_STEM, TORCH_ENDS, TORCH_SPLIT.replace("{i}", "2")
    ),
    _layout("comp_0_conv_4_w", CAFFE2, CAFFE2_STEM, CAFFE2_IR),
    _layout("comp_0_conv_1_middle_w", CAFFE2, CAFFE2_SPLIT_STEM, CAFFE2_SPLIT),
    _layout("conv1_middle_w", CAFFE2, CAFFE2_SPLIT_STEM, CAFFE2_MIDDLE),
    _layout("comp_0_conv_2_middle_w", CAFFE2, CAFFE2_STEM, CAFFE2_MIDDLE),
)
