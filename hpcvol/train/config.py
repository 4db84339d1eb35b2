"""The configuration of a run: what each key means, what it may be, and what it is when left out.

A configuration is a TOML file. Paths in it are relative to the file's folder; `load_config` makes them absolute, so
that the rest of the library never asks where a path came from. This file imports neither torch nor MPI.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from hpcvol.codecs import parse as parse_codec
from hpcvol.collectives import Algorithm
from hpcvol.comm.launch import DETECT_SECONDS
from hpcvol.elastic.units import default_unit_size
from hpcvol.errors import ConfigError
from hpcvol.guarantees import (
    require,
    require_dealing,
    require_replaceable,
    require_sharing,
    require_verifiable,
)
from hpcvol.strategies.combinations import parse as parse_combination
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.reducer import BUCKET_NBYTES
from hpcvol.strategies.supernodes import Supernodes
from hpcvol.train import config_errors, toml

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
_MAX_WEIGHT = 1e6


class _Section(BaseModel):
    """Unknown keys are errors, nothing is converted in silence (True is no 1), and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelConfig(_Section):
    """What is trained."""

    build: str = Field(
        description="Function that makes the model, `file.py:function` or `package.module:function`. Called as "
        "`build(**args)`, returns an `nn.Module`, which is called as `model(**batch)` and returns a scalar loss, or a "
        "mapping with `loss`, optionally `weight` (what the mean loss was taken over, an integer), and further "
        "scalars, which become metrics."
    )
    args: dict[str, Any] = Field(default={}, description="Keyword arguments of `build`.")
    weights: str | None = Field(default=None, description="A `model.safetensors` file to start from.")


class SourceConfig(_Section):
    """How to build the dataset at `data.path` where there is none yet; the words are those of `hpcvol data build`."""

    kind: Literal["text", "tokens", "npz", "csv", "python", "images", "hdf5", "parquet", "webdataset"] = Field(
        description="What the paths hold."
    )
    paths: Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, list[str]], Field(min_length=1)] = Field(
        description="Files and folders to read; `file.py:function` is a function that gives the data. A table "
        "`{ train = [...], val = [...] }` where each file is for one split."
    )
    split: dict[str, Fraction] | None = Field(
        default=None,
        description="Share of the rows that goes to each split, by its name; left out, 0.9 to `train`, 0.05 to `val` "
        "and 0.05 to `test`, unless `paths` says it.",
    )
    options: dict[str, Any] = Field(default={}, description="Options of the kind.")


