"""`hpcvol.start`: from a model, an optimizer and data to a run."""

from pathlib import Path
from typing import Any

import torch

from hpcvol.codecs import AnyCodec
from hpcvol.comm import start as start_mpi
from hpcvol.comm import together
from hpcvol.data import Split
from hpcvol.elastic.dealing import Kind, Terms
from hpcvol.elastic.units import default_unit_size
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.supernodes import Supernodes
from hpcvol.torch.device import check_device, choose_device, choose_threads, make_deterministic
from hpcvol.torch.numerics import agree_on_code, main_files
from hpcvol.torch.run import Run
from hpcvol.torch.samples import open_samples
from hpcvol.torch.settings import Settings


def start(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: str | Path | Split | Any,
    batch_size: int,
    unit_size: int | None = None,
    *,
    sum: str = "exact",
    combine: str = "mean",
    codec: AnyCodec = "none",
    verify_share: float = 0.0,
    seed: int = 0,
    clip_norm: float | None = None,
    device: str = "auto",
    share_devices: bool = False,
    threads: int | str = "auto",
    dealing: Kind = "auto",
    servers: ParameterServer | None = None,
    supernodes: Supernodes | None = None,
) -> Run:
    """Start MPI and make a run of `model` on all members. Collective.

    Every member calls it with the same arguments; parameters and buffers become those of the first member. The model is
    moved to the member's device and torch's threads are set.

    Args:
        model: called by your own loop.
        optimizer: of the model's parameters.
        data: a dataset folder (its split `train` is used), a split of an open dataset, or a map-style torch dataset.
        batch_size: samples a step, over all members together.
        unit_size: samples a unit, the portion a worker computes at a time (under the float sum it computes all of its
            units in one pass); an eighth of the batch by default. It does not depend on the number of members, because
            the weights must not.
        sum: "exact": the same weights to the bit at any number of members; "float": faster, without that promise.
        combine: under the float sum, what becomes of the gradients of members of whom some may be faulty:
            "median" and others, as `strategy.combine`.
        codec: under the float sum, what members' gradients are encoded by before they are sent: "int8", "topk:0.01",
            "powersgd:4" and others, as `strategy.codec`, or a value of `hpcvol.codecs`.
        verify_share: under the exact sum, the share of units that two members compute, to be compared: who is wrong is
            expelled.
        seed: decides sample order and the random numbers of each unit.
        clip_norm: largest 2-norm of the gradient; None does not clip.
        device: "auto", "cpu" or "cuda".
        share_devices: allow more members than GPUs on a node.
        threads: CPU threads a member; "auto" is 1 under the exact sum and the node's cores shared out otherwise.
        dealing: which member computes what: "static", in proportion to measured speed; "dynamic", one unit after the
            other; "equal"; "auto" is "static" under the exact sum, "equal" otherwise.
        servers: who holds parameters and the optimizer's state in shards; by default every member holds all of them.
        supernodes: groups that members form, and how often these combine what they have; by default all do every step.

    Raises:
        HpcvolError: what cannot work, the same on every member.

    Example:
        >>> run = hpcvol.start(model, optimizer, data="data/", batch_size=64)  # doctest: +SKIP
        >>> for step in run.steps(1000):  # doctest: +SKIP
        ...     for unit in step:
        ...         step.backward(loss_fn(model(unit["x"]), unit["y"]))
    """
    group = start_mpi()
    with together(group, "starting the run"):
        settings = Settings(
            batch_size,
            default_unit_size(batch_size) if unit_size is None else unit_size,
            sum,
            seed,
            clip_norm,
            combine=combine,
            codec=codec,
            verify_share=verify_share,
            dealing=Terms(dealing),
            servers=servers,
            supernodes=supernodes,
        )
        samples = open_samples(data)
        check_device(device)
        choose_threads(threads, settings.sum == "exact", group)
    agree_on_code(group, main_files(model, codec))
    where = choose_device(device, group, share=share_devices)
    if settings.sum == "exact":
        make_deterministic(where)
    return Run(model.to(where), optimizer, samples, settings, group, where)
