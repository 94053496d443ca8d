"""Weights, inputs and name tables of reference cases, made from formulas instead of files.

Reference values were computed with the original implementations (named in each JSON file) on weights and
inputs that numpy's frozen RandomState streams give for a name or a seed.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def drawn(name, shape, salt=""):
    """A parameter's value: its stream is seeded by its name, its scale keeps activations of order one."""
    stream = np.random.RandomState(zlib.crc32(f"{salt}{name}".encode()) % 2**31)
    leaf = name.split(".")[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if leaf == "running_var" or (len(shape) < 2 and leaf == "weight"):
        value = stream.uniform(0.5, 1.5, shape)
    elif len(shape) < 2:
        value = stream.standard_normal(shape) / 10
    else:
        value = stream.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, np.float32))


def filled(table, salt=""):
    """All parameters of a table {name: shape}."""
    return {name: drawn(name, shape, salt) for name, shape in table.items()}


def drawn_input(shape, seed):
    """Standard normal float32."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def drawn_case(case):
    """The drawn tensors of a case's file by name, and its input as our networks take it: [B, 3, T, H, W]."""
    table = case_table(case)
    clip = drawn_input(case["input"]["shape"], case["input"]["seed"])
    return filled(table, case["salt"]), clip.transpose(1, 2) if case["input"]["frames_first"] else clip


def relative_error(got, want):
    """Euclidean distance over the length of what is wanted, in float64."""
    got, want = torch.as_tensor(got).double().flatten(), torch.as_tensor(want).double().flatten()
    return float((got - want).norm() / want.norm())


def load_case(path):
    return json.loads(Path(path).read_text())


def checksum(table):
    """crc32 over the sorted lines "name 64x3x7x7"; reference files hold that of the original table."""
    return zlib.crc32("\n".join(sorted(f"{n} {'x'.join(map(str, s))}" for n, s in table.items())).encode())


def mmaction_table(
    depth,
    *,
    time=None,
    classes=400,
    width=64,
    shifted=(),
    pooled=False,
    non_local=(),
    mode="embedded_gaussian",
    sub_sample=True,
    csn=None,
):
    """Names and shapes as MMAction2 files hold them.

    csn        None, or "ir" or "ip": the channel-separated network
    time       None for 2D networks; else temporal kernels of the first convolution of stages 1 to 4
    shifted    (stage, block) whose first convolution is wrapped by the temporal shift
    pooled     whether layer2 is wrapped by temporal pooling
    non_local  (stage, block) that a non-local block follows; 2D networks wrap the block itself
    mode, sub_sample  of these blocks
    """
    table, three = {}, time is not None or csn is not None
    shifted, non_local = ({tuple(place) for place in places} for places in (shifted, non_local))
    expansion = 4 if depth >= 50 else 1

    def unit(name, out, channels, *kernel, net=""):
        table[f"{name}.conv{net}.weight"] = (out, channels, *(kernel if three else kernel[1:]))
        table.update({f"{name}.bn.{leaf}": () if "num" in leaf else (out,) for leaf in NORM})

    unit("backbone.conv1", width, 3, 3 if csn else 1, 7, 7)
    before = width
    for stage, count in enumerate(BLOCKS[depth], 1):
        middle = width * 2 ** (stage - 1)
        for block in range(count):
            place = f"backbone.layer{stage}{'.net' if pooled and stage == 2 else ''}.{block}"
            wrapped = f"{place}.block" if (stage, block) in non_local and not three else place
            net = ".net" if (stage, block) in shifted else ""
            after = middle * expansion
            if expansion == 1:
                unit(f"{wrapped}.conv1", middle, before, 1, 3, 3, net=net)
                unit(f"{wrapped}.conv2", middle, middle, 1, 3, 3)
            else:
                unit(f"{wrapped}.conv1", middle, before, time[stage - 1] if time else 1, 1, 1, net=net)
                if csn == "ip":
                    unit(f"{wrapped}.conv2.0", middle, middle, 1, 1, 1)
                if csn:
                    unit(f"{wrapped}.conv2.{['ir', 'ip'].index(csn)}", middle, 1, 3, 3, 3)
                else:
                    unit(f"{wrapped}.conv2", middle, middle, 1, 3, 3)
                unit(f"{wrapped}.conv3", after, middle, 1, 1, 1)
            if block == 0 and (before != after or stage > 1):
                unit(f"{wrapped}.downsample", after, before, 1, 1, 1)
            if (stage, block) in non_local:
                inner = non_local_table(after, mode, sub_sample)
                table |= {f"{place}.non_local_block.{n}": s for n, s in inner.items()}
            before = after
    table |= {"cls_head.fc_cls.weight": (classes, before), "cls_head.fc_cls.bias": (classes,)}
    return table


def non_local_table(channels, mode, sub_sample=True):
    """Names and shapes of one non-local block, as mmcv names them."""
    inner, pooled = channels // 2, ".0" if sub_sample else ""
    table = {"conv_out.conv.weight": (channels, inner, 1, 1, 1)}
    table |= {f"conv_out.bn.{leaf}": () if "num" in leaf else (channels,) for leaf in NORM}
    for name in (f"g{pooled}", *(() if mode == "gaussian" else ("theta", f"phi{pooled}"))):
        table |= {f"{name}.conv.weight": (inner, channels, 1, 1, 1), f"{name}.conv.bias": (inner,)}
    return table


