"""Names of PySlowFast files: SlowFast and Slow, in PyTorch (.pyth) and Caffe2 (.pkl) files, and MViT.

Source: facebookresearch/SlowFast@287ec007:slowfast/models and slowfast/utils/c2_model_loading.py. Stages
count from 2 there. Names of Caffe2 are spelt as PyTorch's before the table is read; its variance is called
`riv`, its tensors have no axes of length 1 at the end, and the solver's numbers lie beside them. Files of
networks with sub-batch norms have the names of ordinary ones. Tables of positions that were learnt for other
clips are resized as slowfast/utils/checkpoint.py does it.
"""

import re
from collections.abc import Collection

from torch import Tensor, nn
from torch.nn import functional as F

from marey.weights.names import Layout, table

# places in Caffe2 files -> in PyTorch's; # is the pathway, 1 for the fast one, whose names begin with t_
PLACES = (
    (r"(t_)?conv1", "s1.pathway#_stem.conv"),
    (r"(t_)?res_conv1_bn", "s1.pathway#_stem.bn"),
    (r"(t_)?res(\d)_(\d+)_branch(1(?:_bn)?)", r"s\2.pathway#_res\3.branch\4"),
    (r"(t_)?res(\d)_(\d+)_branch2([abc](?:_bn)?)", r"s\2.pathway#_res\3.branch2.\4"),
    (r"t_pool1_subsample", "s1_fuse.conv_f2s"),
    (r"t_pool1_subsample_bn", "s1_fuse.bn"),
    (r"t_res(\d)_\d+_branch2c_bn_subsample", r"s\1_fuse.conv_f2s"),
    (r"t_res(\d)_\d+_branch2c_bn_subsample_bn", r"s\1_fuse.bn"),
    (r"pred", "head.projection"),
)
LEAVES = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
SOLVER = ("momentum", "lr", "model_iter")


def spell(names: Collection[str]) -> dict[str, str]:
    """What PyTorch's files call the tensors of a Caffe2 file; other names are not in the answer."""
    spelt = {}
    for name in names:
        place, _, leaf = name.rpartition("_")
        for pattern, new in PLACES:
            if leaf in LEAVES and (hit := re.fullmatch(pattern, place)):
                path = "1" if name.startswith("t_") else "0"
                spelt[name] = f"{hit.expand(new).replace('#', path)}.{LEAVES[leaf]}"
        if name not in spelt and "." not in name and any(part in name for part in SOLVER):
            spelt[name] = f"solver.{name}"
    return spelt


def adapt(mark: str, value: Tensor, target: Tensor, model: nn.Module) -> Tensor:
    """Gives a convolution of a Caffe2 file its axes of length 1 at the end; changes nothing else."""
    missing = (1,) * (target.ndim - value.ndim)
    return value.reshape(*value.shape, *missing) if value.ndim > 1 else value


def _pathway(number: int, ours: str) -> str:
    """Rows of one pathway; `ours` stands in our names behind the stage."""
    rows = f"""
        s1.pathway{number}_stem.conv.{{p}}  trunk.stem.{ours}conv.{{p}}  axes
        s1.pathway{number}_stem.bn.{{p}}    trunk.stem.{ours}bn.{{p}}
    """
    for s in (1, 2, 3, 4):
        theirs, here = f"s{s + 1}.pathway{number}_res{{b}}", f"trunk.stage{s}.{ours}{{b}}"
        rows += f"""
            {theirs}.branch1.{{p}}       {here}.shortcut.conv.{{p}}  axes
            {theirs}.branch1_bn.{{p}}    {here}.shortcut.bn.{{p}}
            {theirs}.branch2.a.{{p}}     {here}.conv1.conv.{{p}}     axes
            {theirs}.branch2.a_bn.{{p}}  {here}.conv1.bn.{{p}}
            {theirs}.branch2.b.{{p}}     {here}.conv2.conv.{{p}}     axes
            {theirs}.branch2.b_bn.{{p}}  {here}.conv2.bn.{{p}}
            {theirs}.branch2.c.{{p}}     {here}.conv3.conv.{{p}}     axes
            {theirs}.branch2.c_bn.{{p}}  {here}.conv3.bn.{{p}}
        """
    return rows


