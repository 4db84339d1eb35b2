"""Reading all of a checkpoint or a run, and naming everything in it that is damaged."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from hpcvol.elastic.ledger import LEDGER_NAME
from hpcvol.errors import HpcvolError
from hpcvol.train.checkpoint import load_weights
from hpcvol.train.checkpoint_files import (
    BEST,
    MODEL,
    OPTIMIZER,
    RESIDUALS,
    STATE,
    checkpoints_in,
    digest_of,
    read_state,
)
from hpcvol.train.completion import SUMMARY_NAME
from hpcvol.train.config import Config, load_config
from hpcvol.train.ledger_account import Account, read_account, verify_lines
from hpcvol.train.parts import build_model
from hpcvol.train.recipe import of_another_run
from hpcvol.train.run_directory import CHECKPOINTS_NAME, CONFIG_NAME, METRICS_NAME, is_at_work
from hpcvol.train.state_digest import state_digest
from hpcvol.train.weights import weights_sha256

OnRead = Callable[[int], object]


@dataclass
class Findings:
    """What was found in a run.

    Attributes:
        damaged: what is wrong, one sentence each, beginning with the file.
        notes: what a reader should know and is no damage.
    """

    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def checkpoint_nbytes(path: Path) -> int:
    """Return the size of the files of a checkpoint, in bytes. Local."""
    return sum(file.stat().st_size for file in path.glob("*") if file.is_file())


def verify_checkpoint(path: Path, on_read: OnRead = lambda _nbytes: None) -> list[str]:
    """Read all of the checkpoint in folder `path`; return what is damaged, [] where it is whole. Local.

    Sizes and digests of its files, whether they load, and whether all their numbers are finite.

    Args:
        path: its folder.
        on_read: called with numbers of bytes as they have been read.
    """
    try:
        files = {str(name): (int(nbytes), str(digest)) for name, (nbytes, digest) in read_state(path)["files"].items()}
    except (OSError, ValueError) as error:
        return [f"{path / STATE}: is not the description of a checkpoint ({type(error).__name__}: {error})"]
    damaged = []
    for name, expected in files.items():
        damaged += list(_verify_file(path / name, *expected))
        on_read(expected[0])
    return damaged


def verify_run(path: Path, on_read: OnRead = lambda _nbytes: None) -> Findings:
    """Read all of the run in folder `path`: configuration, metrics, checkpoints, ledger, summary. Local.

    The model is built from the configuration to compute the digest of the last checkpoint's weights anew, so the
    user's model code runs.

    Args:
        path: its folder.
        on_read: called with numbers of bytes as they have been read.
    """
    findings = Findings()
    if is_at_work(path):
        findings.notes.append(
            f"{path}: a job is at work in it, and files come and go: verify it again when it has ended"
        )
    config = _verify_config(path, findings)
    findings.damaged += _verify_metrics(path / METRICS_NAME)
    folder = path / CHECKPOINTS_NAME
    whole = []
    for checkpoint in checkpoints_in(folder):
        damaged = verify_checkpoint(checkpoint, on_read)
        if not checkpoint.exists():
            continue  # the job that is at work has deleted it meanwhile
        findings.damaged += damaged
        foreign = None if damaged or config is None else of_another_run(checkpoint, config)
        if foreign is not None:
            findings.notes.append(f"{checkpoint}: {foreign}; training does not go on from it")
        whole += [] if damaged or foreign else [checkpoint]
    for partial in sorted(folder.glob(".*.partial")):
        findings.notes.append(
            f"{partial}: a checkpoint that was never completed; the next one that is written clears it"
        )
    if (folder / BEST).is_symlink() and not (folder / BEST).exists():
        findings.damaged.append(f"{folder / BEST}: points to {(folder / BEST).readlink()}, which is not there")
    account = _verify_ledger(path, whole, findings)
    if (path / SUMMARY_NAME).exists():
        _verify_summary(path / SUMMARY_NAME, whole[-1] if whole else None, config, account, findings)
    return findings


def _verify_file(path: Path, nbytes: int, digest: str) -> Iterator[str]:
    try:
        found = path.stat().st_size
        if found != nbytes:
            yield f"{path}: has {found} bytes, expected {nbytes}"
        elif digest_of(path) != digest:
            yield f"{path}: has another digest than {STATE} says: it was changed or damaged"
        else:
            for name, tensor in _tensors(path):
                bad = tensor.numel() - int(torch.isfinite(tensor).sum()) if tensor.is_floating_point() else 0
                if bad:
                    yield f"{path}: {name} holds {bad} values that are not finite, of {tensor.numel()}"
    except FileNotFoundError:
        yield f"{path}: is missing"
    except Exception as error:  # whatever a loader makes of bytes that match their digest and do not load
        yield f"{path}: cannot be loaded ({type(error).__name__}: {error})"


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of one of a checkpoint's files, by name."""
    if path.name in (MODEL, RESIDUALS):
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                yield name, file.get_tensor(name)
    elif path.name == OPTIMIZER:
        yield from _leaves("", torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}[{index}]", item)


