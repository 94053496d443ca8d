"""Feature banks as commands: MMAction2's pickles become banks of ours; a bank is checked.

`marey.jobs.bank_build` makes banks of our own.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from marey.data.bank import Bank, BankCard, Dtype, Rows, damage, shard_files, shard_path, write_shard
from marey.errors import DataError, UsageError, unknown
from marey.jobs.progress import Progress
from marey.pickles import read_pickle
from marey.weights.create import open_model
from marey.weights.native import digest

MOST_OPCODES = 200_000_000  # of a pickle: some minutes; AVA's training bank has about 10,000,000
SHARD_BYTES = 256 * 2**20  # about as much is in memory at once
DTYPES = ("float16", "float32")


class BankReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a bank.

    path                  of its folder
    model, model_sha256   the network whose features they are, and the hash of its weights, if known
    videos, rows          how many; a row is one box
    first, last           seconds of the first and the last box
    step                  seconds from one time step to the next
    channels, dtype       of a row
    most                  boxes of the fullest time step
    window, per_step      what a look-up takes unless told otherwise
    shards, bytes         files and their size
    problems              what is wrong, a line each
    """

    path: str
    model: str
    model_sha256: str | None
    videos: int
    rows: int
    first: float | None
    last: float | None
    step: float
    channels: int
    dtype: str
    most: int
    window: int
    per_step: int
    shards: int
    bytes: int
    problems: tuple[str, ...] = ()


def model_hash(model: torch.nn.Module) -> str:
    """The hash of a network's weights that a bank of its features carries."""
    return digest({name: value.detach().cpu() for name, value in model.state_dict().items()})