class DataConfig(_Section):
    """What the model is trained on."""

    path: str | Annotated[dict[str, float], Field(min_length=1)] = Field(
        description="A dataset folder, as `hpcvol data build` makes it, or `file.py:function`, which is called with "
        'the name of a split and returns a map-style torch dataset. Or several folders: `{ "a/" = 2, "b/" = 0.5 }` '
        "takes every training sample of `a/` twice an epoch and half of those of `b/`, in turn."
    )
    source: SourceConfig | None = Field(
        default=None, description="How to build `path` where it does not exist yet: see the keys of `[data.source]`."
    )
    transform: str | None = Field(
        default=None,
        description="Function `file.py:function`, called as `(batch, rng)` on each unit of the training split before "
        "the model sees it; returns the batch. `rng` depends on seed, step and unit only. "
        "`hpcvol.data.images:augment` decodes pictures.",
    )
    eval_transform: str | None = Field(
        default=None,
        description="The same for the validation and test splits; `hpcvol.data.images:decode` decodes pictures.",
    )
    cache: str | None = Field(
        default=None,
        description="A folder on each node's own disk, such as `$TMPDIR/hpcvol` (with the node's own variables), to "
        "which the training split's shards are copied while training runs; what is not there yet is read where it "
        "lies. A node that does not have the data is given it there by one that has.",
    )
    window: PositiveInt | None = Field(
        default=None,
        description="Shards whose samples are shuffled together; left out, all of them. For data larger than the disk "
        "of `cache`, which then moves along and needs room for two windows. It changes the order of samples.",
    )
    train_split: str = Field(default="train", description="Name of the split to train on.")
    val_split: str = Field(default="val", description="Name of the split that validations read.")
    test_split: str = Field(default="test", description="Name of the split read once, when training has ended.")

    @model_validator(mode="after")
    def _source_builds_a_folder(self) -> Self:
        if self.source is not None and not isinstance(self.path, str):
            raise ValueError("data.path names several datasets and [data.source] builds one: give one of the two")
        if self.source is not None and isinstance(self.path, str) and is_reference(self.path):
            raise ValueError(
                f"data.path = {self.path!r} is a function and [data.source] builds a folder: give one of the two"
            )
        if self.window is not None and (isinstance(self.path, dict) or is_reference(self.path)):
            raise ValueError("data.window shuffles shards of one dataset folder: data.path is no single folder")
        if self.cache is not None and isinstance(self.path, str) and is_reference(self.path):
            raise ValueError(f"data.cache holds shards, and data.path = {self.path!r} is a function: leave it out")
        if isinstance(self.path, dict) and len({os.path.normpath(path) for path in self.path}) < len(self.path):
            raise ValueError("data.path names the same folder twice: give it once, with the sum of the weights")
        for path, weight in self.path.items() if isinstance(self.path, dict) else ():
            if not 0 < weight <= _MAX_WEIGHT:
                raise ValueError(
                    f"data.path gives {path!r} the weight {weight:g}, expected a number above 0 and at most "
                    f"{_MAX_WEIGHT:g}"
                )
            if is_reference(path):
                raise ValueError(f"data.path mixes datasets, and {path!r} is a function: build a dataset of it first")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The dataset folders of `path` and their weights."""
        return self.path if isinstance(self.path, dict) else {self.path: 1.0}


class OptimizerConfig(_Section):
    """How gradients become new weights."""

    name: str = Field(default="adamw", description="Name of an optimizer of `torch.optim`, in any case.")
    args: dict[str, Any] = Field(default={}, description="Keyword arguments of the optimizer: `lr`, `betas`, ...")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant",
        description="How the learning rate goes from `lr` to `final_lr_ratio * lr` by the last step.",
    )
    warmup_steps: NonNegativeInt = Field(
        default=0, description="Steps in which the learning rate first rises from 0 to `lr`, linearly."
    )
    final_lr_ratio: Fraction = Field(
        default=0.1, description="Learning rate of the last step, as a share of `lr`; a constant schedule ignores it."
    )
    clip_norm: PositiveFloat | None = Field(
        default=None, description="Largest 2-norm of the whole gradient; a longer one is scaled down to it."
    )


def _default_unit_size(section: dict[str, Any]) -> int:
    return default_unit_size(section["batch_size"])


def _default_epochs(section: dict[str, Any]) -> int | None:
    return 1 if section.get("steps") is None else None


class TrainConfig(_Section):
    """How long, in what portions and with which numbers."""

    steps: PositiveInt | None = Field(default=None, description="Steps to train. Give this or `epochs`.")
    epochs: PositiveInt | None = Field(
        default_factory=_default_epochs,
        description="Passes over the training split; 1 where neither `steps` nor `epochs` is given.",
    )
    batch_size: PositiveInt = Field(default=64, description="Samples a step, over all ranks together.")
    unit_size: PositiveInt = Field(
        default_factory=_default_unit_size,
        description="Samples a unit, the portion of a batch that one worker computes at a time: its activations "
        "have to fit in memory (under the float sum those of all of a worker's units, which are computed in one pass). "
        "By default an eighth of `batch_size`, rounded up. It does not depend on the number of ranks, because the "
        "weights must not; so at most `batch_size / unit_size` workers have something to do.",
    )
    sum: Literal["exact", "float"] = Field(
        default="exact",
        description="How gradients are added. `exact`: the same bits whichever ranks computed them; `float`: faster, "
        "and the last bits depend on the number of ranks.",
    )
    precision: Literal["float32", "bf16"] = Field(
        default="float32", description="`bf16` runs the forward pass under autocast; weights stay float32."
    )
    seed: NonNegativeInt = Field(
        default=0, lt=2**63, description="Decides initial weights, sample order and random numbers."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`auto` takes a GPU where every member has one of its own, else the CPU."
    )
    share_devices: bool = Field(default=False, description="Allow more members than GPUs on a node.")
    threads: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="CPU threads a member. `auto` is 1 under the exact sum, because another number of threads gives "
        "other bits, and a node's cores shared out among its members under the float sum.",
    )
    validate_every_steps: PositiveInt | None = Field(
        default=None, description="Steps between validations; left out, one at the end of each epoch."
    )
    patience: PositiveInt | None = Field(
        default=None, description="Validations without a better loss after which training stops; left out, never."
    )
    on_metrics: str | None = Field(
        default=None,
        description="Function `file.py:function`, called on the first member as `(step, metrics)` for each line of "
        "metrics: the hook for loggers.",
    )
    log_every_steps: PositiveInt = Field(default=10, description="Steps between lines of metrics.")
    trace: bool = Field(
        default=False,
        description="Write `trace.json` to the run directory: what every member did when, to be opened in "
        "https://ui.perfetto.dev. At most 4 MiB a member: the first steps and the last ones.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"train.steps = {self.steps} and train.epochs = {self.epochs} exclude each other: give one of the two"
            )
        return self

    @model_validator(mode="after")
    def _units_fit(self) -> Self:
        if self.unit_size > self.batch_size:
            raise ValueError(
                f"train.unit_size = {self.unit_size} is more than train.batch_size = {self.batch_size}: "
                "a unit is a part of a batch, give at most batch_size"
            )
        return self


class BetweenConfig(_Section):
    """What groups of members do with each other."""

    period: PositiveInt = Field(
        default=1,
        description="Steps that each group trains by itself, with its part of every batch, until all continue from the "
        'mean of their parameters, by the weights of what each has computed; with `train.sum = "float"`. At 1 '
        "gradients are summed over all members every step instead, within nodes first. With `max_staleness` above 0: "
        "whole steps that a group computes before it pushes; above 1 it applies the optimizer by itself, and pushes "
        "what became of the parameters.",
    )
    codec: str = Field(
        default="none",
        description="What groups encode that they send each other, or push, as `strategy.codec`, but for `auto`.",
    )


class StrategyConfig(_Section):
    """How members' gradients become one, and who holds the parameters."""

    kind: Literal["all_reduce", "parameter_server"] = Field(
        default="all_reduce",
        description="`all_reduce`: every member has all parameters and all that the optimizer keeps, and applies it. "
        "`parameter_server`: servers have shards of both, and hand the parameters out. Weights are the "
        "same, with `max_staleness = 0` and no codec.",
    )
    servers: PositiveInt | Literal["all"] = Field(
        default="all",
        description="How many members are servers and compute no units; `all`: every member has a shard and computes "
        "units too. For `parameter_server`.",
    )
    replicas: NonNegativeInt = Field(
        default=0,
        description="Further servers that have a copy of each shard: so many may die at a time, and the run goes on. "
        "At 0 a server's death ends it, and it goes on from its last checkpoint. For `parameter_server`.",
    )

    combine: str = Field(
        default="mean",
        description="What becomes of members' gradients under the float sum. Outliers cannot decide `median`, "
        "`trimmed_mean:SHARE` (each coordinate without a share of members at each end), `krum:FAULTY`, "
        "`multi_krum:FAULTY` (the member, or members, closest to the others, where so many may be faulty) and "
        "`centred_clip:RADIUS` (no member moves it by more); each member counts alike in them.",
    )
    codec: str = Field(
        default="none",
        description="What gradients are encoded by before they are sent to other nodes, under the float sum: `bf16` or "
        "`fp16`; `fp8`, `int8`, `int4`, `sign`, `ternary`, `qsgd:LEVELS` (small integers, a scale every 256 elements); "
        "`topk:SHARE`, `randomk:SHARE`, `threshold:MAGNITUDE` (some elements, with `+int8` or another for their "
        "values, and `+dgc:STEPS` for the momentum and warm-up of Deep Gradient Compression, with plain SGD); "
        "`powersgd:RANK` (matrices as products of thin ones). What is left out is added to the next step. "
        "`auto`: none, or one of a few of these, whatever measures say is there first. With `parameter_server` what is "
        "sent to it is encoded, by all but `powersgd` and `auto`.",
    )
    max_staleness: NonNegativeFloat = Field(
        default=0.0,
        description="0: all members compute each step together. Above, each step is computed by one worker, a member "
        "or one of `groups`, and it may be so many of its pushes ahead of the slowest one (`inf`: as far as it will). "
        'For `parameter_server`, with `train.sum = "float"`.',
    )
    rate_by_staleness: bool = Field(
        default=False,
        description="Divide the learning rate of a step by 1 + m, where m pushes took effect since its parameters "
        "were pulled. With `max_staleness` above 0.",
    )
    compensation: NonNegativeFloat = Field(
        default=0.0,
        description="Correct gradients for what the parameters have become since they were pulled: g + compensation · "
        "g² · (now - then) by element (DC-ASGD). The parameters go along with each push. With `max_staleness` above 0.",
    )
    elastic_averaging: NonNegativeFloat = Field(
        default=0.0,
        description="Above 0 each worker trains parameters of its own, and at each push these and the servers' are "
        "drawn towards each other by this share of what is between them (EASGD; 0.9 divided by the number of workers "
        "is usual). With `max_staleness` above 0.",
    )
    pull: Literal["exact", "bf16", "fp16"] = Field(
        default="exact",
        description="What parameters are rounded to that workers pull from other nodes; servers keep them exactly, and "
        "so have all where members meet. With `max_staleness` above 0.",
    )
    groups: PositiveInt | Literal["none", "node", "link"] = Field(
        default="none",
        description="Supernodes that members form: those of each `node`; so many groups of neighbours; or those of "
        "nodes that a fast `link` connects, as measured at the start. See `between`.",
    )
    between: BetweenConfig = Field(
        default=BetweenConfig(), description="How often supernodes combine what they have, and how it is encoded."
    )

    def as_servers(self) -> ParameterServer | None:
        """Return who holds the parameters; None: every member.

        Raises:
            ConfigError: what is said of servers cannot be.
        """
        said = ParameterServer(
            servers=self.servers,
            replicas=self.replicas,
            max_staleness=self.max_staleness,
            rate_by_staleness=self.rate_by_staleness,
            compensation=self.compensation,
            elastic_averaging=self.elastic_averaging,
            pull=self.pull,
        )
        if self.kind == "parameter_server":
            return said
        if said != ParameterServer():
            names = [field.name for field in fields(said)]
            raise ConfigError(
                f"strategy.{', '.join(names[:-1])} and {names[-1]} are for strategy.kind = "
                '"parameter_server", and kind is "all_reduce": set kind, or leave them out'
            )
        return None

    def as_supernodes(self) -> Supernodes | None:
        """Return the groups that members form, if any.

        Raises:
            ConfigError: what is said of groups cannot be.
        """
        if self.groups != "none":
            return Supernodes(self.groups, self.between.period, self.between.codec)
        if self.between != BetweenConfig():
            raise ConfigError(
                'strategy.between is of groups, and strategy.groups is "none": set groups = "node", or leave it out'
            )
        return None


