"""What a run enters into its ledger: the circumstances that a start begins in, and each step that was committed."""

from collections.abc import Sequence
from typing import Any

from hpcvol.elastic.ledger import Ledger, ranges
from hpcvol.torch.counted import CountedStep
from hpcvol.torch.run import Run
from hpcvol.torch.step import Step


def circumstances(ledger: Ledger, run: Run, dataset: str, numerics: Sequence[dict[str, Any]]) -> None:
    """Enter that `run` starts, or goes on, with who and what: all that it takes to check the lines that follow.

    Args:
        ledger: of the run.
        run: as it begins.
        dataset: identity of the training data.
        numerics: classes of the members.
    """
    ledger.event(
        "resume" if run.step else "start",
        version=run.step,
        view=run.membership.view,
        **run.roles(),
        dataset=dataset,
        samples=run.batching.num_samples,
        batch_size=run.batching.batch_size,
        unit_size=run.batching.unit_size,
        sum=run.settings.sum,
        numerics=list(numerics),
    )


def commit(ledger: Ledger, step: Step | CountedStep, number: int, view: int, digest: str | None) -> None:
    """Enter a step that took effect on all members.

    Args:
        ledger: of the run.
        step: it; over.
        number: of the version that it made.
        view: of the members that agreed upon it.
        digest: of the model after it; None where no member has that one, because others were applied meanwhile.
    """
    members = {
        str(share.member): {
            "units": ranges(share.units),
            "samples": share.num_samples,
            "seconds": round(share.seconds, 6),
        }
        for share in step.shares
    }
    more = {}
    if isinstance(step, CountedStep) and step.missed is not None:
        more = {"step": step.index, "missed": step.missed}
    ledger.version(number, view=view, digest=digest, members=members, **more)