def videoresnet_name(name, csn):
    """What VMZ's .pth files call a tensor of CSN that MMAction2 calls `name`."""
    name = name.replace("cls_head.fc_cls", "fc").replace("backbone.", "")
    if name.startswith("conv1."):
        return name.replace("conv1.conv", "stem.0").replace("conv1.bn", "stem.1")
    if csn == "ip":
        for theirs, vmz in (("0.conv", "0.0"), ("0.bn", "0.1"), ("1.conv", "0.2"), ("1.bn", "1")):
            if f".conv2.{theirs}." in name:
                return name.replace(f".conv2.{theirs}.", f".conv2.{vmz}.")
    return name.replace(".conv2.0.", ".conv2.").replace(".conv.", ".0.").replace(".bn.", ".1.")


def r2plus1d_table(depth, classes=400, width=64):
    """Names and shapes of VMZ's R(2+1)D, as its .pth files hold them."""
    table, expansion = {}, 4 if depth >= 50 else 1

    def norm(name, channels):
        table.update({f"{name}.{leaf}": () if "num" in leaf else (channels,) for leaf in NORM})

    def plain(name, out, channels):
        table[f"{name}.0.weight"] = (out, channels, 1, 1, 1)
        norm(f"{name}.1", out)

    def split(name, out, channels):
        between = int(27 * channels * out / (9 * channels + 3 * out))
        table[f"{name}.0.0.weight"] = (between, channels, 1, 3, 3)
        norm(f"{name}.0.1", between)
        table[f"{name}.0.3.weight"] = (out, between, 3, 1, 1)
        norm(f"{name}.1", out)

    table["stem.0.weight"] = (45 * width // 64, 3, 1, 7, 7)
    norm("stem.1", 45 * width // 64)
    table["stem.3.weight"] = (width, 45 * width // 64, 3, 1, 1)
    norm("stem.4", width)
    before = width
    for stage, count in enumerate(BLOCKS[depth], 1):
        middle = width * 2 ** (stage - 1)
        after = middle * expansion
        for block in range(count):
            place = f"layer{stage}.{block}"
            if expansion == 1:
                split(f"{place}.conv1", middle, before)
                split(f"{place}.conv2", middle, middle)
            else:
                plain(f"{place}.conv1", middle, before)
                split(f"{place}.conv2", middle, middle)
                plain(f"{place}.conv3", after, middle)
            if block == 0 and (before != after or stage > 1):
                plain(f"{place}.downsample", after, before)
            before = after
    return table | {"fc.weight": (classes, before), "fc.bias": (classes,)}


def caffe2_name(name, depth, csn=None, classes=400):
    """What VMZ's .pkl files call a tensor that its .pth files call `name`; None: they have no such tensor."""
    module, _, leaf = name.rpartition(".")
    if leaf == "num_batches_tracked":
        return None
    if module == "fc":
        return f"last_out_L{classes}_{leaf[0]}"
    head, _, last = module.rpartition(".")
    norm = last in ("1", "4") or (head.endswith(".0") and last == "1")
    end = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}[leaf] if norm else "w"
    if head == "stem":
        middle = "_middle" if csn is None and last in ("0", "1") else ""
        return f"conv1{middle}{'_spatbn_relu' if norm else ''}_{end}"
    layer, block, unit, *inner = head.split(".")
    number = sum(BLOCKS[depth][: int(layer[5:]) - 1]) + int(block)
    if unit == "downsample":
        return f"shortcut_projection_{number}{'_spatbn' if norm else ''}_{end}"
    place = {"ir": "134"}.get(csn, "123")[int(unit[4:]) - 1]
    middle = "_middle" if inner and last in ("0", "1") else ""
    return f"comp_{number}_{'spatbn' if norm else 'conv'}_{place}{middle}_{end}"


def case_table(case):
    """Names and shapes of a case's file, checked against those that the original network had."""
    if case.get("names") == "r2plus1d":
        table = r2plus1d_table(**case["table"])
    else:
        table = mmaction_table(**case["table"])
    if case.get("names") == "vmz":
        table = {videoresnet_name(name, case["table"]["csn"]): shape for name, shape in table.items()}
    assert checksum(table) == case["table_crc32"]
    return table


def torchvision_table(depth):
    """Names and shapes of a torchvision ResNet."""
    table = {}
    for name, shape in mmaction_table(depth, classes=1000).items():
        name = name.replace("backbone.", "").replace("cls_head.fc_cls", "fc")
        if "downsample" in name:
            name = name.replace(".conv.", ".0.").replace(".bn.", ".1.")
        elif ".bn." in name:
            name = name.replace(".bn.", ".").replace("conv", "bn")
        table[name.replace(".conv.", ".")] = shape
    return table


ALL_BLOCKS = tuple((s, b) for s, n in enumerate(BLOCKS[50], 1) for b in range(n))
ZOO_NON_LOCAL = ((2, 0), (2, 2), (3, 0), (3, 2), (3, 4))
