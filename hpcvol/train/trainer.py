"""The Trainer: a configuration and a run directory, from the first step to the summary."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpcvol import environment, tracing
from hpcvol.comm import Group, set_patience, together
from hpcvol.comm import start as start_mpi
from hpcvol.comm.failures import enumerate_names
from hpcvol.comm.newcomer import Invitation, give_up, invitation
from hpcvol.comm.reserve import Reserve, set_apart
from hpcvol.comm.startup import go_on_with
from hpcvol.durable import writing
from hpcvol.elastic.dealing import Terms
from hpcvol.elastic.ledger import LEDGER_NAME, Head, Ledger
from hpcvol.elastic.refill import Refill
from hpcvol.elastic.roles import drawn, tree
from hpcvol.elastic.spares import Spares
from hpcvol.elastic.views import Views
from hpcvol.errors import CheckpointError, ConfigError, HpcvolError, ModelError
from hpcvol.torch.counted import CountedStep
from hpcvol.torch.device import choose_device, choose_threads, make_deterministic
from hpcvol.torch.evaluation import Evaluation
from hpcvol.torch.loader import Unit
from hpcvol.torch.numerics import agree_on_code, code_facts, numerics_class
from hpcvol.torch.outputs import read_output
from hpcvol.torch.run import Run
from hpcvol.torch.samples import Samples
from hpcvol.torch.settings import Settings
from hpcvol.torch.staging import spread
from hpcvol.torch.step import Step
from hpcvol.train.cadence import Cadence
from hpcvol.train.checkpoint import Checkpoints
from hpcvol.train.completion import STOP, SUMMARY_NAME
from hpcvol.train.config import Config, to_toml
from hpcvol.train.cost_table import keep_costs, recall_costs
from hpcvol.train.files import finite, write_whole
from hpcvol.train.ledger_lines import circumstances, commit
from hpcvol.train.notices import Notice, exchange
from hpcvol.train.optimizers import learning_rate_factor
from hpcvol.train.pace import Pace
from hpcvol.train.parts import build_model, build_optimizer, load_hook, user_files
from hpcvol.train.progress import Progress
from hpcvol.train.recipe import recipe
from hpcvol.train.report import Report, duration
from hpcvol.train.resuming import Found, find_newest, foreign_to, load, receive_state, start_from
from hpcvol.train.run_copies import RunCopies
from hpcvol.train.run_data import open_data
from hpcvol.train.run_directory import CHECKPOINTS_NAME, METRICS_NAME
from hpcvol.train.same_numerics import check_numerics, distinct
from hpcvol.train.saving import Saver
from hpcvol.train.staleness import Staleness
from hpcvol.train.state_digest import part_of_digest
from hpcvol.train.stopping import StopRequest
from hpcvol.train.summary import conclusion, summarise
from hpcvol.train.trace import Trace

logger = logging.getLogger("hpcvol")

# How long a second Ctrl-C, which ends the run at once, waits for a checkpoint that is being written.
_AT_ONCE_SECONDS = 2.0
# Between meetings of members that do not wait for each other: what all remember of the ledger has to suffice.
_MOST_STEPS = 1000


class Trainer:
    """Trains the model of a configuration in a run directory; goes on from the last checkpoint where there is one.

    Every member makes one with the same arguments. Thin over `hpcvol.torch.run.Run`: the loop is the one that a user
    would write.

    Args:
        config: from `hpcvol.load_config`.
        run_dir: the run's folder. Where hosts do not share it the first member's is used, and copies as
            `checkpoint.copies` says.
        fresh: start over where there is a run already.
        group: the ranks that train together; all ranks by default.
        stop: tells that the run was asked to stop; by default `fit` listens for signals itself.
        program: module and arguments that a process runs to take the place of a member that died; it makes a Trainer
            with the same configuration and directory. By default nobody takes it.

    Raises:
        HpcvolError: what cannot work, the same on every member.
    """

    def __init__(
        self,
        config: Config,
        run_dir: str | Path,
        *,
        fresh: bool = False,
        group: Group | None = None,
        stop: StopRequest | None = None,
        program: Sequence[str] | None = None,
    ) -> None:
        self._config = config
        self._run_dir = Path(run_dir)
        self._fresh = fresh
        self._stop = stop
        self._program = program
        self._invited: Invitation | Reserve | None = invitation()
        self._spares_wait = False
        self._progress = Progress()
        self._ledger_head = Head()
        self._pace = Pace()
        self._staleness = Staleness()
        self._group = self._everybody = start_mpi() if group is None else group
        if config.elastic.spares:
            self._set_spares_apart(config.elastic.spares)
        set_patience(config.comm.warn_seconds, config.comm.abort_seconds)
        first = self._group.rank == 0
        if not logger.hasHandlers():
            logger.addHandler(_handler() if first else logging.NullHandler())
        self._copies = RunCopies(self._group, self._run_dir, config, fresh=fresh, sees=self._invited is None)
        try:
            self._open_copies()
            if not self._copies.is_complete:
                self._assemble()
        except BaseException as error:
            self._copies.release()
            if self._spares_wait and isinstance(error, HpcvolError) and error.everywhere:
                self._meet_spares(None)
            raise

    def _set_spares_apart(self, spares: int) -> None:
        if self._everybody is not start_mpi():
            raise ConfigError("elastic.spares are of all ranks that were started: leave out Trainer's `group`")
        self._group, reserve = set_apart(self._everybody, spares)
        self._spares_wait = True
        stop = self._stop
        if not reserve.is_member:
            self._invited = reserve
            if stop is not None:
                reserve.is_asked_to_end = lambda: stop.requested or stop.ends

    def _open_copies(self) -> None:
        """Open the run directory. Collective over everybody: spares need not prepare where that is the end."""
        error = None
        try:
            if self._invited is None:
                self._copies.open()
        except HpcvolError as found:
            error = found
        if self._spares_wait and self._everybody.any(error is not None or self._copies.is_complete):
            self._meet_spares(None)
        if error is not None:
            raise error

    def _meet_spares(self, digest: bytes | None) -> list[str]:
        """Wait until the spares have prepared; None: this process has not. Collective over everybody."""
        assert self._group.reserve is not None
        self._spares_wait = False
        unlike = self._group.reserve.introduce(digest)
        go_on_with(self._group)
        return unlike

    def fit(self) -> bool:
        """Train to the end and write `summary.json`. Collective.

        Returns:
            True when the run is complete; False when a signal asked it to stop: it stopped after the step at hand, with
            a checkpoint.
        """
        try:
            if self._copies.is_complete:
                if self._group.rank == 0:
                    print(f"{self._run_dir} is complete: see {SUMMARY_NAME}; --fresh starts over", flush=True)
                return True
            return self._fit()
        finally:
            self._copies.release()

    def _fit(self) -> bool:
        self._began = time.monotonic()
        patience = None
        try:
            with nullcontext(self._stop) if self._stop is not None else StopRequest() as stop:
                complete = self._train(stop)
                if complete:
                    self._finish()
                if self._trace is not None:
                    self._trace.finish()
        except KeyboardInterrupt:
            patience = _AT_ONCE_SECONDS
            raise
        finally:
            self._saver.close(patience)
            if self._trace is not None:
                self._trace.close()
            self._report.close()
            self._ledger.close()
            self.run.close()
        return complete

    def _assemble(self) -> None:
        config, group, everybody = self._config.here(), self._group, self._everybody
        agree_on_code(everybody, user_files(config))
        self._code = code_facts(user_files(config))
        device = choose_device(config.train.device, everybody, share=config.train.share_devices)
        exact = config.train.sum == "exact"
        choose_threads(config.train.threads, exact, group)
        if exact:
            make_deterministic(device)
        self._numerics = distinct(group.gather_objects(numerics_class()))
        self._data = open_data(config, everybody)
        recall_costs(group, self._run_dir, fresh=self._fresh)
        with together(group, "building the model"):
            model = build_model(config).to(device)
            optimizer = build_optimizer(config, model)
            hook = load_hook(config)
        train = config.train
        settings = Settings(
            train.batch_size,
            train.unit_size,
            train.sum,
            train.seed,
            config.optimizer.clip_norm,
            config.comm.algorithm,
            config.comm.bucket_nbytes,
            config.elastic.enabled,
            config.strategy.combine,
            config.strategy.codec,
            config.elastic.verify_share,
            Terms(config.elastic.dealing, config.elastic.priorities, config.elastic.limits),
            config.strategy.as_servers(),
            config.strategy.as_supernodes(),
        )
        joins = self._invited is not None
        self.run = Run(model, optimizer, self._data.train, settings, group, device, joins=joins)
        if train.patience is not None and self._data.val is None:
            raise ConfigError(
                f"train.patience = {train.patience} stops by the validation loss, and there are no samples to validate "
                f"with: give the data a split {config.data.val_split!r}, or leave patience out",
                everywhere=True,
            )
        self._total = train.steps or (train.epochs or 1) * self.run.batching.steps_per_epoch
        self._factor = learning_rate_factor(config.optimizer, self._total)
        self._base_rates = [parameters["lr"] for parameters in optimizer.param_groups]
        keeps = self._copies.keeps
        self._checkpoints = None if self._copies.mine is None else self._checkpoints_of_run()
        self._cadence = Cadence(config.checkpoint.every_steps, config.checkpoint.mtbf_hours)
        self._saver = Saver(self._checkpoints if keeps else None, self._cadence)
        columns = environment.variable("HPCVOL_TERMINAL")
        self._report = Report(
            self._run_dir / METRICS_NAME if keeps else None,
            hook if self.run.is_first else None,
            int(columns) if columns else None,
            speaks=self.run.is_first,
        )
        membership = self.run.membership
        self._ledger = Ledger(self._run_dir / LEDGER_NAME if keeps else None, lambda: membership.has_newest_view)
        self._changes_told: dict[str, int] = {}
        self._residuals: tuple[int, dict[str, torch.Tensor]] = (-1, {})
        if self._invited is not None:
            self._join(self._invited)
            return
        # Until here nothing in the folder has changed: whatever is refused leaves a former run as it was.
        resumed = None if self._fresh else self._resume()
        if resumed is None and config.model.weights is not None:
            start_from(self.run, Path(config.model.weights))
        self._copies.begin()
        if self.run.membership.survives:
            self._begin_view()
        keep_costs(group, self._run_dir, config.comm.algorithm, keeps=keeps)
        if resumed is not None:
            self._copies.take_lines(resumed.owner)
        self._resumed_samples = self._progress.samples
        with together(group, "opening the run directory"):
            self._report.forget_after(self.run.step)
            self._ledger.begin(self._ledger_head)
            circumstances(self._ledger, self.run, self._data.id, self._numerics)
        self._introduce(resumed)
        if not_shared := self._copies.what_is_not_shared():
            self._report.say(not_shared)
        self._trace = Trace(group, self._run_dir) if train.trace else None
        self.run.membership.add(self)
        if group.reserve is not None:
            self._introduce_spares(group.reserve)
        self._have_the_dead_replaced()

    def _introduce_spares(self, reserve: Reserve) -> None:
        """Wait until the spares have prepared. Collective with them."""
        unlike = self._meet_spares(self._digest())
        if unlike and self.run.is_first:
            logger.warning(
                "%s found other code, another configuration, other data or another processor than the members: it ends",
                enumerate_names(unlike),
            )
        if reserve.asleep:
            asleep = enumerate_names(list(reserve.asleep.values()))
            self._report.say(f"{asleep} {'sleeps' if len(reserve.asleep) == 1 else 'sleep'} until a member dies")

    def _join(self, invited: Invitation | Reserve) -> None:
        """Become a member of the run that this process was started for. Collective with its members."""
        membership = self.run.membership
        self.run.needs_probe = False
        self._trace = None
        if isinstance(invited, Reserve):
            self._meet_spares(self._digest())
        membership.claim_with(None, 0)
        membership.add(self)
        try:
            communicator = invited.sleep() if isinstance(invited, Reserve) else invited.ready(self._digest())
            membership.join(invited.member, communicator, self._catch_up)
        except Exception as error:
            logger.error("member %d did not get in: %s", invited.member, error)
            give_up()
        if isinstance(invited, Invitation):
            invited.accepted()
        self._invited = None
        if self._copies.sees:
            membership.claim_with(Views(self._run_dir), membership.view)
        self._resumed_samples = self._progress.samples
        set_patience(self._config.comm.warn_seconds, self._config.comm.abort_seconds)
        self._have_the_dead_replaced()

    def _have_the_dead_replaced(self) -> None:
        membership, reserve = self.run.membership, self._group.reserve
        if reserve is not None:
            self.run.replacing = Spares(membership, reserve, self._catch_up)
            return
        possible = self._config.elastic.refill and self.run.device.type == "cpu" and Refill.is_possible(membership)
        if possible and self._program is not None:
            self.run.replacing = Refill(membership, self._program, self._digest(), self._catch_up)

    def _digest(self) -> bytes:
        """Return a digest of what members must have in common to compute the same bits. Local."""
        numerics = {key: value for key, value in numerics_class().items() if key != "threads"}
        common = [self._code, self.run.facts, numerics, self._data.id, to_toml(self._config)]
        return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).digest()

    def _catch_up(self) -> None:
        """Give a newcomer what all others have. Collective over the members and the newcomer."""
        group, run, progress = self._group, self.run, self._progress
        self._copies.meet_newcomer()
        self._ledger.sync()  # a newcomer of another host may have to go on with what is there
        run.buffers.prepare()
        run.broadcast_model()
        run.gather_shards(here=run.is_first)
        optimizer = spread(group, run.optimizer.state_dict(), 0)
        ours = None
        if run.is_first:
            ours = {
                "run": run.state(),
                "progress": {**progress.state(), "seconds": self._seconds()},
                "numerics": self._numerics,
                "threads": torch.get_num_threads(),
                "lines": self._report.recent,
                "ledger": self._ledger.recent,
                "changes": self._changes_told,
                "slow": run.slow,
                "residuals": self._residuals[0],
                "norms": (run.residuals.lost, run.residuals.norms),
            }
        theirs = group.broadcast_object(ours)
        if self._invited is not None:
            torch.set_num_threads(theirs["threads"])
            run.optimizer.load_state_dict(optimizer)
            run.load_state(theirs["run"])
            self._progress = Progress(**theirs["progress"])
            self._numerics = theirs["numerics"]
            self._report.recent = theirs["lines"]
            self._ledger.follow(*theirs["ledger"])
            self._changes_told = theirs["changes"]
            run.slow = theirs["slow"]
            self._residuals = theirs["residuals"], {}
            run.residuals.lost, run.residuals.norms = theirs["norms"]

    def abandon(self) -> None:
        """As `hpcvol.elastic.membership.Part`."""
        if self._trace is not None:
            self._trace.abandon()

    def can_spare(self, leaving: set[int]) -> bool:
        """As `hpcvol.elastic.membership.Part`: somebody has to see the run directory."""
        return self._copies.can_spare(leaving)

    def inherit(self, leaving: set[int]) -> None:
        """As `hpcvol.elastic.membership.Part`: what they have is on disk, or others have it too."""

    def hand_over(self) -> None:
        """As `hpcvol.elastic.membership.Part`: another member will keep the run, and tell of it."""
        self._saver.hand_over()
        self._ledger.hand_over()
        self._report.close()
        self._copies.hand_over()

    def rebuild(self) -> None:
        """As `hpcvol.elastic.membership.Part`: the run is kept, and told of, by members that live."""
        kept = self._copies.keeps
        self._copies.renew()
        keeps, first = self._copies.keeps, self.run.is_first
        with together(self._group, "taking the run over"):
            if keeps and not kept:
                self._saver.take_over(self._checkpoints_of_run())
            hook = load_hook(self._config.here()) if first else None
            self._report.take_over(self._run_dir / METRICS_NAME if keeps else None, hook, speaks=first)
            self._ledger.take_over(self._run_dir / LEDGER_NAME if keeps else None)

    def _begin_view(self) -> None:
        """Claim the run for these members."""
        group, views = self._group, Views(self._run_dir) if self._copies.sees else None
        view = 0
        with together(group, "claiming the run"):
            if group.rank == self._copies.keepers[0] and views is not None:
                view = views.begin(group.members)
        self.run.membership.claim_with(views, group.broadcast_object(view, self._copies.keepers[0]))

    def _checkpoints_of_run(self) -> Checkpoints:
        folder = self._run_dir / CHECKPOINTS_NAME
        return Checkpoints(folder, self._config.checkpoint.keep, self.run.membership.check_view)

    def _resume(self) -> Found | None:
        """Go on from the newest checkpoint that is whole; return it, None where there is none. Collective."""
        found = find_newest(self._group, self._checkpoints, partial(foreign_to, self.run, self._config))
        if found is None:
            return None
        state = receive_state(self._group, found)
        with together(self._group, f"going on from {found.name}"):
            if state["dataset"] != self._data.id:
                raise CheckpointError(
                    f"{found.name} was trained on dataset {state['dataset']}, and {self._config.data.path} is "
                    f"{self._data.id}: restore that data, take the checkpoint away if it is of another run, or start "
                    "over with --fresh"
                )
            if self.run.settings.sum == "exact":
                check_numerics(found.name, state["numerics"], self._numerics)
            self._numerics = distinct([*state["numerics"], *self._numerics])
        residuals = load(self.run, found)
        with together(self._group, f"going on from {found.name}"):
            self.run.load_state(state["run"])
            if not self.run.residuals.load(residuals, self.run.step) and self._group.rank == 0:
                logger.warning(
                    'strategy.codec = "%s" does not keep all that the codec kept with which %s was written: that is '
                    "left out",
                    self._config.strategy.codec,
                    found.name,
                )
            self._progress = Progress(**state["progress"])
            self._ledger_head = Head(**state["ledger"])
            if state["best"] and self._checkpoints is not None and self._group.rank == found.owner:
                # It may have been killed between writing the checkpoint and pointing to it.
                self._checkpoints.make_best(found.path)
        if self.run.step > self._total:
            raise ConfigError(
                f"{found.name} is past the {self._total} steps that the configuration asks for: ask for "
                f"{self.run.step} or more, or start over with --fresh",
                everywhere=True,
            )
        return found

    def _introduce(self, resumed: Found | None) -> None:
        run, steps_per_epoch = self.run, self.run.batching.steps_per_epoch
        parameters = sum(parameter.numel() for parameter in run.model.parameters())
        threads = torch.get_num_threads()
        self._report.say(
            f"{run.describe_batch()}; {len(self._data.train)} samples, {steps_per_epoch} steps an epoch, "
            f"{self._total} steps; {parameters} parameters on {run.device}, {threads} "
            f"{'thread' if threads == 1 else 'threads'} a member, {run.settings.sum} sum"
        )
        roles = run.roles()
        if len(roles) > 2 or len(set(run.group.hosts)) > 1:  # else all do the same, on one host
            for line in drawn(tree(roles)):
                self._report.say(line)
        if resumed is not None:
            self._report.say(f"going on from {resumed.name} at step {run.step}")

    def _train(self, stop: StopRequest) -> bool:
        """Run the steps that are left. False: asked to stop."""
        if self._exhausted():
            return True
        apart = self.run.meets_seldom
        if self.run.asynchronous is not None:
            self.run.asynchronous.store.idle = partial(self._look_around, stop)
        while self.run.step < self._total:
            for step in self.run.steps(self._next_meeting() if apart else self._total):
                self._compute(step, stop)
                if apart:
                    self._progress_alone(step, stop)
                elif (ended := self._after([step], stop)) is not None:
                    return ended
            if apart and (ended := self._after(self.run.counted, stop)) is not None:
                return ended
        return True

    def _compute(self, step: Step, stop: StopRequest) -> None:
        """Compute a step."""
        self._set_learning_rate(step.index)
        for unit in step:
            try:
                output = read_output(self._forward(unit))
                step.backward(output.loss, output.weight, output.metrics)
            except Exception as error:
                step.fail(error)  # one error for all members, rather than one from each
            self._leave_if_asked(stop)
        self._leave_if_asked(stop)  # servers have no units

    def _leave_if_asked(self, stop: StopRequest) -> None:
        membership = self.run.membership
        if stop.ends_alone and membership.survives and not membership.leaves:
            self.run.leave()

    def _next_meeting(self) -> int:
        """Return after which step members are together next, where they seldom are."""
        every = [self._config.checkpoint.every_steps]
        if self.run.rounds is not None:
            every.append(self._config.strategy.between.period)
        if self._data.val is not None:
            every.append(self._config.train.validate_every_steps or self.run.batching.steps_per_epoch)
        steps = [one for one in every if isinstance(one, int) and one > 0]
        return min(
            [self._total, self.run.step + _MOST_STEPS, *(self.run.step + one - self.run.step % one for one in steps)]
        )

    def _progress_alone(self, step: Step, stop: StopRequest) -> None:
        """Tell of a step of this member's, and have all meet where that is due. Local."""
        self._look_around(stop)
        if step.lost is not None:
            return
        self._report.progress(f"step {step.index + 1}/{self._total}  loss {step.loss:.4f}", stays=False)

    def _look_around(self, stop: StopRequest) -> None:
        """Have all meet where that is due. Local; also while this member waits."""
        self._leave_if_asked(stop)
        due = self.run.is_first and self._cadence.can_wait and self._cadence.due(self.run.step)
        served = self.run.asynchronous
        missed = self.run.replacing is not None and served is not None and served.store.has_lost
        if stop.requested or stop.ends or due or missed:
            self.run.meet()

    def _after(self, steps: Sequence[Step | CountedStep], stop: StopRequest) -> bool | None:
        """Do what follows steps that took effect: tell of them, validate, make checkpoints. Collective.

        Returns:
            False: asked to stop; True: training has ended early; None: it goes on.
        """
        for chooses in self.run.strategy.automatic:
            while chooses.notes:
                self._report.say(chooses.notes.pop(0))
        self._tell_changes()
        view = self.run.membership.view
        first = self.run.step - len(steps) + 1
        for number, step in enumerate(steps, first):
            self._progress.count(step)
            self._pace.count(step.shares)
            self._log(step, number)
        best = self._validation_is_due() and self._validate()
        compare = self._trace is not None and self._trace.wants_clocks_compared
        notices, digest = self._exchange(stop, compare)
        with tracing.span("ledger"):
            for number, step in enumerate(steps, first):
                commit(self._ledger, step, number, view, digest if number == self.run.step else None)
        self._tell_changes()
        if self._trace is not None and notices & Notice.CLOCKS:
            self.run.membership.attempt(self._trace.compare_clocks)
        if news := self._saver.news():
            self._report.say(news)
        if best or notices & (Notice.STOP | Notice.DUE):
            self._gather_state()
        if notices & Notice.STOP:
            self._save(best=best)
            self._wait_for_checkpoint(best=best)
            self._ledger.event(STOP, version=self.run.step)
            self._ledger.sync()
            self._report.say(f"stopped on request after step {self.run.step}, with a checkpoint")
            return False
        if best or notices & Notice.DUE:
            self._save(best=best)
        return True if self._exhausted() else None

    def _exchange(self, stop: StopRequest, compare_clocks: bool) -> tuple[Notice, str]:
        membership, group, ends = self.run.membership, self._group, stop.ends
        asked = stop.requested or (ends and (membership.stays or not membership.survives))

        def told() -> tuple[Notice, str]:
            with tracing.span("digest"):
                part = part_of_digest(self.run.model.state_dict(), group.rank, group.size)
            return exchange(
                group,
                self._saver,
                self._cadence,
                self.run.step,
                part,
                stop=asked,
                ends=ends,
                compare_clocks=compare_clocks,
            )

        return membership.attempt(told)

    def _tell_changes(self) -> None:
        """Enter into the ledger who has died, left, joined, been expelled or found slow since the last call. Local."""
        membership, told = self.run.membership, self._changes_told
        now = {"view": membership.view, **self.run.roles()}
        changes = (
            ("expelled", membership.expelled),
            ("death", membership.lost),
            ("leave", membership.left),
            ("join", membership.joined),
        )
        for kind, who in changes:
            if new := who[told.get(kind, 0) :]:
                self._ledger.event(kind, who=new, **now)
            told[kind] = len(who)
        for name, times in self.run.slow[told.get("slow", 0) :]:
            self._ledger.event("slow", who=[name], times=round(times, 1))
        told["slow"] = len(self.run.slow)
        for member, norm in self.run.residuals.lost[told.get("residual", 0) :]:
            self._ledger.event("residual lost", who=[f"member {member}"], norm=norm)
        told["residual"] = len(self.run.residuals.lost)

    def _forward(self, unit: Unit) -> Any:
        bf16 = self._config.train.precision == "bf16"
        with torch.autocast(self.run.device.type, torch.bfloat16) if bf16 else nullcontext():
            return self.run.model(**unit)

    def _set_learning_rate(self, step: int) -> None:
        for parameters, base in zip(self.run.optimizer.param_groups, self._base_rates, strict=True):
            parameters["lr"] = base * self._factor(step)

    def _log(self, step: Step | CountedStep, done: int) -> None:
        rate = self._samples_per_second()
        if isinstance(step, CountedStep) and step.missed is not None:
            self._staleness.count(step)
        due = done % self._config.train.log_every_steps == 0 or done == self._total
        if due:
            self.run.membership.check_view()
            ours = {
                "epoch": step.epoch,
                "loss": step.loss,
                "gradient_norm": step.gradient_norm,
                "learning_rate": self._base_rates[0] * self._factor(step.index),
                "samples_per_second": rate,
                "members": self._pace.take(),
            }
            if self.run.asynchronous is not None:
                ours["staleness"] = self._staleness.take()
            if chooses := self.run.strategy.automatic:
                ours["codec"] = "+".join(dict.fromkeys(one.chosen for one in chooses))
                ours["codec_seconds"] = max(
                    (one.expected_seconds for one in chooses if one.expected_seconds), default=None
                )
            # A model's metric of the same name does not replace ours, which keep their place in the line.
            self._report.metrics(done, ours | dict(step.metrics) | ours)
        left = (self._total - done) * self._config.train.batch_size / rate
        self._report.progress(
            f"step {done}/{self._total}  loss {step.loss:.4f}  {rate:.1f} samples/s  {duration(left)} left  "
            f"{self._group.size} members",
            stays=due,
        )

    def _samples_per_second(self) -> float:
        """Rate since this process began, in samples/s."""
        return (self._progress.samples - self._resumed_samples) / max(1e-9, time.monotonic() - self._began)

    def _validation_is_due(self) -> bool:
        every = self._config.train.validate_every_steps or self.run.batching.steps_per_epoch
        return self._data.val is not None and (self.run.step % every == 0 or self.run.step == self._total)

    def _validate(self) -> bool:
        """Validate; return whether the result is the best so far. Collective."""
        result = self._evaluate(self._data.val)
        if result is None:
            return False
        best = self._progress.validated(self.run.step, result)
        if self._copies.keeps:
            self.run.membership.check_view()
        self._report.metrics(self.run.step, {"val": self._progress.validation})
        others = "".join(f"  {name} {value:.4f}" for name, value in result.metrics.items())
        self._report.say(f"step {self.run.step}  validation loss {result.loss:.4f}{others}{'  (best)' if best else ''}")
        return best

    def _evaluate(self, samples: Samples | None) -> Evaluation | None:
        if samples is None:
            return None
        result = self.run.evaluate(self._forward, samples)
        if not math.isfinite(result.loss):
            raise ModelError(
                f"the loss over held-out samples is {result.loss} after step {self.run.step}; "
                "checkpoints written before are good",
                everywhere=True,
            )
        return result

    def _exhausted(self) -> bool:
        patience = self._config.train.patience
        return patience is not None and self._progress.validations_without_improvement >= patience

    def _save(self, *, best: bool) -> None:
        """Make a checkpoint of the present step, which is written while training goes on."""
        state = {
            "run": self.run.state(),
            "progress": {**self._progress.state(), "seconds": self._seconds()},
            "recipe": recipe(self._config),
            "dataset": self._data.id,
            "numerics": self._numerics,
            "best": best,
            "ledger": asdict(self._ledger.head),
        }
        self._ledger.sync()
        self._saver.save(self.run.step, self.run.model, self.run.optimizer, self._residuals[1], state, best=best)

    def _gather_state(self) -> None:
        """Have for a checkpoint what members hold apart, also where it is written again. Collective."""
        while True:
            keeps = self._copies.keeps
            self.run.gather_optimizer(here=keeps)
            self._gather_residuals()
            # Who has come to keep checkpoints meanwhile has nothing yet.
            if not self.run.membership.attempt(partial(self._keepers_changed, keeps)):
                return

    def _keepers_changed(self, keeps: bool) -> bool:
        return self._group.any(keeps != self._copies.keeps)

    def _gather_residuals(self) -> None:
        if self._residuals[0] != self.run.step:
            self._residuals = self.run.step, self.run.membership.attempt(self.run.residuals.gathered)

    def _wait_for_checkpoint(self, *, best: bool) -> None:
        """Wait until the checkpoint of the present step is written. Collective."""

        def wait() -> None:
            if self._group.any(self._saver.step != self.run.step):  # a member that was writing it has died
                self._gather_state()
                if self._saver.step != self.run.step:
                    self._save(best=best)
            with together(self._group, "writing a checkpoint"):
                self._saver.wait()

        self.run.membership.attempt(wait)

    def _seconds(self) -> float:
        return self._progress.seconds + time.monotonic() - self._began

    def _finish(self) -> None:
        """Test, write the last checkpoint and, last, the summary. Collective."""
        best = self._data.val is not None and self._progress.validated_step != self.run.step and self._validate()
        self._gather_state()
        if best or self._saver.step != self.run.step:
            self._save(best=best)
        self._wait_for_checkpoint(best=best)
        test = self._evaluate(self._data.test)

        def write() -> dict[str, Any]:
            self._tell_changes()
            summary = summarise(self.run, self._progress, test, self._seconds(), self._ledger.head)
            with together(self._group, "writing the summary"):
                if self._copies.keeps:
                    self.run.membership.check_view()
                    self._ledger.sync()
                    path = self._run_dir / SUMMARY_NAME
                    with writing(path):
                        write_whole(path, json.dumps(finite(summary), indent=1) + "\n")
            return summary

        summary = self.run.membership.attempt(write)
        for line in conclusion(summary):
            self._report.say(line)
        if slow := self._pace.slow_member(self._group.members):
            member, times = slow
            who = self._group.name_of(self._group.members.index(member))
            self._report.say(f"{who} took {times:.1f} times as long for a sample as the median member")


def _handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("hpcvol: %(levelname)s: %(message)s"))
    return handler
