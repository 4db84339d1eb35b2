"""The probe: at start every worker computes one unit twice, with another unit between, and all compare digests.

Two different digests on one member: the model is impure (state that outlives a unit, random numbers of a generator that
is not seeded by unit, an algorithm that is not deterministic). Different digests on two members: they belong to
different numerics classes. Either would make the exact sum's promise empty, so the run stops and names the first tensor
that differs.
"""

import hashlib
from collections.abc import Iterable, Mapping

import torch

from hpcvol.comm import Group
from hpcvol.errors import ModelError
from hpcvol.torch.numerics import describe_differences, numerics_class

Digests = dict[str, str]


def digest_unit(
    batch: Mapping[str, object],
    loss: torch.Tensor,
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    buffers: Iterable[tuple[str, torch.Tensor]],
) -> Digests:
    """Return a digest of everything that one unit read and made, in the order in which it came about."""
    digests = {f"field {name}": _digest(value) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    digests["the loss"] = _digest(loss)
    for name, parameter in parameters:
        if parameter.grad is not None:
            digests[f"gradient of {name}"] = _digest(parameter.grad)
    for name, buffer in buffers:
        digests[f"buffer {name}"] = _digest(buffer)
    return digests


def compare(group: Group, once: Digests, again: Digests, other: Digests) -> None:
    """Compare a unit computed twice here, then that and another unit with those of all other members. Collective.

    Raises:
        ModelError: on every member, naming the first tensor that differs and, between members, what differs in their
            numerics class.
    """
    impure = _first_difference(once, again)
    # Two units, since another class may come to the same bits in one of them.
    both = {f"{name} (unit 0)": digest for name, digest in once.items()}
    both |= {f"{name} (the step's last unit)": digest for name, digest in other.items()}
    found = group.gather_objects((impure, hashlib.sha256(repr(both).encode()).hexdigest()))
    for member, (name, _) in enumerate(found):
        if name is not None:
            raise ModelError(
                f"unit 0 computed twice by {group.name_of(member)} differs in {name}: the model or "
                "its data is not a pure function of parameters and unit. Look for state kept between calls, a random "
                'generator of its own, or an operation that is not deterministic; or set train.sum = "float", which '
                "promises no equal bits",
                everywhere=True,
            )
    if len({digest for _, digest in found}) > 1:
        _refuse_classes(group, both)


def _refuse_classes(group: Group, digests: Digests) -> None:
    everything = group.gather_objects((digests, numerics_class()))
    reference, reference_class = everything[0]
    for member, (other, other_class) in enumerate(everything):
        name = _first_difference(reference, other)
        if name is not None:
            raise ModelError(
                f"{group.name_of(member)} computes other bits than {group.name_of(0)}: they differ first in {name}. "
                f"{describe_differences(reference_class, other_class)}",
                everywhere=True,
            )


def _first_difference(one: Digests, other: Digests) -> str | None:
    for name in [*one, *(name for name in other if name not in one)]:
        if one.get(name) != other.get(name):
            return name
    return None


def _digest(tensor: torch.Tensor) -> str:
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    data = dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()
