"""Ensembles, votes and selections that were published, as data: a JSON file of presets for each source.

`nightcrawler-2022/...` is Andy1621/Nightcrawler@259fa5b9e6a8, bit for bit with everything that is odd about
it; each names the preset of `nightcrawler-corrected/...` beside it. Their rules were fitted by hand on labels
of that target: they are no starting point for other data.
"""

from functools import cache
from importlib import resources
from pathlib import Path

import msgspec

from marey.errors import UsageError, unknown
from marey.scores.vote import Ensemble, Vote

Preset = Ensemble | Vote


@cache
def _family(name: str) -> dict[str, Preset]:
    text = resources.files(__name__).joinpath(f"{name}.json").read_bytes()
    return {f"{name}/{key}": preset for key, preset in _read(text, name).items()}


def list_presets() -> dict[str, Preset]:
    """Every preset that ships, by its name `family/preset`."""
    names = sorted(file.name for file in resources.files(__name__).iterdir() if file.name.endswith(".json"))
    return {key: preset for name in names for key, preset in _family(name.removesuffix(".json")).items()}


def load_preset(name: str) -> Preset:
    """A preset by name, or the only one of a JSON file of the same form (`FILE.json`, else `FILE.json/name`).

    Raises UsageError UNKNOWN_PRESET with the nearest name, PRESET_INVALID.
    """
    path, dot, key = name.partition(".json")
    if not dot:
        known = list_presets()
        if name not in known:
            raise unknown("preset", name, known, code="UNKNOWN_PRESET")
        return known[name]
    try:
        found = _read(Path(f"{path}.json").read_bytes(), f"{path}.json")
    except OSError as error:
        raise UsageError("PRESET_INVALID", f"cannot read {path}.json: {error.strerror}") from None
    key = key.removeprefix("/") or (next(iter(found)) if len(found) == 1 else "")
    if key not in found:
        raise unknown(f"preset of {path}.json", key, found, code="UNKNOWN_PRESET")
    return found[key]


def _read(text: bytes, where: str) -> dict[str, Preset]:
    try:
        return msgspec.json.decode(text, type=dict[str, Preset])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UsageError("PRESET_INVALID", f"{where}: {error}") from None
