"""Processes that work on one run: Lightning Fabric starts and connects them, torchrun or SLURM may launch."""

import os
from typing import Any

import torch
from lightning_fabric.accelerators import ACCELERATOR_REGISTRY
from lightning_fabric.fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import distributed as dist
from torch import nn

from marey.errors import unknown
from marey.training.devices import no_accelerator


def launch(*, accelerator: str = "auto", devices: int = 1, nodes: int = 1, precision: str = "32") -> Fabric:
    """A connected Fabric: one process per device and node; under torchrun or SLURM their number rules.

    precision "32", or "bf16" (autocast). Raises UsageError UNKNOWN_NAME, EnvironmentFault NO_ACCELERATOR.
    """
    known = {"auto", "gpu", *ACCELERATOR_REGISTRY.available_accelerators()}
    if accelerator not in known:
        raise unknown("accelerator", accelerator, known)
    parallel = devices * nodes > 1 or int(_launched_processes()) > 1
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=int(_launched_local()) if _launched_local() else devices,
            num_nodes=nodes,
            strategy="ddp" if parallel else "auto",
            precision="bf16-mixed" if precision == "bf16" else "32-true",
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise no_accelerator(f"{devices} x {accelerator}", error) from None
    fabric.launch()
    return fabric


def _launched_processes() -> str:
    return os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or "1"


def _launched_local() -> str:
    return os.environ.get("LOCAL_WORLD_SIZE", "")


def gather(fabric: Fabric, item: Any) -> list[Any]:
    """Every process's item, in the order of ranks, in every process."""
    if fabric.world_size == 1:
        return [item]
    items: list[Any] = [None] * fabric.world_size
    dist.all_gather_object(items, item)
    return items


def anyone(fabric: Fabric, flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if fabric.world_size == 1:
        return flag
    total = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return bool(torch.as_tensor(total) > 0)


def same_buffers(fabric: Fabric, model: nn.Module) -> None:
    """Give every process the batch-norm statistics of the first, so that all score alike."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
