"""Own checkpoints: whole or not there, complete, and believed only where they agree with themselves."""

import json
import os

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from marey.errors import EnvironmentFault, MareyError, UsageError, WeightsError
from marey.video.preprocess import Preprocess
from marey.weights.create import create_model, open_model
from marey.weights.native import digest, save_checkpoint

NAMES = ("run", "jump", "fly\n\x1b")
EXTRA = {"recipe": {"name": "demo", "epochs": 3}, "metrics": {"top1": 0.5, "loss": None}}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    options = {"segments": 4, "width": 8, "non_local": "gaussian", "non_local_blocks": ((), (1,), (), ())}
    model = create_model("tsm_r18", 3, **options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    path = tmp_path / "best.safetensors"
    preprocess = Preprocess(sampling="segments", frames=4, mean=(1.0, 2.0, 3.0), flip_labels=((0, 1),))
    save_checkpoint(path, model, preprocess=preprocess, class_names=NAMES, **EXTRA)
    return path, model, preprocess


def same_logits(one, other):
    clip = torch.randn(2, 3, 4, 64, 64)
    with torch.inference_mode():
        return torch.equal(one(clip), other(clip))


def rewrite(path, change=lambda card: card, tensors=lambda tensors: tensors):
    """The file with another card or other tensors."""
    with safe_open(path, "pt") as file:
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        card = json.loads(file.metadata()["marey"])
    save_file(tensors(content), path, {"marey": json.dumps(change(card))})


def test_a_checkpoint_brings_back_the_network_and_all_that_belongs_to_it(saved):
    path, model, preprocess = saved
    loaded = open_model(path)
    assert same_logits(loaded, model)
    assert not loaded.training
    assert loaded.preprocess == preprocess
    assert loaded.class_names == NAMES
    assert loaded.spec["name"] == "tsm_r18"
    assert loaded.metadata["recipe"] == EXTRA["recipe"]
    assert loaded.metadata["metrics"] == EXTRA["metrics"]
    assert loaded.metadata["sha256"] == digest(model.state_dict())


def test_create_model_takes_it_with_its_arguments(saved):
    path, model, preprocess = saved
    loaded = create_model("tsm_r18", weights=path).eval()
    assert same_logits(loaded, model)
    assert (loaded.preprocess, loaded.class_names) == (preprocess, NAMES)
    finetune = create_model("tsm_r18", 7, weights=path)
    assert (finetune.num_classes, finetune.class_names, finetune.load_report.head) == (7, None, "fresh")


def test_saving_again_what_was_loaded_gives_the_same_bytes(saved, tmp_path):
    path, *_ = saved
    model = open_model(path)
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, model, preprocess=model.preprocess, class_names=model.class_names, **EXTRA)
    assert again.read_bytes() == path.read_bytes()


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    path, model, preprocess = saved
    before = path.read_bytes()

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EnvironmentFault) as error:
        save_checkpoint(path, model, preprocess=preprocess, class_names=None, recipe={}, metrics={})
    assert error.value.code == "DISK_FULL"
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_class_names_must_be_as_many_as_classes(saved):
    path, model, preprocess = saved
    with pytest.raises(UsageError, match="2 class names for 3 classes"):
        save_checkpoint(path, model, preprocess=preprocess, class_names=("a", "b"), recipe={}, metrics={})
    with pytest.raises(UsageError, match="create_model"):
        save_checkpoint(
            path, torch.nn.Linear(2, 2), preprocess=preprocess, class_names=None, recipe={}, metrics={}
        )


LIES = {
    "another tensor value": {"tensors": lambda t: t | {"head.bias": t["head.bias"] + 1}},
    "another network": {"change": lambda c: c | {"model": "slowonly_r50", "overrides": {}}},
    "an unknown network": {"change": lambda c: c | {"model": "tsm_r19"}},
    "an unknown argument": {"change": lambda c: c | {"overrides": {"segmnts": 4}}},
    "a gigantic network": {"change": lambda c: c | {"overrides": c["overrides"] | {"width": 10**7}}},
    "a number beyond all memory": {"change": lambda c: c | {"overrides": c["overrides"] | {"width": 10**18}}},
    "a billion classes": {"change": lambda c: c | {"num_classes": 10**9}},
    "a later layout": {"change": lambda c: c | {"format": 2}},
    "no preprocessing": {"change": lambda c: {k: v for k, v in c.items() if k != "preprocess"}},
    "nonsense in the preprocessing": {"change": lambda c: c | {"preprocess": {"frames": -3}}},
    "an unknown preprocessing": {"change": lambda c: c | {"preprocess": {"framez": 3}}},
    "text for a card": {"change": lambda _: "hello"},
    "a tensor missing": {"tensors": lambda t: {n: v for n, v in t.items() if n != "trunk.stem.bn.bias"}},
}


@pytest.mark.parametrize("kind", LIES)
def test_a_card_that_does_not_agree_with_its_file_is_refused(kind, saved):
    path, *_ = saved
    rewrite(path, **LIES[kind])
    with pytest.raises(WeightsError) as error:
        open_model(path)
    assert error.value.code == "WEIGHTS_CARD"
    assert "best.safetensors" in error.value.message


def test_not_a_number_is_refused_even_with_a_fitting_hash(saved):
    path, *_ = saved
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["head.bias"][0] = float("nan")
    rewrite(path, lambda card: card | {"sha256": digest(tensors)}, lambda _: tensors)
    with pytest.raises(WeightsError) as error:
        open_model(path)
    assert error.value.code == "WEIGHTS_NOT_FINITE"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_cut_file_is_refused(share, saved):
    path, *_ = saved
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(MareyError) as error:
        open_model(path)
    assert error.value.code in ("WEIGHTS_DAMAGED", "WEIGHTS_LIMIT", "WEIGHTS_FORMAT")


def test_the_metadata_is_plain_json(saved):
    path, _, preprocess = saved
    with safe_open(path, "pt") as file:
        card = json.loads(file.metadata()["marey"])
    assert card["class_names"] == list(NAMES)
    assert msgspec.convert(card["preprocess"], Preprocess) == preprocess


def test_the_digest_tells_values_names_types_and_shapes_apart():
    base = {"a": torch.arange(6.0), "b": torch.tensor(1)}
    others = [
        {"a": torch.arange(6.0) + 1e-3, "b": torch.tensor(1)},
        {"c": torch.arange(6.0), "b": torch.tensor(1)},
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)},
        {"a": torch.arange(6.0), "b": torch.tensor(1, dtype=torch.int32)},
    ]
    assert len({digest(tensors) for tensors in [base, *others]}) == 5
    assert digest({"b": torch.tensor(1), "a": torch.arange(12.0)[::2] / 2}) == digest(base)
