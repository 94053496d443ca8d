"""Names of ResKD's training checkpoints: a student and its teacher in one file. The student is loaded.

Source: CVMI-Lab/ResKD@c6b85a3:mmaction/models/backbones/rkd.py. Its teachers alone, and students that were
taken out, are MMAction2 or Video Swin files. The teacher inside a pair is left out: its running statistics
went on moving while it taught. What the student is fed goes with it: the crop of its teacher, reduced.
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from torch import Tensor

from marey.errors import WeightsError
from marey.video.preprocess import Preprocess
from marey.weights import openmmlab, swin
from marey.weights.names import Layout, Row, table

SOURCE = "reskd"
STUDENT, TEACHER = "backbone.low_res_path.", "backbone.high_res_path."
CROP, INPUT = 224, 112  # of the teacher's picture and of the student's, in every configuration there is


def spell(names: Collection[str]) -> dict[str, str]:
    """The student's names as those of a file of its own, the teacher's with another beginning."""
    return {name: name.replace(STUDENT, "backbone.").replace(TEACHER, "teacher.") for name in names}


def _pair(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows of a network's own files, and those of the teacher beside it."""
    return rows + table("""
        teacher.{rest...}        -   the teacher
        cls_head.fc_cls_t.{p}    -   the teacher
    """)


LAYOUTS = (
    Layout(
        SOURCE,
        frozenset({f"{STUDENT}conv1.conv.weight"}),
        _pair(openmmlab.LAYOUT.rows),
        spell=spell,
        check=openmmlab.check,
    ),
    Layout(
        SOURCE,
        frozenset({f"{STUDENT}layers.0.blocks.0.attn.qkv.weight"}),
        _pair(swin.LAYOUTS[0].rows),
        spell=spell,
    ),
)


def extract_student(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The student of a pair under the names of a plain file, as its own project would load it.

    Raises WeightsError WEIGHTS_LAYOUT where the tensors are no pair. `marey convert PAIR STUDENT.safetensors`
    writes a checkpoint of it, with its preprocessing.
    """
    if not any(name.startswith(STUDENT) for name in tensors):
        raise WeightsError("WEIGHTS_LAYOUT", f"no tensor begins with {STUDENT}: this is no pair of ResKD's")
    return {
        name.replace(STUDENT, "backbone."): value
        for name, value in tensors.items()
        if not name.startswith((TEACHER, "cls_head.fc_cls_t."))
    }


def student_clips(clips: Preprocess) -> Preprocess:
    """What a student is fed whose network's family is fed `clips`: its teacher's crop, halved."""
    given: dict[str, Any] = {"crop": CROP, "input_size": INPUT}
    return msgspec.structs.replace(clips, **given)