def _verify_config(path: Path, findings: Findings) -> Config | None:
    try:
        return load_config(path / CONFIG_NAME)
    except HpcvolError as error:
        findings.damaged.append(f"{path / CONFIG_NAME}: {error}")
        return None


def _verify_metrics(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        yield f"{path}: cannot be read ({error})"
        return
    last = 0
    for number, line in enumerate(lines, 1):
        try:
            step = json.loads(line)["step"]
            if step < last:
                yield f"{path}: line {number} is of step {step}, after one of step {last}"
            last = step
        except (ValueError, KeyError, TypeError):
            yield f"{path}: line {number} is not a JSON object with a step"


def _verify_ledger(run_dir: Path, checkpoints: Sequence[Path], findings: Findings) -> Account | None:
    """Look at the ledger, and whether each whole checkpoint is of it; return it where it can be read."""
    try:
        account = read_account(run_dir)
    except OSError as error:
        findings.damaged.append(f"{run_dir / LEDGER_NAME}: cannot be read ({error})")
        return None
    if account is None:
        findings.damaged += [f"{run_dir / LEDGER_NAME}: is missing"] if checkpoints else []
        return None
    if account.tail:
        findings.notes.append(f"{account.path}: its last line was not written to its end, and will be again")
    findings.damaged += verify_lines(account)
    for checkpoint in checkpoints:
        try:
            findings.damaged += _compare_with_ledger(checkpoint, account)
        except OSError:
            if checkpoint.exists():
                raise
            continue  # the job that is at work has deleted it meanwhile
    return account


def _compare_with_ledger(checkpoint: Path, account: Account) -> list[str]:
    state = read_state(checkpoint)
    version, expected = state["run"]["step"], account.digest_of(state["run"]["step"])
    if not account.leads_to(state["ledger"]):
        return [f"{account.path}: line {state['ledger']['lines']} is not what {checkpoint} tells"]
    if version and state_digest(safetensors.torch.load_file(checkpoint / MODEL)) != expected:
        return [f"{checkpoint}: holds other weights than version {version} had by {LEDGER_NAME}"]
    return []


def _verify_summary(
    path: Path, last: Path | None, config: Config | None, account: Account | None, findings: Findings
) -> None:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        steps, digest, completed = summary["steps"], summary["weights_sha256"], summary["completed"]
        if account is not None and summary["ledger"] != {"hash": account.hashes[-1], "lines": len(account.lines)}:
            findings.damaged.append(f"{account.path}: does not end as {path} tells")
    except (OSError, ValueError, KeyError, TypeError) as error:
        findings.damaged.append(f"{path}: is not a summary ({type(error).__name__}: {error})")
        return
    if completed is not True:
        findings.notes.append(f"{path}: does not say that the run is complete")
    if last is None:
        findings.damaged.append(f"{path}: is there, but no checkpoint is whole that its weights could be compared with")
        return
    if json.loads((last / STATE).read_text(encoding="utf-8"))["run"]["step"] != steps:
        findings.damaged.append(f"{path}: is of step {steps}, and the last checkpoint that is whole is {last.name}")
        return
    try:
        if config is None:
            return
        found = _digest_of_weights(config, last / MODEL)
    except Exception as error:  # the user's own code: whatever it raises, the files are not to blame
        findings.notes.append(
            f"{path}: weights_sha256 was not compared, because the model could not be built "
            f"({type(error).__name__}: {error})"
        )
        return
    if found != digest:
        findings.damaged.append(f"{path}: weights_sha256 is {digest}, and {last.name} holds weights of {found}")


def _digest_of_weights(config: Config, weights: Path) -> str:
    """Return the digest of stored weights: the file does not tell the order of parameters, the model does."""
    untrained = config.model_copy(update={"model": config.model.model_copy(update={"weights": None})})
    untrained._folder = config.folder
    model = build_model(untrained)
    load_weights(weights, model)
    return weights_sha256(model)
