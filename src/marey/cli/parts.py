"""What commands share: options, tables of results, times."""

import json
import os
from typing import Annotated, Any

import typer

from marey.errors import UsageError

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Fields to change.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[  # of one network in one process
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the GPU if there is one.")
]
Accelerator = Annotated[  # of a run that may take several processes
    str, typer.Option(help="What processes run on: cpu, cuda, mps; auto: GPUs if there are any.")
]
SOME_FAILED = 3


def rows(rows: dict[str, Any], as_json: bool) -> None:
    """A table of names and values; only the first of several processes prints."""
    if not first_process():
        return
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        print(f"{name:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")


def first_process() -> bool:
    """Whether this is the process that prints."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def beside(value: Any, expected: float | None) -> Any:
    """A measured value, beside the published one where there is one."""
    return value if expected is None else f"{value:.4f}  (published {expected:.4f})"


def seconds(text: str | None) -> float | None:
    """`2s`, `0.5`, `1min` -> seconds."""
    if text is None:
        return None
    number = text.removesuffix("min").removesuffix("s")
    try:
        return float(number) * (60 if text.endswith("min") else 1)
    except ValueError:
        raise UsageError("SECONDS", f"{text!r} is not a time; write for example 2s or 1min") from None
