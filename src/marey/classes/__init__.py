"""Class names of public data sets, in the order that their labels are numbered: one text file for each.

The files beside this module hold one name per line; a name's place is its label. README.md says where each
list comes from, who owns it and under which licence.
"""

from functools import cache
from importlib import resources

FILES = {  # data set -> its file
    "Kinetics-400": "kinetics400.txt",
    "Kinetics-600": "kinetics600.txt",
    "Kinetics-700": "kinetics700.txt",
    "HMDB51": "hmdb51.txt",
    "AVA v2.1": "ava.txt",
    "AVA v2.2": "ava.txt",
}


@cache
def class_names(dataset: str) -> tuple[str, ...] | None:
    """The names in label order; None for a data set whose names do not ship.

    Spelling is free: `Kinetics-400`, `kinetics_400` and `kinetics400` are one.
    """
    file = {plain(name): file for name, file in FILES.items()}.get(plain(dataset))
    if file is None:
        return None
    return tuple(resources.files(__name__).joinpath(file).read_text(encoding="utf-8").splitlines())


def plain(name: str) -> str:
    """A data set's name without case and punctuation."""
    return "".join(filter(str.isalnum, name.lower()))
