"""Files of PaddlePaddle 1.x and the names of its NeXtVLAD (PaddlePaddle/models@b71cf63:PaddleCV/video).

NEXTVLAD was published in three formats, told apart by content: a pickled dict (release 1.7 on, which
`read_weights` reads like any pickle); tensors one after another in the order of their sorted names, without
the names (1.6); and a folder, or its .tar.gz, of one such tensor per file, named as the parameter (1.3 on).

    tensor: uint32 0; uint64 number of LoD levels, each uint64 bytes and data; uint32 0; int32 length of a
            protobuf (1 = data type, 2 = repeated dimensions); the numbers, little-endian

(PaddlePaddle/Paddle@v1.8.5: paddle/fluid/framework/lod_tensor.cc, tensor_util.cc, framework.proto)
"""

import struct
import tarfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from marey.errors import WeightsError
from marey.weights.names import Layout, table

START = bytes(12)  # of a tensor without LoD
TYPES = {1: "<i2", 2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8", 20: "<u1", 21: "<i1"}
MOST_BYTES = 4 * 2**30  # of an unpacked archive; NeXtVLAD's is 357 MB
MOST_DIMENSIONS = 9

TABLE = """
    eigen_param                                 rgb.scale
    video_fc_expansion_w                        rgb.expansion.weight      transpose
    video_fc_expansion_b                        rgb.expansion.bias
    video_fc_group_attention_w                  rgb.attention.weight      transpose
    video_fc_group_attention_b                  rgb.attention.bias
    video_cluster_weights                       rgb.assignment.weight     transpose
    video_cluster_weights2                      rgb.centres
    audio_fc_expansion_w                        audio.expansion.weight    transpose
    audio_fc_expansion_b                        audio.expansion.bias
    audio_fc_group_attention_w                  audio.attention.weight    transpose
    audio_fc_group_attention_b                  audio.attention.bias
    audio_cluster_weights                       audio.assignment.weight   transpose
    audio_cluster_weights2                      audio.centres
    hidden1_fc_weights                          hidden.weight             transpose
    gating_fc1_weights                          squeeze.weight            transpose
    gating_fc2_weights                          excite.weight             transpose
    logits_clf_weights                          head.weight               transpose
    logits_clf_bias                             head.bias
"""
NORMS = (
    "rgb.assignment_norm", "rgb.norm", "audio.assignment_norm", "audio.norm", "hidden_norm", "squeeze_norm",
)  # fmt: skip
LEAVES = {"w_0": "weight", "b_0": "bias", "w_1": "running_mean", "w_2": "running_var"}
TABLE += "".join(
    f"batch_norm_{number}.{theirs}    {norm}.{ours}\n"
    for number, norm in enumerate(NORMS)
    for theirs, ours in LEAVES.items()
)
# early files have no scales: theirs were applied while reading the data, and are those a network starts with
LAYOUT = Layout("paddle", frozenset({"video_fc_expansion_w"}), table(TABLE), may_lack=("rgb.scale",))
NAMES = tuple(sorted(line.split()[0] for line in TABLE.splitlines() if line.strip()))


def read_combined(path: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Tensors that lie in a file without their names.

    names  theirs, in any order; None: those of NeXtVLAD, with or without `eigen_param`
    Raises WeightsError WEIGHTS_DAMAGED, WEIGHTS_LAYOUT.
    """
    data = memoryview(path.read_bytes())
    tensors, place = [], 0
    while place < len(data):
        tensor, place = _tensor(data, place, str(path))
        tensors.append(tensor)
    if names is None:
        names = NAMES if len(tensors) == len(NAMES) else [name for name in NAMES if name != "eigen_param"]
    if len(names) != len(tensors):
        raise WeightsError(
            "WEIGHTS_LAYOUT",
            f"{str(path)!r} holds {len(tensors)} tensors without names, as Paddle writes them; only "
            f"NeXtVLAD's, {len(NAMES)} or {len(NAMES) - 1}, are known",
        )
    return dict(zip(sorted(names), tensors, strict=True))


def read_folder(path: Path) -> dict[str, Tensor]:
    """Tensors of a folder with a file for each, or of a .tar.gz of such a folder.

    Nothing is unpacked to disk. Raises WeightsError WEIGHTS_FORMAT, WEIGHTS_DAMAGED, WEIGHTS_LIMIT.
    """
    tensors: dict[str, Tensor] = {}
    try:
        if path.is_dir():
            parts = ((file.name, file.read_bytes()) for file in sorted(path.iterdir()) if file.is_file())
            for name, data in parts:
                tensors[name] = _only(memoryview(data), f"{path}/{name}")
        else:
            with tarfile.open(path, "r:gz") as archive:
                total = 0
                for member in archive:
                    total += member.size
                    if total > MOST_BYTES:
                        raise WeightsError(
                            "WEIGHTS_LIMIT", f"{str(path)!r} declares more than {MOST_BYTES:,} bytes"
                        )
                    name = member.name.rpartition("/")[2]
                    if member.isfile() and (file := archive.extractfile(member)):
                        tensors[name] = _only(memoryview(file.read()), f"{path}: {member.name[:100]}")
    except (OSError, EOFError, tarfile.TarError) as error:
        raise WeightsError("WEIGHTS_DAMAGED", f"{str(path)!r} cannot be read: {error}") from None
    if not tensors:
        raise WeightsError("WEIGHTS_FORMAT", f"{str(path)!r} holds no tensors of Paddle 1.x")
    return tensors


def _only(data: memoryview, where: str) -> Tensor:
    if bytes(data[:12]) != START:
        raise WeightsError("WEIGHTS_FORMAT", f"{where!r} is no tensor of Paddle 1.x")
    tensor, place = _tensor(data, 0, where)
    if place != len(data):
        raise WeightsError("WEIGHTS_DAMAGED", f"{where!r} has {len(data) - place} bytes after its tensor")
    return tensor


def _tensor(data: memoryview, place: int, where: str) -> tuple[Tensor, int]:
    """The tensor that begins at `place`, and where it ends."""
    try:
        version, levels = struct.unpack_from("<IQ", data, place)
        place += 12
        for _ in range(min(levels, MOST_DIMENSIONS)):
            place += 8 + struct.unpack_from("<Q", data, place)[0]
        again, length = struct.unpack_from("<Ii", data, place)
        place += 8
        if version or again or levels > MOST_DIMENSIONS or not 0 < length <= 100:
            raise ValueError("it is another version, or no tensor")
        kind, shape = _description(bytes(data[place : place + length]))
        place += length
        dtype = np.dtype(TYPES[kind])
        size = prod(shape) * dtype.itemsize
        if size > len(data) - place:
            raise ValueError(f"{size:,} bytes of numbers are announced, {len(data) - place:,} are there")
        values = np.frombuffer(data[place : place + size], dtype).reshape(shape)
    except (struct.error, ValueError, KeyError, IndexError) as error:
        reason = f"an unknown type of numbers, {error}" if isinstance(error, KeyError) else error
        raise WeightsError("WEIGHTS_DAMAGED", f"{where!r}, near byte {place}: {reason}") from None
    return torch.from_numpy(values.copy()), place + size


def _description(data: bytes) -> tuple[int, list[int]]:
    """Data type and dimensions of a TensorDesc; dimensions may be packed or not."""
    kind, shape, place = 0, list[int](), 0

    def number() -> int:
        nonlocal place
        value, shift = 0, 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(data):
        tag = number()
        if tag == 0x08:
            kind = number()
        elif tag == 0x10:
            shape.append(number())
        elif tag == 0x12:
            end = number() + place
            while place < end:
                shape.append(number())
        else:
            raise ValueError(f"an unknown field, {tag >> 3}, in its description")
    if len(shape) > MOST_DIMENSIONS or max(shape, default=0) >= 2**40:
        raise ValueError("dimensions that cannot be")
    return kind, shape
