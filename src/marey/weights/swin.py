"""Names of Video Swin files: its authors', MMAction2's, torchvision's, and of 2D Swin, which they start from.

Sources: SwinTransformer/Video-Swin-Transformer@db018fb8:mmaction/models/backbones/swin_transformer.py,
open-mmlab/mmaction2@v1.2.0 (which calls the last norm norm3), torchvision.models.video.swin3d_t and
microsoft/Swin-Transformer. Indices and masks in files are computed here instead. A 2D file starts a network
as the authors do it: the patch convolution gets the 2D one in equal parts at each step in time; a bias table
is resized to the window's height and width (bicubic) and stands for every distance in time.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from marey.weights.names import Layout, table


def widen(mark: str, value: Tensor, target: Tensor, model: nn.Module) -> Tensor:
    """A 2D bias table [(2 * H - 1) * (2 * W - 1), heads] as the table of the model's 3D window."""
    network: Any = model
    steps, height, width = (2 * side - 1 for side in network.window)
    side = round(len(value) ** 0.5)
    if mark != "widen" or value.ndim != 2 or side * side != len(value) or value.shape[1] != target.shape[1]:
        return value
    if len(value) != height * width:
        grid = value.float().t().reshape(1, -1, side, side)
        value = F.interpolate(grid, (height, width), mode="bicubic").flatten(2)[0].t()
    return value.repeat(steps, 1)


def _rows(start: str) -> str:
    """Rows of the authors' names, which begin with `start`."""
    rows = f"""
        {start}patch_embed.{{u}}.{{p}}    trunk.patches.{{u}}.{{p}}    inflate
        {start}norm[3].{{p}}              trunk.norm.{{p}}
    """
    for number in range(4):
        theirs, ours = f"{start}layers.{number}", f"trunk.stage{number + 1}"
        rows += f"""
            {theirs}.blocks.{{b}}.norm{{i}}.{{p}}       {ours}.{{b}}.norm{{i}}.{{p}}
            {theirs}.blocks.{{b}}.attn.{{u}}.{{p}}      {ours}.{{b}}.attn.{{u}}.{{p}}
            {theirs}.blocks.{{b}}.attn.relative_position_bias_table    {ours}.{{b}}.attn.table    widen
            {theirs}.blocks.{{b}}.mlp.{{u}}.{{p}}       {ours}.{{b}}.mlp.{{u}}.{{p}}
            {theirs}.downsample.{{u}}.{{p}}             {ours}.merge.{{u}}.{{p}}
            {theirs}.blocks.{{b}}.attn.relative_position_index    -    computed, not read
            {theirs}.blocks.{{b}}.attn_mask                       -    computed, not read
        """
    return rows


def _torchvision() -> str:
    """Rows of torchvision's names: features.0, 2, 4, 6 hold blocks, features.1, 3, 5 merge patches."""
    rows = """
        patch_embed.{u}.{p}    trunk.patches.{u}.{p}
        norm.{p}               trunk.norm.{p}
        head.{p}               head.{p}
    """
    for number in range(4):
        theirs, ours = f"features.{2 * number}.{{b}}", f"trunk.stage{number + 1}.{{b}}"
        rows += f"""
            {theirs}.norm{{i}}.{{p}}      {ours}.norm{{i}}.{{p}}
            {theirs}.attn.{{u}}.{{p}}     {ours}.attn.{{u}}.{{p}}
            {theirs}.attn.relative_position_bias_table    {ours}.attn.table
            {theirs}.attn.relative_position_index         -    computed, not read
            {theirs}.mlp.0.{{p}}          {ours}.mlp.fc1.{{p}}
            {theirs}.mlp.3.{{p}}          {ours}.mlp.fc2.{{p}}
            features.{2 * number + 1}.{{u}}.{{p}}    trunk.stage{number + 1}.merge.{{u}}.{{p}}
        """
    return rows


LAYOUTS = (
    Layout(
        "video-swin",
        frozenset({"backbone.layers.0.blocks.0.attn.qkv.weight"}),
        table(_rows("backbone.") + "cls_head.fc_cls.{p}    head.{p}"),
    ),
    Layout("torchvision", frozenset({"features.0.0.attn.qkv.weight"}), table(_torchvision())),
    Layout(
        "swin",
        frozenset({"layers.0.blocks.0.attn.qkv.weight"}),
        table(_rows("") + "head.{p}    -    classifier of ImageNet"),
        adapt=widen,
    ),
)
