"""Weight files for the tests: well-formed in every wrapping, and hostile."""

import collections
import io
import json
import pickle
import struct
import zipfile

import numpy as np
import torch

from tests.oracles import filled, mmaction_table

TINY = {"width": 8}  # of a tsn_r18; what `tiny()` fits


def tiny(classes=400, shifted=()):
    """Drawn weights of an 18-layer 2D network of width 8, as MMAction2 names them."""
    return filled(mmaction_table(18, classes=classes, width=8, shifted=shifted))


class HistoryBuffer:
    """Stands in for the log class of a training tool that is not installed."""


HistoryBuffer.__module__ = "mmengine.logging.history_buffer"


class _AsNamed(pickle._Pickler):
    """Pickles classes and functions under the names they claim, installed or not."""

    def save_global(self, obj, name=None):
        self.write(f"c{obj.__module__}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch = pickle._Pickler.dispatch | {type: save_global}


class AsNamed:
    """A pickle module for torch.save."""

    Pickler = _AsNamed
    dump = staticmethod(pickle.dump)


def history(values):
    buffer = HistoryBuffer()
    buffer.__dict__ = {
        "max_length": 1000000,
        "_log_history": np.array(values),
        "_count_history": np.ones(len(values)),
    }
    return buffer


def as_0x(weights):
    """What MMAction2 0.x publishes: weights and texts."""
    meta = {
        "mmaction_version": "0.24.1",
        "config": "model = dict(...)",
        "epoch": 50,
        "iter": 12345,
        "hook_msgs": {},
    }
    return {"meta": meta, "state_dict": collections.OrderedDict(weights)}


def as_1x(weights):
    """What MMAction2 1.x writes while training: logs of its own classes beside the weights."""
    hub = {
        "log_scalars": collections.OrderedDict({"train/loss": history([2.5, 1.25, 0.5])}),
        "runtime_info": collections.OrderedDict(epoch=3, max_iters=np.int64(900), best=np.float32(0.75)),
        "resumed_keys": {},
    }
    state = {name: {"momentum_buffer": torch.zeros(3)} for name in range(2)}
    optimizer = {"state": state, "param_groups": [{"lr": np.float64(0.01), "params": [0, 1]}]}
    return {"meta": {"seed": 1, "experiment_name": "x"}, "state_dict": collections.OrderedDict(weights),
            "message_hub": hub, "optimizer": optimizer, "param_schedulers": [{"last_step": 3}]}  # fmt: skip


def as_parallel(weights):
    """With the prefix that data-parallel training adds, and PySlowFast's wrapping."""
    return {
        "epoch": 3,
        "model_state": {f"module.{name}": value for name, value in weights.items()},
        "cfg": "a: 1",
    }


def as_bare(weights):
    """The weights alone."""
    return dict(weights)


class Reduced:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class _Storage:
    pass


def lying(path, *, size, stride=(1,), offset=0, declared=10, held=40, legacy=False):
    """A torch file whose one tensor need not fit the memory it declares, nor that the memory held."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, _Storage):
                ids = ("storage", torch.FloatStorage, "0", "cpu", declared)
                return (*ids, None) if legacy else ids
            return None

    storage = _Storage()
    tensor = Reduced(
        torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, collections.OrderedDict()
    )
    data = io.BytesIO()
    Pickler(data, 2).dump({"backbone.conv1.conv.weight": tensor})
    if legacy:
        header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        parts = [*(pickle.dumps(x, 2) for x in header), data.getvalue(), pickle.dumps(["0"], 2)]
        path.write_bytes(b"".join(parts) + struct.pack("<q", held // 4) + bytes(held))
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data.getvalue())
        archive.writestr("archive/data/0", bytes(held))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path


def safetensors_with(path, header, data=b""):
    """A safetensors file with a header as given: text, or a dict for JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path
