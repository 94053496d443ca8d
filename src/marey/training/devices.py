"""The device that one network runs on, by the name a user gives it."""

import torch

from marey.errors import EnvironmentFault, unknown


def accelerators() -> list[str]:
    """What there is beside the processor: "cuda:0", "cuda:1", ..., or "mps"."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{card}" for card in range(cards)] + ["mps"] * torch.backends.mps.is_available()


def device_of(name: str | None) -> torch.device:
    """The device of a name ("cpu", "cuda", "cuda:1", ...); None: the GPU if there is one.

    Raises UsageError UNKNOWN_NAME for what is no device, EnvironmentFault NO_ACCELERATOR for one that is not
    there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ["cpu", *accelerators()]) from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch that was built without it
        raise no_accelerator(name, error) from None
    return device


def no_accelerator(asked: str, error: Exception) -> EnvironmentFault:
    """The error for a device that is not there; `error` is what torch or Fabric said."""
    reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    here = ", ".join(["cpu", *accelerators()])
    return EnvironmentFault(
        "NO_ACCELERATOR", f"cannot use {asked!r}: {reason}; here are {here} (`marey doctor` tells more)"
    )
