"""Names of ResKD's training checkpoints: a student and its teacher in one file. The student is loaded.

Source: CVMI-Lab/ResKD@c6b85a3:mmaction/models/backbones/rkd.py. Its teachers alone are MMAction2 files. The
teacher inside a pair is left out: its running statistics went on moving while it taught.
"""

from collections.abc import Collection

from marey.weights import openmmlab
from marey.weights.names import Layout, table


def spell(names: Collection[str]) -> dict[str, str]:
    """The student's names as those of an MMAction2 file, the teacher's with another beginning."""
    spelt = {}
    for name in names:
        student = name.replace("backbone.low_res_path.", "backbone.")
        spelt[name] = student.replace("backbone.high_res_path.", "teacher.")
    return spelt


LAYOUT = Layout(
    "reskd",
    frozenset({"backbone.low_res_path.conv1.conv.weight"}),
    table(
        openmmlab.TABLE
        + """
        teacher.{rest...}        -   the teacher
        cls_head.fc_cls_t.{p}    -   the teacher
        """
    ),
    spell=spell,
    check=openmmlab.check,
)
