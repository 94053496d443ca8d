"""Commands on networks and their weights: zoo, convert, export, bench."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from marey.cli.parts import SOME_FAILED, Device, Json
from marey.errors import MareyError, UsageError


def zoo(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATTERN] | get NAME...", help="Shell pattern or part of a name or model."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Only those trained on it, for example Jester.")] = None,
    model: Annotated[str | None, typer.Option(help="Only networks that match, for example 'csn*'.")] = None,
    downloaded: Annotated[bool, typer.Option("--downloaded", help="Only those in the cache folder.")] = False,
    as_json: Json = False,
) -> None:
    """List the releases: accuracy, protocol, size, cost, licence; or fetch some: `marey zoo get NAME`."""
    import msgspec

    from marey.jobs.zoo import get, show
    from marey.jobs.zoo import zoo as run

    pattern, *rest = words or ["*"]
    if pattern != "get":
        if rest:
            raise UsageError("USAGE", f"one pattern at a time, not also {rest[0]!r}; put patterns in quotes")
        entries = run(pattern, dataset=dataset, model=model, downloaded=downloaded)
        if as_json:
            print(json.dumps(msgspec.to_builtins(entries), indent=2))
        else:
            show(entries)
        return
    if not rest:
        raise UsageError(
            "USAGE", "name what to get: a release, or a pattern in quotes; `marey zoo` lists them"
        )
    failed = []
    rows = {}
    for name, found in get(rest):
        failed += [found] if isinstance(found, MareyError) else []
        rows[name] = {"code": found.code} if isinstance(found, MareyError) else {"file": str(found)}
        if isinstance(found, MareyError):
            print(f"{name}: {found.code}: {found.message}", file=sys.stderr)
        elif not as_json:
            print(found)
    if as_json:
        print(json.dumps(rows, indent=2))
    if failed:
        raise typer.Exit(failed[0].exit_code if len(failed) == len(rows) else SOME_FAILED)


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A published file, or a release's name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The checkpoint to write.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Arguments of the network.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The network, or a release it is like; default: found from the file.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run both on one clip and compare the logits.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a published weight file into a checkpoint that knows its network, preprocessing and classes."""
    import msgspec

    from marey.jobs.convert import convert as run
    from marey.recipes.catalog import pairs

    done = run(source, out, model=model, overrides=pairs(overrides or ()), verify=verify, force=force)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(msgspec.to_builtins(done), indent=2) if as_json else "\n".join(done.lines()))


def export(
    source: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A checkpoint, a release, or a network's name.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, or .pt2 for torch.")],
    layout: Annotated[str, typer.Option("--format", help="onnx, or torch for torch.export.load.")] = "onnx",
    size: Annotated[
        str | None, typer.Option("--input", metavar="TxHxW", help="Clips; default: as the test's are.")
    ] = None,
    any_frames: Annotated[bool, typer.Option("--any-frames", help="Takes clips of any length.")] = False,
    any_size: Annotated[bool, typer.Option("--any-size", help="Takes clips of any height, width.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a network for other programs, with its card; compared with the original, both timed."""
    import msgspec

    from marey.jobs.export import export as run

    done = run(source, out, format=layout, size=size, any_frames=any_frames, any_size=any_size, force=force)
    print(json.dumps(msgspec.to_builtins(done), indent=2) if as_json else "\n".join(done.lines()))


def bench(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="Networks, patterns of them, checkpoints, releases.")
    ],
    size: Annotated[
        str | None, typer.Option("--input", metavar="TxHxW", help="Clips; default: as the network's are.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips in a pass.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed, in turns.")] = 5,
    precision: Annotated[str, typer.Option(help="32 or bf16.")] = "32",
    train: Annotated[bool, typer.Option("--train", help="Forward and backward, no inference.")] = False,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="With --train: blocks run again backward.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="By torch.compile; checked.")] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Time networks: clips per second, share of the machine's matrix-product rate, memory."""
    import msgspec

    from marey.jobs.bench import bench as run
    from marey.jobs.bench import lines

    rows = run(
        names,
        size=size,
        batch=batch,
        threads=threads,
        rounds=rounds,
        precision=precision,
        train=train,
        checkpoint_activations=checkpoint_activations,
        compiled=compiled,
        device=device,
    )
    print(json.dumps(msgspec.to_builtins(rows), indent=2) if as_json else "\n".join(lines(rows)))
