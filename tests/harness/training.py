"""What tests of training share: samples in memory, a model with everything that can go wrong, runs in a group."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hpcvol.comm import Group
from hpcvol.torch.device import make_deterministic
from hpcvol.torch.outputs import read_output
from hpcvol.torch.run import Run
from hpcvol.torch.samples import Samples
from hpcvol.torch.settings import Settings
from hpcvol.torch.step import Step

Optimizer = Callable[[Any], torch.optim.Optimizer]


# All ranks of a test share the GPU where there is one.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Rows(Samples):
    """Samples that are rows of tensors in memory, one tensor a field."""

    background = True

    def __init__(self, **fields: torch.Tensor) -> None:
        self.fields = fields

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def fetch(self, indices: NDArray[np.int64], generator: np.random.Generator) -> dict[str, Any]:
        del generator
        return {name: values[torch.from_numpy(indices)] for name, values in self.fields.items()}


def numbers(count: int, width: int = 6, seed: int = 0) -> Rows:
    """`x` of `width` numbers and `y` of one, which depends on them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator)
    return Rows(x=x, y=x.sum(1, keepdim=True).sin() + 0.1 * torch.randn(count, 1, generator=generator))


def sentences(count: int, length: int = 5, words: int = 11, seed: int = 0) -> Rows:
    """Tokens, and a mask that leaves some of them out: every token of some samples."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(words, (count, length), generator=generator)
    lengths = torch.randint(length + 1, (count, 1), generator=generator)
    return Rows(tokens=tokens, mask=torch.arange(length) < lengths)


class NoisyClassifier(nn.Module):
    """Embedding, dropout, layer norm and weights by token: predicts the next word."""

    def __init__(self, words: int = 11, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.hidden = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * width, words)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        x = self.dropout(self.norm(torch.tanh(self.hidden(self.embedding(tokens)))))
        logits, targets, counted = self.head(x)[:, :-1], tokens[:, 1:], mask[:, 1:]
        losses = nn.functional.cross_entropy(logits[counted], targets[counted], reduction="sum")
        weight = int(counted.sum())
        hits = (logits.argmax(-1) == targets)[counted].sum()
        return {"loss": losses / max(weight, 1), "weight": weight, "accuracy": hits / max(weight, 1)}


class Regression(nn.Module):
    """Two layers and a mean squared error."""

    def __init__(self, width: int = 6, hidden: int = 7) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(self.layers(x), y)


def built(build: Callable[[], nn.Module], seed: int = 0) -> Any:
    """Return `build()` with the parameters that `seed` gives; typed so that tests may reach into it."""
    torch.manual_seed(seed)
    return build()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Plain steps against the gradient."""
    return torch.optim.SGD(parameters, lr=0.1)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """What most models are trained with."""
    return torch.optim.AdamW(parameters, lr=0.02)


def make_run(group: Group, model: nn.Module, samples: Samples, settings: Settings, optimizer: Optimizer = adamw) -> Run:
    """Return a run of `model` on the members' device. Collective."""
    make_deterministic(DEVICE)
    model.to(DEVICE)
    return Run(model, optimizer(model.parameters()), samples, settings, group, DEVICE)


def train(run: Run, until: int) -> list[Step]:
    """Train to step `until` as the Trainer does, and return the steps. Collective."""
    steps = []
    for step in run.steps(until):
        for unit in step:
            output = read_output(run.model(**unit))
            step.backward(output.loss, output.weight, output.metrics)
        steps.append(step)
    return steps


@contextmanager
def alone(group: Group) -> Iterator[Group]:
    """A group of this rank only: what one rank computes is what any number of ranks has to. Collective."""
    single = group.split(group.rank)
    try:
        yield single
    finally:
        single.close()


def digest(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return a digest of the bits of every tensor."""
    return {
        name: hashlib.sha256(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in tensors.items()
    }


def outcome(run: Run, steps: list[Step]) -> dict[str, Any]:
    """Return everything that must not depend on the number of ranks: weights, optimizer, losses, norms, exponents."""
    state = run.optimizer.state_dict()["state"]
    return {
        "model": digest(run.model.state_dict()),
        "optimizer": {key: digest({k: torch.as_tensor(v) for k, v in value.items()}) for key, value in state.items()},
        "steps": [(s.loss, s.metrics, s.weight, s.num_samples, s.gradient_norm, s.attempts, s.epoch) for s in steps],
        "state": run.state(),
    }


def assert_same_alone(group: Group, compute: Callable[[Group], Any]) -> Any:
    """Compute on all ranks of `group`, then on each alone; all must be equal, and come back. Collective."""
    together = compute(group)
    with alone(group) as single:
        reference = compute(single)
    everybody = group.gather_objects((together, reference))
    # First compared with everybody's on every rank: a difference on one is then a failure on all, and nobody waits.
    assert everybody == [everybody[0]] * group.size
    assert together == reference
    return reference