class CheckpointConfig(_Section):
    """What is kept to go on from."""

    every_steps: NonNegativeInt | Literal["auto"] = Field(
        default="auto",
        description="Steps between checkpoints; 0 writes one only when training ends or is stopped. `auto`: as often "
        "as loses least time, by Daly's formula from what a checkpoint costs here and `mtbf_hours`; the first after a "
        "minute.",
    )
    mtbf_hours: PositiveFloat = Field(
        default=24.0,
        description="Mean time between two interruptions of the run that come without a signal (a node lost, a "
        'pre-emption without grace), for `every_steps = "auto"`.',
    )
    keep: PositiveInt = Field(default=2, description="Checkpoints kept, besides the best by validation loss.")
    copies: PositiveInt = Field(
        default=1,
        description="Hosts that keep the run directory where they do not share one; a run goes on from the newest "
        "whole checkpoint that any of its hosts has.",
    )


class CommConfig(_Section):
    """How ranks combine vectors."""

    algorithm: Algorithm = Field(
        default="auto",
        description="All-reduce algorithm. `auto` uses memory that members share; between hosts, for each length, what "
        "is cheapest by short measurements, which the run keeps in `collectives.json`. `library` is the MPI library's "
        "own; `staged` and `cross_memory` are for members of one host.",
    )
    bucket_nbytes: PositiveInt = Field(
        default=BUCKET_NBYTES,
        description="Gradients travel between hosts in buckets of so many bytes, while the backward pass computes the "
        "next ones. Smaller ones begin earlier, larger ones cost less each.",
    )
    warn_seconds: PositiveFloat = Field(
        default=30.0,
        description="A member that waits longer in a collective call reports for whom, and where in its code that one "
        "is. Members that build, evaluate or write something meanwhile are named, and not called stuck.",
    )
    abort_seconds: NonNegativeFloat = Field(
        default=1800.0,
        description="A member that waits longer ends the run with that report; 0 waits for ever. An elastic run has "
        "those killed that it waits for, where it can, and goes on.",
    )


