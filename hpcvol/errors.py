"""Every exception that a user can meet. A message says what was found, where, what was expected and what to do."""


class HpcvolError(Exception):
    """Base of all errors of hpcvol.

    Args:
        message: one clear text: found what, where, expected what, do what.
        everywhere: True when every member raises this same error, so that one of them reports it and all stop in order.
            Otherwise the member that raises reports it and ends the run for all.
        speaker: with `everywhere`, the member (its id) that reports it; the first by default.
    """

    def __init__(self, message: str, *, everywhere: bool = False, speaker: int | None = None) -> None:
        super().__init__(message)
        self.everywhere = everywhere
        self.speaker = speaker


class ConfigError(HpcvolError):
    """A configuration, option or combination that cannot work."""


class DataError(HpcvolError):
    """A dataset that is missing, damaged, or not what its manifest says."""


class ModelError(HpcvolError):
    """A model, loss or gradient that cannot be trained: no builder, an impure unit, a value that is not finite."""


class CheckpointError(HpcvolError):
    """A checkpoint that cannot be written, or does not fit the model or run."""


class CommError(HpcvolError):
    """MPI is missing, mixed, or its launcher does not know it; or members do not meet in their collective calls."""


class MemberError(HpcvolError):
    """Another member of the run failed; the message names it and repeats its words."""


class LostMemberError(MemberError):
    """Another member has died, or can no longer be reached."""


class LeftBehindError(MemberError):
    """The others have gone on without this member, or without all that it can reach: these end, and nobody else."""


class MismatchError(CommError):
    """Members called different collectives, or with other lengths, dtypes or operations; shows both sides."""
