"""A step that a group of members computes, while others compute theirs."""

from collections.abc import Iterator

from hpcvol import tracing
from hpcvol.comm.failures import died
from hpcvol.comm.faults import tells_of_loss
from hpcvol.errors import HpcvolError, ModelError
from hpcvol.torch.loader import Unit
from hpcvol.torch.step import Step


class TeamStep(Step):
    """A step that a group of members computes by itself.

    Attributes:
        over: whether it was computed.
    """

    over = False

    def __iter__(self) -> Iterator[Unit]:
        try:
            yield from self._computed()
        except Exception as error:
            if tells_of_loss(error):
                self.lost = error
            elif isinstance(error, HpcvolError) and error.everywhere:  # only this group has it
                raise type(error)(str(error)) from None
            else:
                raise

    def _computed(self) -> Iterator[Unit]:
        if self._begun:
            raise ModelError(f"step {self.index} is iterated over a second time: its units are summed once")
        self._begun = True
        run, began_ns = self._run, tracing.now()
        if run.group.revoked:
            run.abandon()  # others of this group may be in the step
            raise died("another member", "its group computed a step")
        summed = False
        while not summed:
            for span in (bag := self._begin()):
                self._last = not bag
                yield from self._offer(span)
                if self._failure is not None:
                    break
            summed = self._sum()
        self._take_effect()
        self.over = True
        tracing.record("step", began_ns, step=self.index)

    def _take_effect(self) -> None:
        """Let the group's model be what the step makes of it. The same calls on all members of the group."""
        self._run.apply(self)
