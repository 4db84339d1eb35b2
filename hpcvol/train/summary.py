"""What a complete run leaves behind: `summary.json`, and its last lines on the terminal."""

from dataclasses import asdict
from typing import Any

from hpcvol.elastic.ledger import Head
from hpcvol.torch.evaluation import Evaluation
from hpcvol.torch.run import Run
from hpcvol.train.progress import Progress
from hpcvol.train.report import duration
from hpcvol.train.weights import weights_sha256


def summarise(run: Run, progress: Progress, test: Evaluation | None, seconds: float, ledger: Head) -> dict[str, Any]:
    """Return the summary of a complete run: losses in nats a weight item, `seconds` over all of its starts. Local."""
    validation = dict(progress.validation)
    return {
        "completed": True,
        "steps": run.step,
        "epochs": run.step / run.batching.steps_per_epoch,
        "train_loss": progress.train_loss,
        "val_loss": validation.pop("loss", None),
        "test_loss": None if test is None else test.loss,
        "metrics": {"val": validation, "test": {} if test is None else test.metrics},
        "weights_sha256": weights_sha256(run.model),
        "ranks": run.group.size,
        "samples": progress.samples,
        "seconds": seconds,
        "samples_per_second": progress.samples / seconds,
        "ledger": asdict(ledger),
    }


def conclusion(summary: dict[str, Any]) -> list[str]:
    """Return what the terminal says of a summary."""
    names = [name for name in ("train_loss", "val_loss", "test_loss") if summary[name] is not None]
    losses = "".join(f"  {name} {summary[name]:.4f}" for name in names)
    metrics = "".join(f"  test {name} {value:.4f}" for name, value in summary["metrics"]["test"].items())
    return [
        f"complete: {summary['steps']} steps in {duration(summary['seconds'])}{losses}{metrics}",
        f"weights_sha256 {summary['weights_sha256']}",
    ]