def import_bank(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    window: int = 60,
    per_step: int = 5,
) -> BankReport:
    """Make MMAction2's lfb_train.pkl (or val, test) a bank, or a part of the bank that `out` is already.

    weights   checkpoint or release of the network that made the features: its hash goes into the bank, which
              is otherwise refused wherever a network is asked for
    dtype     "float16" or "float32"; None: as in the file
    window, per_step   what a look-up takes unless told otherwise

    The pickle is read by an allow-list, and its tensors stay on disk. What an interrupted import has written
    is kept and not written again. Raises DataError BANK_LAYOUT, naming video and second, where the file is no
    such bank, BANK_MIXED where `out` is another one, and what `read_pickle` and `write_shard` raise.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES, "BAD_VALUE")
    path, folder = Path(source), Path(out)
    if folder.is_file():
        raise UsageError("BAD_VALUE", f"{str(folder)!r} is a file; give the folder of the bank")
    if not path.is_file():
        raise DataError("BANK_NOT_FOUND", f"there is no file {str(path)!r}")
    found = read_pickle(path, MOST_OPCODES, mapped=True)
    if not isinstance(found, Mapping) or not found:
        raise _layout(path, "it is no dict of videos")
    model, known = "unknown", None
    if weights is not None:
        network: Any = open_model(weights)
        model, known = network.spec["name"], model_hash(network)
    first = _first(path, found)
    card = BankCard(
        model=model,
        model_sha256=known,
        channels=first.numel(),
        dtype=_dtype(dtype or str(first.dtype).removeprefix("torch.")),
        window=window,
        per_step=per_step,
        source=f"{path.name}, sha256 {_file_hash(path)[:12]}",
    )
    groups = list(_groups(path, found, card))
    check_new(folder, card, groups)
    progress, done = Progress(f"importing {path.name}: videos"), 0
    for group in groups:
        if not shard_path(folder, group).exists():
            write_shard(folder, card, {video: _rows(path, video, found[video], card) for video in group})
        done += len(group)
        progress(done, len(found))
    return describe(Bank(folder))


def check_bank(path: str | os.PathLike[str]) -> BankReport:
    """Read all of a bank and say what is in it and what is wrong with it; raises as `Bank`."""
    bank, problems = Bank(path), []
    files = shard_files(bank.path)
    progress = Progress("checking shards")
    for number, (file, shard) in enumerate(zip(files, bank.shards, strict=True)):
        problems += [f"{file.name}: {text}" for text in damage(shard)]
        progress(number + 1, len(files))
    return describe(bank, problems)


def describe(bank: Bank, problems: Sequence[str] = ()) -> BankReport:
    """What a bank on disk says of itself."""
    files, seconds = shard_files(bank.path), bank.seconds or (None, None)
    return BankReport(
        path=str(bank.path),
        model=bank.card.model,
        model_sha256=bank.card.model_sha256,
        videos=len(bank.videos),
        rows=len(bank),
        first=seconds[0],
        last=seconds[1],
        step=bank.card.step,
        channels=bank.card.channels,
        dtype=bank.card.dtype,
        most=bank.most,
        window=bank.card.window,
        per_step=bank.card.per_step,
        shards=len(files),
        bytes=sum(file.stat().st_size for file in files),
        problems=tuple(problems),
    )


def check_new(out: str | os.PathLike[str], card: BankCard, groups: list[list[str]]) -> None:
    """Refuse to add shards of these videos to a bank that is another, or has some of them from elsewhere.

    Shards that an earlier run of the same job left are its own. Raises DataError BANK_MIXED.
    """
    folder = Path(out)
    if not any(folder.glob("*.safetensors")):
        return
    bank = Bank(folder)
    there, files = bank.card, shard_files(folder)
    own = {shard_path(folder, group) for group in groups}  # of an earlier run of the same import
    for file, shard in zip(files, bank.shards, strict=True):
        if shard.head.card.source != card.source:
            own.discard(file)
    for video in (video for group in groups for video in group):
        if video in bank.videos and files[bank.videos[video].shard] not in own:
            raise DataError("BANK_MIXED", f"{str(folder)!r} has {video!r} already; give another folder")
    if msgspec.structs.replace(there, source=card.source) != card:
        raise DataError(
            "BANK_MIXED",
            f"{str(folder)!r} holds another bank, of {there.model} ({there.dtype}, {there.channels} "
            f"channels, windows of {there.window} x {there.per_step}); give another folder or its options",
        )


def _first(path: Path, found: Mapping[Any, Any]) -> Tensor:
    for video, steps in found.items():
        for second, value in steps.items() if isinstance(steps, Mapping) else ():
            for row in _features(path, video, second, value):
                return row
    raise _layout(path, "it holds no feature")


def _groups(path: Path, found: Mapping[Any, Any], card: BankCard) -> Iterator[list[str]]:
    """Videos that go into one shard each, in the order of the file."""
    group, size = list[str](), 0
    width = card.channels * (2 if card.dtype == "float16" else 4)
    for video, steps in found.items():
        if not isinstance(video, str) or not isinstance(steps, Mapping):
            kind = (
                "video index: the paper's own banks need its list of frames"
                if isinstance(video, int)
                else "key"
            )
            raise _layout(path, f"{video!r} is a {kind}, not the name of a video with its seconds")
        size += width * sum(len(value) for value in steps.values() if _several(value))
        if group and size > SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(video)
    yield group


def _rows(path: Path, video: str, steps: Mapping[Any, Any], card: BankCard) -> Rows:
    seconds, rows = list[int](), list[Tensor]()
    for second, value in steps.items():
        found = _features(path, video, second, value)
        seconds += [second] * len(found)
        rows += found
    if any(row.numel() != card.channels for row in rows):
        raise _layout(path, f"the features of {video!r} are not all of {card.channels} numbers")
    return Rows(seconds, torch.stack(rows) if rows else torch.empty(0, card.channels))


def _features(path: Path, video: Any, second: Any, value: Any) -> list[Tensor]:
    """The features of one second: a list of vectors, or one table."""
    if isinstance(second, bool) or not isinstance(second, int):
        raise _layout(path, f"{second!r} of {video!r} is no second")
    rows = []
    for row in value if _several(value) else (None,):
        vector = torch.from_numpy(row) if isinstance(row, np.ndarray) else row
        if not isinstance(vector, Tensor) or vector.ndim != 1 or not vector.is_floating_point():
            raise _layout(path, f"second {second} of {video!r} holds something else than vectors of numbers")
        rows.append(vector)
    return rows


def _several(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, Tensor | np.ndarray) and value.ndim > 0)


def _dtype(name: str) -> Dtype:
    return "float16" if name == "float16" else "float32"


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _layout(path: Path, what: str) -> DataError:
    return DataError(
        "BANK_LAYOUT",
        f"{str(path)!r} is no bank of MMAction2's: {what}; needed: a dict video -> second -> list of vectors",
    )
