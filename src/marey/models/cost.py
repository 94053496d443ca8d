"""What a network costs: its parameters, and the multiply-adds of one clip.

A multiply-add is one product added to a sum: of convolutions, linear layers and matrix products (attention).
Norms, activations, pooling and biases are not counted, whatever their size. Published "GFLOPs" of video
networks mostly are such multiply-adds, in units of 1e9, at the crop of the test; some add norms.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from marey.models.detector import Detector
from marey.models.shell import ShapesOnly


def macs(model: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of one forward pass, in evaluation mode.

    shape  of one clip, without the batch: (3, T, H, W); detectors also get one box, of the whole clip

    Only shapes are computed (on torch's meta device): nothing is run, no memory is taken, and the network,
    wherever it is, stays as it is. Products that its code makes outside of layers are counted as well.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shells = {name: value.detach().to("meta") for name, value in tensors.items()}
    modes = {module: module.training for module in model.modules()}
    dtype = next((value.dtype for value in tensors.values() if value.is_floating_point()), torch.float32)
    clip = torch.empty((1, *shape), dtype=dtype, device="meta")
    beside = model.beside(clip) if isinstance(model, Detector) else ()
    counter: Any = FlopCounterMode(display=False)
    try:
        for module in modes:
            module.training = False
        with torch.no_grad(), counter, ShapesOnly():
            functional_call(model, shells, (clip, *beside))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops()) // 2  # torch counts a multiply-add as two


def parameters(model: nn.Module) -> int:
    """How many numbers training can change, frozen ones included; running statistics are not among them."""
    return sum(value.numel() for value in model.parameters())
