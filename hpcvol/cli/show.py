"""`hpcvol show`: what a dataset, a checkpoint or a run is, on one screen. Starts no MPI and loads no torch."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hpcvol.cli.kinds import Kind, kind_of
from hpcvol.cli.reporting import reported
from hpcvol.elastic.roles import drawn, tree

Line = tuple[str, str]

# What manifests call by NumPy's codes.
_DTYPES = {"|b1": "bool", "|u1": "uint8", "|i1": "int8"}
_DTYPES |= {
    f"<{code}{n}": f"{kind}{8 * n}" for code, kind in (("u", "uint"), ("i", "int"), ("f", "float")) for n in (2, 4, 8)
}


@reported
def show(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a dataset, a checkpoint or a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON; sizes are in bytes.")] = False,
) -> None:
    """Show what a dataset, a checkpoint or a run is. Reads little of it: `hpcvol verify` reads everything."""
    described = describe(path)
    if as_json:
        print(json.dumps(described, indent=1))
        return
    lines = {Kind.DATASET: dataset_lines, Kind.CHECKPOINT: checkpoint_lines, Kind.RUN: run_lines}
    print(f"{described['kind']} {path}")
    for name, text in lines[Kind(described["kind"])](described):
        print(f"  {name:<12} {text}")


def describe(path: Path) -> dict[str, Any]:
    """Return what lies at `path`, as values for JSON.

    Raises:
        HpcvolError: it is none of the three, or cannot be read.
    """
    kind = kind_of(path)
    if kind is Kind.DATASET:
        from hpcvol.data.describe import describe_dataset

        return describe_dataset(path)
    from hpcvol.train.describe import describe_checkpoint, describe_run

    return describe_checkpoint(path) if kind is Kind.CHECKPOINT else describe_run(path)


def dataset_lines(described: Mapping[str, Any]) -> Iterator[Line]:
    """Yield what to print of a dataset."""
    yield "id", described["id"]
    yield "samples", f"{described['rows']}, {size(described['nbytes'])}"
    for name, split in described["splits"].items():
        yield f"  {name}", f"{split['rows']} samples, {size(split['nbytes'])} in {split['shards']} files"
    yield "fields", ""
    for name, field in described["fields"].items():
        shape = [*(["any length"] if field["ragged"] else []), *field["shape"]]
        yield f"  {name}", f"{_DTYPES.get(field['dtype'], field['dtype'])} [{', '.join(str(one) for one in shape)}]"
    built = described["built"]
    if built:
        settings = "".join(f"  {key}={value}" for key, value in built["options"].items())
        shares = ",".join(f"{name}={share:g}" for name, share in built["split"].items())
        yield "built from", f"{built['kind']} {' '.join(built['paths'])}  --split {shares}{settings}"
    if described["unlisted"]:
        yield "unlisted", ", ".join(described["unlisted"]) + " (no part of the dataset)"


def checkpoint_lines(described: Mapping[str, Any]) -> Iterator[Line]:
    """Yield what to print of a checkpoint."""
    best = "  (was the best by validation loss)" if described["best"] else ""
    yield "step", f"{described['step']}, epoch {described['epoch']}, {described['samples']} samples so far{best}"
    yield "train loss", number(described["train_loss"])
    if described["validation"]:
        yield "validation", f"{metrics(described['validation'])}  after step {described['validated_step']}"
    tensors = described["tensors"]
    if tensors is not None:
        dtypes = ", ".join(tensors["dtypes"])
        yield "weights", f"{tensors['values']} values in {tensors['count']} tensors of {dtypes} (with buffers)"
    yield "dataset", described["dataset"]
    for one in described["numerics"]:
        yield "numerics", "; ".join(f"{key}: {value}" for key, value in one.items())
    yield "files", ", ".join(f"{name} {size(nbytes)}" for name, nbytes in described["files"].items())
    yield "state", described["trouble"] or "whole by its sizes"


def run_lines(described: Mapping[str, Any]) -> Iterator[Line]:
    """Yield what to print of a run."""
    yield "state", state_of_run(described)
    for name, value in described["config"].items():
        yield name, metrics(value) if isinstance(value, Mapping) else str(value)
    if described["last"]:
        last = described["last"]
        rest = {name: value for name, value in last.items() if name not in ("step", "epoch")}
        yield "last line", f"step {last['step']}  epoch {last.get('epoch')}  {metrics(rest)}"
    for name, key in (("validation", "last_validation"), ("best", "best_validation")):
        if described[key]:
            rest = {name: value for name, value in described[key].items() if name != "step"}
            yield name, f"step {described[key]['step']}  {metrics(rest)}"
    for one in described["checkpoints"]:
        best = "  (best)" if one["name"] == described["best_checkpoint"] else ""
        yield "checkpoint", f"{one['name']}  {size(one['nbytes'])}  {one['trouble'] or 'whole by its sizes'}{best}"
    if described["roles"]:
        first, *below = drawn(tree(described["roles"]))
        yield "roles", first
        for line in below:
            yield "", line
    for name, share in described["credit"].items():
        yield "credit", f"{name}: {share['units']} units, {share['samples']} samples, {share['seconds']:.1f} s"
    if described["complete"]:
        summary = described["summary"]
        yield "test loss", number(summary.get("test_loss"))
        yield "weights", f"sha256 {summary.get('weights_sha256')}"


def state_of_run(described: Mapping[str, Any]) -> str:
    """Return in words how far a run is, and whether somebody is at work in it."""
    at_work = "; a job is at work in it" if described["at_work"] else ""
    if described["complete"]:
        return f"complete: {described['summary'].get('steps')} steps{at_work}"
    if described["step"] == 0 and not described["checkpoints"]:
        return f"begun, no metrics yet{at_work}"
    return f"not complete, at step {described['step']}{at_work}"


def metrics(values: Mapping[str, Any]) -> str:
    """Return `loss 0.1234  lr 0.001`."""
    return "  ".join(f"{name} {number(value)}" for name, value in values.items())


def number(value: Any) -> str:
    """Return a value of metrics for people."""
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)


def size(nbytes: int) -> str:
    """Return bytes as `512 B`, `1.5 MiB`."""
    value, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
