"""Means over a whole split: every sample once, shared out over the workers, the same bits however many there are."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hpcvol import tracing
from hpcvol.comm import together
from hpcvol.elastic.units import Batching
from hpcvol.torch.loader import Loader, Unit
from hpcvol.torch.means import weighted_mean
from hpcvol.torch.outputs import read_output
from hpcvol.torch.samples import Samples
from hpcvol.torch.seeding import BETWEEN_STEPS, EVALUATION, seed_generators

if TYPE_CHECKING:
    from hpcvol.torch.run import Run


@dataclass(frozen=True)
class Evaluation:
    """Means over a split: `loss` and `metrics`, each over Σ `weight`."""

    loss: float
    metrics: dict[str, float]
    weight: int


def evaluate(run: "Run", function: Callable[[Unit], Any], samples: Samples) -> Evaluation:
    """Average `function(unit)` over all of `samples`. Collective. See `Run.evaluate`."""
    with tracing.span("evaluation"):
        return _evaluate(run, function, samples)


def _evaluate(run: "Run", function: Callable[[Unit], Any], samples: Samples) -> Evaluation:
    size = run.settings.unit_size
    spans = Batching(len(samples), len(samples), size).units(0)
    mine = run.dealing_to_all.share(spans)
    records: dict[int, tuple[float, int, dict[str, float]]] = {}
    loader = Loader(samples, run.settings.seed, run.device, shuffle=False)
    with together(run.group, "evaluating"), _evaluating(run.model), torch.no_grad(), closing(loader):
        loader.prefetch(mine[:2])
        for position, span in enumerate(mine):
            loader.prefetch(mine[position + 2 : position + 3])
            unit = loader.load(span)
            run.buffers.prepare()
            seed_generators(run.settings.seed, span.step, span.index, EVALUATION)
            with tracing.span("forward", unit=span.index):
                output = read_output(function(unit))
            weight = span.count if output.weight is None else output.weight
            records[span.index] = (float(output.loss), weight, output.metrics)
    # Neither buffers nor generators may tell which units this worker had, or that there was an evaluation.
    run.buffers.prepare()
    seed_generators(run.settings.seed, run.step, 0, BETWEEN_STEPS)
    everything: dict[int, tuple[float, int, dict[str, float]]] = {}
    with tracing.span("gather records"):
        for part in run.group.gather_objects(records):
            everything |= part
    counted = [record for _, record in sorted(everything.items()) if record[1]]
    names = {name: None for _, _, metrics in counted for name in metrics}
    return Evaluation(
        weighted_mean((loss, weight) for loss, weight, _ in counted),
        {name: weighted_mean((m[name], weight) for _, weight, m in counted if name in m) for name in names},
        sum(weight for _, weight, _ in counted),
    )


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, and each module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
