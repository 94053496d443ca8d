"""Networks with drawn weights under their publishers' names, as files of reference cases describe them."""

import re

import torch
from torch.nn import functional as F

from marey.models import build
from marey.weights import openmmlab
from marey.weights.load import LAYOUTS, load_weights
from tests.oracles import checksum, drawn_input, filled


def layout_of(source, ours, optional=True):
    """The layout of that source that knows the most of our names."""
    layouts = [layout for layout in LAYOUTS if layout.source == source]
    return max(layouts, key=lambda layout: len(their_names(layout, ours, optional)))


def their_names(layout, ours, optional=True):
    """Their name for each of our names that the layout's table can give, its rows read backwards.

    optional  with the parts of their names that may be missing
    """
    names = {}
    for name in ours:
        for row in sorted(filter(lambda row: row.ours, layout.rows), key=lambda row: row.ours.count("{")):
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[\\w.]+)", re.escape(row.ours))
            if not (hit := re.fullmatch(pattern, name)):
                continue
            theirs = re.sub(r"\(\?:(.+?)\)\?", r"\1" if optional else "", row.theirs.pattern)
            for key, value in hit.groupdict().items():
                theirs = re.sub(rf"\(\?P<{key}>[^)]*\)", value, theirs)
            theirs = theirs.replace("\\", "")
            if row.theirs.fullmatch(theirs) and theirs not in names.values():
                names[name] = theirs
                break
    return names


def table_of(model, source, optional=True):
    """Names and shapes of the publisher's file, as our table has them."""
    state = model.state_dict()
    layout = layout_of(source, state, optional)
    return {theirs: tuple(state[ours].shape) for ours, theirs in their_names(layout, state, optional).items()}


def detector_table(model):
    """Names and shapes of MMAction2's file; its operators on banks are 3D convolutions of 1 x 1 x 1."""
    state, table = model.state_dict(), {}
    for ours, theirs in their_names(openmmlab.LAYOUT, state, optional=False).items():
        theirs = theirs.replace("cls_head.", "roi_head.bbox_head.").replace(".net.", ".")
        theirs = theirs if theirs.startswith(("backbone.", "roi_head.")) else f"backbone.{theirs}"
        long = ours.startswith("long_term.") and (ours.endswith("weight") or ".norm." in ours)
        table[theirs] = (*state[ours].shape, *((1, 1, 1) if long else ()))
    return table


def published(case):
    """The network of a case and the report of loading its drawn weights.

    That the table is the publisher's is known from its checksum, which the case holds.
    """
    torch.manual_seed(0)
    model = build(case["model"], case["classes"], **case["overrides"]).eval()
    table = table_of(model, case["layout"], case.get("optional", True))
    assert (len(table), checksum(table)) == (case["tensors"], case["table_crc32"])
    return model, load_weights(model, filled(table, case["salt"]))


def clip_of(case):
    return drawn_input(case["input"]["shape"], case["input"]["seed"])


def losses_of_a_step(model, clip):
    """Loss of drawn clips before and after a step of AdamW, in which every parameter has its gradient."""
    label, optimizer = torch.arange(len(clip)), torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = F.cross_entropy(model(clip), label)
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    return before.item(), F.cross_entropy(model(clip), label).item()
