"""Networks that `marey export` wrote as ONNX, run by onnxruntime: for predicting, and only there."""

import importlib
import os
from types import ModuleType
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from marey.errors import EnvironmentFault, MareyError, UsageError, WeightsError
from marey.video.preprocess import Preprocess
from marey.weights.native import FORMAT, KEY, Card

INPUT, OUTPUT = "clip", "logits"


class OnnxModel(nn.Module):
    """Looks like a network of `create_model` that has only `forward`; runs on the CPU, on torch's threads.

    preprocess, class_names, num_classes, spec, metadata   as of the network that was exported
    """

    def __init__(self, session: Any, card: Card) -> None:
        super().__init__()
        self.session = session
        self.sides: list[Any] = session.get_inputs()[0].shape  # numbers, or names of what is free
        self.preprocess: Preprocess | None = card.preprocess
        self.class_names, self.num_classes = card.class_names, card.num_classes
        self.spec = {"name": card.model, "num_classes": card.num_classes, "overrides": card.overrides}
        self.metadata = msgspec.to_builtins(card)
        self.eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxModel":
        return self  # there is nothing in it to change

    def forward(self, clip: Tensor) -> Tensor:
        """Raw logits: float [B, 3, T, H, W] -> float32 [B, num_classes], on the device of the clip.

        Raises UsageError CLIP_SIZE for clips of other sides than it was exported for.
        """
        if clip.is_meta:
            raise _only_logits("nothing can be counted")
        pairs = zip(clip.shape, self.sides, strict=True)
        if any(isinstance(side, int) and side != got for got, side in pairs):
            sides = " x ".join(str(side) for side in self.sides[2:])
            raise UsageError(
                "CLIP_SIZE",
                f"a clip of {' x '.join(map(str, clip.shape[2:]))} came to a network exported for {sides}; "
                "export it with --input, --any-frames or --any-size to suit",
            )
        given = {INPUT: clip.detach().float().cpu().contiguous().numpy()}
        try:
            logits = self.session.run([OUTPUT], given)[0]
        except Exception as error:  # as in `open_onnx`
            size = " x ".join(map(str, clip.shape[2:]))
            raise MareyError(
                "EXPORT_FAILED",
                f"onnxruntime cannot run {self.spec['name']} on a clip of {size}: {_line(error)}",
            ) from None
        return torch.from_numpy(logits).to(clip.device)

    def features(self, clip: Tensor) -> Tensor:
        """Not there: raises UsageError EXPORT_LOGITS."""
        raise _only_logits("there are no features")

    def embed(self, clip: Tensor) -> Tensor:
        """Not there: raises UsageError EXPORT_LOGITS."""
        raise _only_logits("there are no features")


def _only_logits(what: str) -> UsageError:
    return UsageError(
        "EXPORT_LOGITS",
        f"an exported network gives logits, {what}; take the checkpoint that it was made from",
    )


def open_onnx(path: str | os.PathLike[str]) -> OnnxModel:
    """The network of a file that `marey export` wrote.

    Raises EnvironmentFault EXTRA_MISSING without onnxruntime; WeightsError: WEIGHTS_NOT_FOUND,
    WEIGHTS_DAMAGED, and WEIGHTS_CARD for ONNX files of others, which do not say what their network is fed.
    """
    (runtime,) = extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        with open(path, "rb"):  # noqa: PTH123  # for its error
            pass
        session: Any = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise WeightsError("WEIGHTS_NOT_FOUND", f"cannot read {str(path)!r}: {error.strerror}") from None
    except Exception as error:  # onnxruntime's own have no common parent
        raise WeightsError(
            "WEIGHTS_DAMAGED", f"onnxruntime cannot load {str(path)!r}: {_line(error)}"
        ) from None
    card = session.get_modelmeta().custom_metadata_map.get(KEY)
    try:
        found = msgspec.json.decode(card or "", type=Card)
    except (msgspec.MsgspecError, MareyError) as error:
        raise _not_ours(path, str(error) if card else "it has no card") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [value.name for value in (*inputs, *outputs)] != [INPUT, OUTPUT] or len(inputs[0].shape) != 5:
        raise _not_ours(path, "it does not take one clip and give logits")
    names = found.class_names
    if found.format != FORMAT or outputs[0].shape[1:] != [found.num_classes]:
        raise _not_ours(path, "its card and its network disagree")
    if names is not None and len(names) != found.num_classes:
        raise _not_ours(path, f"it has {len(names)} class names for {found.num_classes} classes")
    return OnnxModel(session, found)


def _line(error: Exception) -> str:
    return ascii(str(error).partition("\n")[0])[1:-1][:200]


def _not_ours(path: str | os.PathLike[str], why: str) -> WeightsError:
    return WeightsError(
        "WEIGHTS_CARD", f"{str(path)!r} is no network that this marey can predict with: {why}"
    )


def extra(*names: str) -> list[ModuleType]:
    """Modules of the extra `export`. Raises EnvironmentFault EXTRA_MISSING."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise EnvironmentFault(
            "EXTRA_MISSING", f"needs {', '.join(names)}: pip install 'marey[export]' ({error})"
        ) from None
