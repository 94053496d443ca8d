"""What a folder of feature records says of itself: who made them, and how a byte is to be read.

`marey features --format youtube8m` writes it as `features.json` beside the records. YouTube-8M's own files
have none: records without one are taken for YouTube-8M's own.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from marey.errors import DataError
from marey.files import replacing

NAME = "features.json"
FORMAT = 1
YOUTUBE8M = "youtube8m"  # stands for YouTube-8M's own features, where else a fingerprint stands


class FeatureCard(msgspec.Struct, frozen=True, kw_only=True):
    """What `features.json` holds.

    format       version of this layout
    rgb, audio   bytes of a frame; audio 0: there is none
    num_classes  labels are 0 .. num_classes - 1; 0: nothing is labelled
    class_names  in label order, or None
    videos, labelled, failed, without_audio   videos in the records, those of them with a label, those that
                 could not be read and are missing, and those without a frame of audio where others have some
    rows, longest  frames of all videos and of the longest
    seconds      from a frame to the next; None: a row per clip or video
    made_by      for "rgb", and "audio" where there is one, all that decides what a byte means: network,
                 SHA-256 of its weights, layer, preprocessing, projection, range of the bytes
    cut_off      for each stream the share of the values that were beyond the range of the bytes
    shards       the files, in order
    inputs       digest of what they were written from: the same are not written again
    """

    format: int = FORMAT
    rgb: int
    audio: int = 0
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    videos: int = 0
    labelled: int = 0
    failed: int = 0
    without_audio: int = 0
    rows: int = 0
    longest: int = 0
    seconds: float | None = None
    made_by: dict[str, Any]
    cut_off: dict[str, float] = {}
    shards: tuple[str, ...] = ()
    inputs: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256, as hex: equal where bytes mean the same."""
        text = json.dumps([self.rgb, self.audio, self.made_by], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What a checkpoint keeps of the features it was trained on: `save_checkpoint(features=...)`."""
        return {
            "fingerprint": self.fingerprint,
            "rgb": self.rgb,
            "audio": self.audio,
            "seconds": self.seconds,
            "made_by": self.made_by,
        }


def write_feature_card(folder: str | os.PathLike[str], card: FeatureCard) -> None:
    """Write `features.json`, whole or not at all."""
    with replacing(Path(folder) / NAME) as part:
        part.write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n")


def read_feature_card(folder: str | os.PathLike[str]) -> FeatureCard | None:
    """The card of a folder, None where there is none. Raises DataError FEATURES_CARD, NO_ACCESS."""
    path = Path(folder) / NAME
    try:
        card = msgspec.json.decode(path.read_bytes(), type=FeatureCard)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError("NO_ACCESS", f"cannot read {str(path)!r}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise DataError("FEATURES_CARD", f"{path}: not what `marey features` writes: {error}") from None
    if card.format != FORMAT:
        raise DataError(
            "FEATURES_CARD", f"{path}: layout {card.format}, this marey knows {FORMAT}; update marey"
        )
    return card


def feature_card(paths: Iterable[str | os.PathLike[str]]) -> FeatureCard | None:
    """The card that files of records have in common, None where none has one: YouTube-8M's own.

    Of several folders the first one's is given, with the longest video of all. Raises DataError
    FEATURES_MIXED where their bytes mean different things.
    """
    folders = sorted({os.path.dirname(os.fspath(path)) or "." for path in paths})  # noqa: PTH120
    cards = [(folder, read_feature_card(folder)) for folder in folders]
    for folder, card in cards[1:]:
        if (card and card.fingerprint) != (cards[0][1] and cards[0][1].fingerprint):
            raise DataError(
                "FEATURES_MIXED",
                f"the features in {cards[0][0]} and {folder} were made differently ({NAME} says how); make "
                "them by the same network and projection",
            )
    there = [card for _, card in cards if card is not None]
    return msgspec.structs.replace(there[0], longest=max(card.longest for card in there)) if there else None


def not_comparable(trained_on: str | None, card: FeatureCard | None) -> str | None:
    """A warning that the scores of a network on these records mean nothing; None: they do, or who knows.

    trained_on  fingerprint of the features that it was trained on, or YOUTUBE8M; None: not known
    """
    given = YOUTUBE8M if card is None else card.fingerprint
    if trained_on is None or trained_on == given:
        return None
    theirs = "YouTube-8M's own features" if trained_on == YOUTUBE8M else f"features {trained_on[:8]}"
    if card is None:
        ours = f"these are YouTube-8M's own, or have no {NAME} beside them"
    else:
        ours = f"these, {given[:8]}, are of {card.made_by.get('rgb', {}).get('model', 'something else')}"
    warning = DataError(
        "FEATURES_DIFFER",
        f"the network was trained on {theirs} and {ours}: its scores are not comparable, and mean nothing",
    )
    return f"{warning.code}: {warning.message}"
