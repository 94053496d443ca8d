"""Long-term feature banks on AVA: a person is told of what the film showed a minute around.

    marey bank build RECIPE --checkpoint BASELINE --out bank/
    marey train lfb_nl_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb data.train.bank=bank/ ...

Wu et al., "Long-Term Feature Banks for Detailed Video Understanding", arXiv:1812.05038, as in
open-mmlab/mmaction2@v0.24.1:configs/detection/lfb, under the names of its configurations. The bank holds the
features that the AVA-trained baseline sees in the proposals of every second; the network itself starts from
the recognizer of Kinetics-400. A window is 60 steps of a second with five boxes each.
"""

from collections.abc import Callable
from functools import partial

from marey.recipes.ava import SPARSE_START, Row, build, twenty
from marey.recipes.schema import BoxRecipe

ROW = Row(start=SPARSE_START, training=twenty(12, 0.15))
KINDS = ("nl", "avg", "max")

RECIPES: dict[str, Callable[..., BoxRecipe]] = {
    name: partial(build, "lfb", name, ROW)
    for name in (f"lfb_{kind}_kinetics_pretrained_slowonly_r50_4x16x1_20e_ava_rgb" for kind in KINDS)
}