class ElasticConfig(_Section):
    """What becomes of a run when members die, and who computes how much."""

    enabled: bool = Field(
        default=True,
        description="The run goes on without members that die or leave, where the MPI can: Open MPI from version 5, "
        "started by `hpcvol train`, or by `mpiexec --with-ft ulfm`. Otherwise their death ends it.",
    )
    verify_share: Fraction = Field(
        default=0.0,
        description="Share of the units that two members compute under the exact sum, to be compared before a step "
        "takes effect. Where they disagree a third decides; who is wrong is expelled, or named as the run ends where "
        "members cannot be expelled (`enabled`) or there is no third.",
    )
    detect_seconds: PositiveFloat = Field(
        default=DETECT_SECONDS,
        description="In a run on several hosts a member that was silent for so long, its host lost, cut off or it "
        "stopped, counts as dead. On one host it is waited for until `comm.abort_seconds`.",
    )
    dealing: Literal["auto", "equal", "static", "dynamic"] = Field(
        default="auto",
        description="Which member computes which units. `static`: in proportion to speed, which members measure as "
        "they work; `dynamic`: those of a node take one unit after the other, and who would be late with another one "
        "leaves it; `equal`: as many each. `auto` is `static` under the exact sum, whose weights do not depend on it, "
        "and `equal` under the float sum, where rounding and memory do. `dynamic` needs the exact sum, "
        "`static` the mean: `strategy.combine` needs units of all members.",
    )
    priorities: dict[str, NonNegativeFloat] = Field(
        default={},
        description='By host name or member id, as in `{ "node07" = 0.5 }`: what the speed of a member is multiplied '
        "by when units are dealt; 0 gives it none.",
    )
    limits: dict[str, NonNegativeInt] = Field(
        default={},
        description="Likewise: units a step that a member gets at most, as long as all members together can compute "
        "a step within their limits; otherwise only limits of 0 hold.",
    )
    refill: bool = Field(
        default=False,
        description="`hpcvol train` has new processes take the places of members that died, where all members are on "
        "one host and compute on CPUs. They prepare apart and come in between two steps.",
    )
    spares: NonNegativeInt = Field(
        default=0,
        description="So many of the ranks that are started, those of the last hosts, prepare and then sleep until "
        "members have died, whose places they take between two steps; on any hosts. The others train.",
    )

    @model_validator(mode="after")
    def _replaces_in_one_way(self) -> Self:
        if self.spares and self.refill:
            raise ValueError("elastic.spares and elastic.refill both replace members that died: choose one of them")
        return self


