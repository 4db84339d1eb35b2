"""Whether a run may go on here: members have to compute the bits that those before them would have."""

from collections.abc import Sequence

from hpcvol.errors import CheckpointError

Numerics = dict[str, str]

_REMEDIES = {
    "torch": "install torch {then}",
    "torch build": "install the build of torch that it was",
    "device": "take nodes that have it (train.device, or Slurm's --gres)",
    "threads": "set train.threads = {then}",
    "instruction set": "set the environment variable ATEN_CPU_CAPABILITY={lower}, on nodes that have it",
    "processor": "take nodes that have it (Slurm's --constraint)",
}


def check_numerics(name: str, then: Sequence[Numerics], now: Sequence[Numerics]) -> None:
    """Refuse to go on where no member computes in a numerics class that the checkpoint was computed in. Local.

    One is enough: the probe has members of different classes compare their bits, at the start then and now.

    Args:
        name: the checkpoint in words.
        then: classes of the members that computed it.
        now: classes of the members that are to go on.

    Raises:
        CheckpointError: names what differs, and what to do.
    """
    if any(one in then for one in now):
        return
    old, new = then[0], now[0]
    different = [key for key in new if new[key] != old[key]]
    found = "; ".join(f"{key}: {old[key]}, now {new[key]}" for key in different)
    remedies = ", ".join(_REMEDIES[key].format(then=old[key], lower=old[key].lower()) for key in different)
    raise CheckpointError(
        f"{name} was computed by another numerics class ({found}), which gives other bits, so that the exact sum's "
        f"promise would not hold. To go on with the same bits, {remedies}. Else start over with --fresh, or go on "
        'without that promise: --set train.sum="float"'
    )


def distinct(classes: Sequence[Numerics]) -> list[Numerics]:
    """Return each of `classes` once, in the order in which they first come."""
    return [one for place, one in enumerate(classes) if one not in classes[:place]]
