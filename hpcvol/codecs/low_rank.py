"""Matrices as products of two thin ones."""

from dataclasses import dataclass

from hpcvol.codecs.cast import Cast


@dataclass(frozen=True)
class LowRank:
    """Each matrix M as P Qᵀ with few columns, made by all ranks together: PowerSGD with a warm start.

    No payload stands for a rank's part alone, because the columns of P are those of the sum: matrices are summed in two
    all-reduces of thin ones. What is no matrix, or would not get smaller, is summed as it is.

    Args:
        rank: columns of P and Q, at least 1.
        values: what the thin ones, and what is no matrix, are rounded to before they are sent; None: they are not.
            Rounding P loses nothing, because Q is made for the P that there is; that of Q stays in the residual.

    References:
        Vogels, Karimireddy, Jaggi: PowerSGD: practical low-rank gradient compression, NeurIPS 2019, algorithms 1 and 2.
    """

    rank: int
    values: Cast | None = None
    residual_rows = 1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank = {self.rank}: expected at least 1")
