"""Names of MMAction2 files, 0.x and 1.x: TSN, TSM, SlowOnly, non-local blocks, CSN, SlowFast, detectors.

Source: open-mmlab/mmaction2@v0.24.1 and @4d6c9347. Wrappers put components into names: `.net` before the
weight of a convolution that sees shifted frames, `.net` after `layer2` in TSM with temporal pooling, `.block`
around the block that a non-local block follows in TSM; `.0` after `g` and `phi` of a non-local block that
pools them. All but `.block` change what a network computes but not which tensors it holds, so they are
compared with the model. A backbone saved alone, as those that start CSN from other data sets, may come
without `backbone.`. Detectors classify boxes in `roi_head`; its operators on feature banks are convolutions
of 1 x 1 x 1 there and linear layers here.
"""

from torch import Tensor, nn

from marey.errors import WeightsError
from marey.models.nonlocal_ import NonLocal
from marey.models.tsm import TimeShift
from marey.weights.names import Layout, Match, table


def check(found: Match, model: nn.Module) -> None:
    """Raises WEIGHTS_MISMATCH where file and model shift, pool or attend in different places."""
    shifted, attending, in_file, pooled, reducing = set(), set(), set(), set(), set()
    moved = {name for name, mark in found.marks.items() if mark == "shifted"}
    reduced = {name.rpartition(".g.")[0] for name, mark in found.marks.items() if mark == "pooled"}
    for name, module in model.named_modules():
        if isinstance(module, TimeShift):
            shifted.add(name.replace(".shift", ".conv.weight"))
        if isinstance(module, NonLocal):
            attending.add(name)
            if not isinstance(module.pool, nn.Identity):
                reducing.add(name)
    for here, there in found.filled.items():
        if ".non_local." in here:
            in_file.add(here.partition(".non_local.")[0] + ".non_local")
        if ".net." in there.partition(".conv")[0]:
            pooled.add("stage2")
    halved = {"stage2"} if getattr(model, "temporal_pool", False) else set()
    for what, theirs, ours, advice in (
        ("shifted in time", moved, shifted, "tsm_* take TSM files, tsn_* TSN files, both 2D ones"),
        ("fed half of the frames", pooled, halved, "create the model with temporal_pool=... to suit"),
        ("a non-local block", in_file, attending, "create the model with non_local=... to suit"),
        ("a non-local block that pools", reduced, reducing, "give non_local_sub_sample=... to suit"),
    ):
        if theirs != ours:
            raise WeightsError(
                "WEIGHTS_MISMATCH",
                f"file and network differ in what is {what}: {_some(theirs)} against {_some(ours)}; {advice}",
            )


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:2])
    return f"{shown} and {len(names) - 2} more" if len(names) > 2 else shown or "nothing"


TABLE = """
    [backbone.]conv1.{u}.{p}                                  trunk.stem.{u}.{p}
    [backbone.]layer{s}[.net].{b}[.block].conv{i}.{u}.{p}     trunk.stage{s}.{b}.conv{i}.{u}.{p}
    [backbone.]layer{s}.{b}.conv2.{k}.{u}.{p}                 trunk.stage{s}.{b}.conv2.{k}.{u}.{p}
    [backbone.]layer{s}[.net].{b}[.block].conv1.conv.net.{p}  trunk.stage{s}.{b}.conv1.conv.{p}    shifted
    [backbone.]layer{s}[.net].{b}[.block].downsample.{u}.{p}  trunk.stage{s}.{b}.shortcut.{u}.{p}
    [backbone.]layer{s}[.net].{b}.non_local_block.g.0.conv.{p}      trunk.stage{s}.{b}.non_local.g.{p}  pooled
    [backbone.]layer{s}[.net].{b}.non_local_block.g.conv.{p}        trunk.stage{s}.{b}.non_local.g.{p}
    [backbone.]layer{s}[.net].{b}.non_local_block.phi[.0].conv.{p}  trunk.stage{s}.{b}.non_local.phi.{p}
    [backbone.]layer{s}[.net].{b}.non_local_block.theta.conv.{p}    trunk.stage{s}.{b}.non_local.theta.{p}
    [backbone.]layer{s}[.net].{b}.non_local_block.conv_out.{u}.{p}  trunk.stage{s}.{b}.non_local.out.{u}.{p}
    backbone.{w}_path.conv1.{u}.{p}                           trunk.stem.{w}.{u}.{p}
    backbone.slow_path.conv1_lateral.conv.{p}                 trunk.stem.lateral.{p}
    backbone.slow_path.layer{s}_lateral.conv.{p}              trunk.stage{s}.lateral.{p}
    backbone.{w}_path.layer{s}.{b}.conv{i}.{u}.{p}            trunk.stage{s}.{w}.{b}.conv{i}.{u}.{p}
    backbone.{w}_path.layer{s}.{b}.downsample.{u}.{p}         trunk.stage{s}.{w}.{b}.shortcut.{u}.{p}
    cls_head.fc_cls.{p}                                       head.{p}
    roi_head.bbox_head.fc_cls.{p}  head.{p}  boxes
    roi_head.shared_head.fbo.st_feat_conv.{p}  long_term.short.{p}  flat
    roi_head.shared_head.fbo.lt_feat_conv.{p}  long_term.long.{p}  flat
    roi_head.shared_head.fbo.non_local_layer_{i}.st_feat_conv.conv.{p}  long_term.layers.{i}.theta.{p}  flat
    roi_head.shared_head.fbo.non_local_layer_{i}.lt_feat_conv.conv.{p}  long_term.layers.{i}.phi.{p}  flat
    roi_head.shared_head.fbo.non_local_layer_{i}.global_conv.conv.{p}  long_term.layers.{i}.value.{p}  flat
    roi_head.shared_head.fbo.non_local_layer_{i}.out_conv.conv.{p}  long_term.layers.{i}.out.{p}  flat
    roi_head.shared_head.fbo.non_local_layer_{i}.ln.{p}  long_term.layers.{i}.norm.{p}  flat
    data_preprocessor.{p}                                     -     normalisation, part of Preprocess
"""


def flatten(mark: str, value: Tensor, target: Tensor, _model: nn.Module) -> Tensor:
    """What a convolution or a norm over single positions holds, as the linear layer or norm that it is."""
    return value.reshape(target.shape) if mark == "flat" and value.numel() == target.numel() else value


LAYOUT = Layout(
    "mmaction2",
    frozenset(
        {
            "backbone.conv1.conv.weight",
            "conv1.conv.weight",
            "backbone.slow_path.conv1.conv.weight",
            "roi_head.bbox_head.fc_cls.weight",
        }
    ),
    table(TABLE),
    check=check,
    adapt=flatten,
)