class Config(_Section):
    """A whole configuration; `folder` is where its file was, and all paths in it are absolute."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    strategy: StrategyConfig = StrategyConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    comm: CommConfig = CommConfig()
    elastic: ElasticConfig = ElasticConfig()

    @model_validator(mode="after")
    def _combination_can_be(self) -> Self:
        try:
            robust = parse_combination(self.strategy.combine) is not None
            parse_codec(self.strategy.codec)
            require("run", self.train.sum, robust=robust, encoded=self.strategy.codec != "none")
            require_verifiable(self.train.sum, self.elastic.verify_share)
            require_dealing(self.train.sum, self.elastic.dealing, robust=robust)
            servers, supernodes = self.strategy.as_servers(), self.strategy.as_supernodes()
            require_sharing(
                self.train.sum,
                self.strategy.codec,
                servers,
                supernodes,
                robust=robust,
                share=self.elastic.verify_share,
                weighed=bool(self.elastic.priorities or self.elastic.limits),
            )
            if self.elastic.refill or self.elastic.spares:
                require_replaceable(trace=self.train.trace, share=self.elastic.verify_share, robust=robust)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    _folder: Path = PrivateAttr(default=Path("."))
    _copy: Path | None = PrivateAttr(default=None)

    @property
    def folder(self) -> Path:
        """Folder of the configuration file (absolute)."""
        return self._folder

    def here(self) -> "Config":
        """Return this configuration with the functions' files where this host has them: see `parse_config`'s `copy`."""
        folder, copy = self._folder, self._copy
        if copy is None:
            return self

        def move(place: str) -> str:
            inside = place.endswith(".py") and Path(place).is_relative_to(folder)
            return str(copy / Path(place).relative_to(folder)) if inside else place

        return _map_paths(self, move)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply `--set` overrides to it.

    Args:
        path: the TOML file.
        overrides: `section.key=value` each; the value is TOML, and a plain string where it is not valid TOML. An
            override of `train.steps` replaces `train.epochs` of the file, and the other way round.

    Returns:
        The configuration, with defaults filled in and paths made absolute.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a wrong type or value, keys that exclude each other.
    """
    path = Path(path)
    return parse_config(toml.read(path), path, overrides)