LATERALS = """
    s1_fuse.conv_f2s.{p}    trunk.stem.lateral.conv.{p}    axes
    s1_fuse.bn.{p}          trunk.stem.lateral.bn.{p}
    s2_fuse.conv_f2s.{p}    trunk.stage1.lateral.conv.{p}  axes
    s2_fuse.bn.{p}          trunk.stage1.lateral.bn.{p}
    s3_fuse.conv_f2s.{p}    trunk.stage2.lateral.conv.{p}  axes
    s3_fuse.bn.{p}          trunk.stage2.lateral.bn.{p}
    s4_fuse.conv_f2s.{p}    trunk.stage3.lateral.conv.{p}  axes
    s4_fuse.bn.{p}          trunk.stage3.lateral.bn.{p}
"""


def resize(mark: str, value: Tensor, target: Tensor, model: nn.Module) -> Tensor:
    """Position tables for another size: bicubic on the square grid of `space`, else linear along the rows."""
    if value.ndim == 0 or value.shape[-1] != target.shape[-1]:
        return value
    if value.numel() == target.numel():
        return value.reshape(target.shape)
    rows = value.float().reshape(-1, value.shape[-1]).t().unsqueeze(0)  # [1, C, rows]
    if mark == "space":
        side, wanted = round(rows.shape[2] ** 0.5), round(target.shape[1] ** 0.5)
        if side * side != rows.shape[2] or wanted * wanted != target.shape[1]:
            return value
        rows = F.interpolate(rows.reshape(1, -1, side, side), (wanted, wanted), mode="bicubic").flatten(2)
    else:
        rows = F.interpolate(rows, target.shape[-2], mode="linear")
    return rows[0].t().reshape(target.shape)


MVIT = """
    cls_token               trunk.patches.cls_token
    patch_embed.proj.{p}    trunk.patches.proj.{p}
    pos_embed_class         trunk.patches.pos_class
    pos_embed_spatial       trunk.patches.pos_space        space
    pos_embed_temporal      trunk.patches.pos_time         line
    norm.{p}                trunk.norm.{p}
    head.projection.{p}     head.{p}
    blocks.{b}.norm1.{p}    trunk.blocks.{b}.norm1.{p}
    blocks.{b}.norm2.{p}    trunk.blocks.{b}.norm2.{p}
    blocks.{b}.proj.{p}     trunk.blocks.{b}.proj.{p}
    blocks.{b}.mlp.{u}.{p}  trunk.blocks.{b}.mlp.{u}.{p}
    blocks.{b}.attn.qkv.{p}         trunk.blocks.{b}.attn.qkv.{p}
    blocks.{b}.attn.proj.{p}        trunk.blocks.{b}.attn.proj.{p}
    blocks.{b}.attn.pool_{x}.{p}    trunk.blocks.{b}.attn.{x}.conv.{p}
    blocks.{b}.attn.norm_{x}.{p}    trunk.blocks.{b}.attn.{x}.norm.{p}
    blocks.{b}.attn.rel_pos_{x}     trunk.blocks.{b}.attn.relative.{x}    line
"""
REST = """
    head.projection.{p}     head.{p}
    solver.{p}              -         numbers of the solver
"""
SLOWFAST = Layout(
    "pyslowfast",
    frozenset({"s1.pathway1_stem.conv.weight", "t_res_conv1_bn_s"}),
    table(_pathway(0, "slow.") + _pathway(1, "fast.") + LATERALS + REST),
    spell=spell,
    adapt=adapt,
)
SLOW = Layout(
    "pyslowfast",
    frozenset({"s1.pathway0_stem.conv.weight", "res_conv1_bn_s"}),
    table(_pathway(0, "") + REST),
    spell=spell,
    adapt=adapt,
)
MULTISCALE = Layout(
    "pyslowfast",
    frozenset({"blocks.0.attn.pool_k.weight"}),
    table(MVIT),
    adapt=resize,
)
