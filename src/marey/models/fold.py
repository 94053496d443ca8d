"""A copy of a network for inference: norms folded into convolutions, sums and ReLUs done in the same pass.

In evaluation mode a batch norm is a factor and a summand per channel, which the convolution before it can
carry. What is left of a unit is one pass over memory instead of three; on CPUs oneDNN adds shortcuts in it.
Its channels-last kernels are the fastest known way there for 1x1x1 and for depthwise 3x3x3 convolutions:
`benchmarks/convolutions.py` compares.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from marey.models.parts import Residual

Conv = nn.Conv2d | nn.Conv3d

# What inductor calls for the same purpose; without gradients, so only where none can be wanted.
ONEDNN: bool = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_convolution_pointwise_"
)
# Weights in the order that its kernels read, which is else made anew in every pass.
PACKS: bool = ONEDNN and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
DTYPES = (torch.float32, torch.bfloat16)


def folded(model: nn.Module) -> nn.Module:
    """A copy for inference, in evaluation mode; the original stays as it is.

    Every batch norm that follows a convolution is folded into it, in float64; weights lie in channels_last or
    channels_last_3d. Outputs equal the original's in evaluation mode up to rounding (1e-5 relative).

    The copy can be moved and cast (`.to(torch.bfloat16)`); its parameters have other names and do not learn.
    On CPUs their order is oneDNN's own once a clip came: compile or export a copy that has not run.
    Blocks write their sum over their input where only the block before made it: whoever hooks into blocks to
    keep their outputs has to copy them.
    """
    shared = getattr(model, "preprocess", None)  # frozen, so the copy may have the same one
    copy = deepcopy(model, {id(shared): shared}).eval().requires_grad_(False)
    for parent in reversed(list(copy.modules())):  # what is inside of others first
        before: nn.Module | None = None
        for name, child in list(parent.named_children()):
            row = type(parent) is nn.Sequential
            if type(child) is nn.Sequential:
                setattr(parent, name, _joined(child))
            elif isinstance(child, Residual):
                overwrite = row and isinstance(before, Residual)
                setattr(parent, name, FoldedResidual(child, overwrite=overwrite))
            elif isinstance(child, Conv) and not row and _known(child):
                setattr(parent, name, Folded(child, None, relu=False))
            before = child
    return _joined(copy) if type(copy) is nn.Sequential else copy


class Folded(nn.Module):
    """A convolution with the norm behind it in weight and bias; then a summand, if given; then ReLU.

    weight      opaque (`is_mkldnn`) once a clip came, until it is moved, cast, copied or saved
    packed_for  shape of the input for which it is in the best order; another one has it made again
    """

    def __init__(self, conv: Conv, norm: _BatchNorm | None, *, relu: bool) -> None:
        super().__init__()
        weight, bias = _merged(conv, norm)
        self.format = torch.channels_last_3d if weight.ndim == 5 else torch.channels_last
        self.weight = nn.Parameter(weight.contiguous(memory_format=self.format), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.plain = F.conv3d if weight.ndim == 5 else F.conv2d
        self.stride, self.padding, self.dilation = list(conv.stride), conv.padding, list(conv.dilation)
        self.groups, self.relu = conv.groups, relu
        self.packed_for: torch.Size | None = None

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Float [B, C, ...] -> [B, C', ...]. A summand `added`, of the same shape, is overwritten."""
        weight: Tensor = self.weight
        if not _fusible(x):
            weight = weight.to_dense() if weight.is_mkldnn else weight
            y = self.plain(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            y = y if added is None else y.add_(added)  # in place on the younger: gradients allow it
            return F.relu(y, inplace=True) if self.relu else y
        x, after = x.contiguous(memory_format=self.format), "relu" if self.relu else "none"
        if PACKS and x.shape != self.packed_for:
            weight = weight.to_dense() if weight.is_mkldnn else weight
            places = (self.padding, self.stride, self.dilation, self.groups, x.shape)
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *places)
            self.weight, self.packed_for = nn.Parameter(weight, requires_grad=False), x.shape
        given = (x, weight, self.bias, self.padding, self.stride, self.dilation, self.groups)
        fused: Tensor
        if added is None:
            fused = torch.ops.mkldnn._convolution_pointwise(*given, after, [], "")
        else:
            added = added.contiguous(memory_format=self.format)
            fused = torch.ops.mkldnn._convolution_pointwise_(added, *given, "add", 1.0, after, [], "")
        return fused

    def unpack(self) -> None:
        """Makes the weight a plain tensor again, which can be moved, cast, copied and saved."""
        if self.weight.is_mkldnn:
            plain = self.weight.to_dense().contiguous(memory_format=self.format)
            self.weight, self.packed_for = nn.Parameter(plain, requires_grad=False), None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.unpack()
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def _save_to_state_dict(self, *where: Any) -> None:
        self.unpack()
        super()._save_to_state_dict(*where)

    def __getstate__(self) -> dict[str, Any]:
        self.unpack()
        return self.__dict__


class FoldedResidual(nn.Module):
    """A residual block whose last convolution adds the shortcut and applies the ReLU.

    overwrite  the block before made the input for this one alone, so that the sum may take its place
    """

    def __init__(self, block: Residual, *, overwrite: bool) -> None:
        super().__init__()
        *first, last = _flat(block.conv1, block.conv2, block.conv3)
        assert isinstance(last, Folded)
        last.relu = True
        self.first, self.last = nn.Sequential(*first), last
        self.shortcut, self.non_local = block.shortcut, block.non_local
        self.overwrite = overwrite

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, ...] -> float [B, C', ...]."""
        inner = self.first(x)
        if self.shortcut is not None:
            added = self.shortcut(x)
        else:
            added = x if self.overwrite else x.clone()
        y: Tensor = self.last(inner, added)
        return y if self.non_local is None else self.non_local(y)


def _fusible(x: Tensor) -> bool:
    return (
        ONEDNN
        and bool(torch.backends.mkldnn.enabled)
        and x.device.type == "cpu"
        and x.dtype in DTYPES
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not torch.compiler.is_compiling()  # which fuses what it knows by itself
    )


def _merged(conv: Conv, norm: _BatchNorm | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution and the norm together, in the convolution's own precision."""
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        factor = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.affine:
            factor = factor * norm.weight.detach().double()
        weight = weight * factor.view(-1, *[1] * (weight.ndim - 1))
        bias = (bias - norm.running_mean.double()) * factor
        if norm.affine:
            bias = bias + norm.bias.detach().double()
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def _joined(row: nn.Sequential) -> nn.Module:
    """The layers of a Sequential, each convolution joined with the norm and the ReLU that follow it."""
    layers, found = list(row.named_children()), OrderedDict[str, nn.Module]()
    while layers:
        name, layer = layers.pop(0)
        if isinstance(layer, Conv) and _known(layer):
            norm = layers.pop(0)[1] if layers and isinstance(layers[0][1], _BatchNorm) else None
            relu = bool(layers) and isinstance(layers[0][1], nn.ReLU)
            layers = layers[relu:]
            layer = Folded(layer, norm, relu=relu)  # type: ignore[arg-type]
            if not found and not layers:
                return layer
        found[name] = layer
    return nn.Sequential(found)


def _known(conv: Conv) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _flat(*modules: nn.Module | None) -> Iterator[nn.Module]:
    """All modules in the order in which they run, those of Sequentials one by one."""
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _flat(*module)
        elif module is not None:
            yield module