def parse_config(text: str, path: Path, overrides: Sequence[str] = (), *, copy: Path | None = None) -> Config:
    """Return the configuration that the file `path` holds, whose text is `text`; the file itself is not looked at.

    Args:
        text: what it says.
        path: where it is; paths in it are relative to its folder, and messages name it.
        overrides: as for `load_config`.
        copy: where this host has the Python files of that folder, if not there.

    Raises:
        ConfigError: as `load_config` does.
    """
    table = toml.parse(text, path)
    toml.apply_overrides(table, overrides, exclusive=[("train.steps", "train.epochs")])
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(config_errors.explain(error, Config, text, path, overrides), everywhere=True) from None
    folder = path.resolve().parent
    config = _map_paths(config, lambda place: os.path.normpath(folder / Path(place).expanduser()))
    config._folder, config._copy = folder, copy
    return config


def to_toml(config: Config, folder: str | Path | None = None) -> str:
    """Return `config` as TOML with every default written out; `load_config` of it gives one without `differences`.

    Args:
        config: what to write.
        folder: where the text will lie. Paths in the configuration's own folder are written relative to it, so that a
            project can be moved as a whole; others, and all of them without `folder`, stay absolute.
    """
    if folder is not None:
        start, project = Path(folder).resolve(), config.folder

        def relative(place: str) -> str:
            return os.path.relpath(place, start) if Path(place).is_relative_to(project) else place

        config = _map_paths(config, relative)
    return toml.render(config.model_dump(exclude_none=True))


def differences(old: Config, new: Config) -> list[str]:
    """Return what differs between two configurations, one line a key: `train.batch_size: 64 -> 128`."""
    before, after = toml.flatten(old.model_dump()), toml.flatten(new.model_dump())
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key}: {toml.value_text(before.get(key))} -> {toml.value_text(after.get(key))}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def is_reference(text: str) -> bool:
    """Return True for `file.py:function`, False for a path."""
    return ".py:" in text


def _map_paths(config: Config, change: Callable[[str], str]) -> Config:
    """Return `config` with `change` applied to each path in it, also to those before a `:function`."""

    def place(text: str) -> str:
        if not is_reference(text):
            return change(text)
        file, _, function = text.rpartition(":")
        return f"{change(file)}:{function}"

    def optional(text: str | None) -> str | None:
        return None if text is None else place(text)

    def reference(text: str | None) -> str | None:
        return place(text) if text is not None and is_reference(text) else text

    model, data, train = config.model, config.data, config.train
    source = data.source
    if source is not None:
        source = source.model_copy(update={"paths": _map_each(source.paths, place)})
    return config.model_copy(
        update={
            "model": model.model_copy(update={"build": reference(model.build), "weights": optional(model.weights)}),
            "data": data.model_copy(
                update={
                    "path": place(data.path)
                    if isinstance(data.path, str)
                    else {place(path): weight for path, weight in data.path.items()},
                    "source": source,
                    "transform": reference(data.transform),
                    "eval_transform": reference(data.eval_transform),
                }
            ),
            "train": train.model_copy(update={"on_metrics": reference(train.on_metrics)}),
        }
    )


def _map_each(paths: list[str] | dict[str, list[str]], place: Callable[[str], str]) -> Any:
    if isinstance(paths, dict):
        return {split: [place(path) for path in own] for split, own in paths.items()}
    return [place(path) for path in paths]
