"""A member's clock brought to the first member's, without a jump however often the two are compared."""

from bisect import bisect_right

from hpcvol.comm.clock import ClockOffset

# While a correction is worked in, a second is at most a thousandth longer or shorter.
_LARGEST_SLEW = 1e-3
_LEAST_SLEW_NS = 1_000_000_000
# What NTP may do to a clock on top of a crystal's own 50 µs a second.
_LARGEST_DRIFT = 5e-4


class AlignedClock:
    """Translates times of this member's clock to the first member's.

    The translation is continuous and rises, so that spans that nest, or follow one another, still do; and what it says
    of a time never changes once a later comparison is known. Clocks of two hosts drift apart by up to some 50 µs a
    second: the drift between the last two comparisons is taken to go on.

    Args:
        first: the comparison to begin with.
    """

    def __init__(self, first: ClockOffset) -> None:
        self._last = first
        # Pieces of the translation: from a time on, the offset at that time, and its change a nanosecond.
        self._starts = [first.at_ns]
        self._pieces = [(first.offset_ns, 0.0)]

    def offset(self, time_ns: int) -> int:
        """Return what to add to `time_ns` of this member's clock."""
        index = max(0, bisect_right(self._starts, time_ns) - 1)
        offset, drift = self._pieces[index]
        return offset + round(drift * (time_ns - self._starts[index]))

    def aligned(self, time_ns: int) -> int:
        """Return `time_ns` of this member's clock as the first member's."""
        return time_ns + self.offset(time_ns)

    def correct(self, measured: ClockOffset, now_ns: int) -> None:
        """Take in another comparison; times up to `now_ns` are translated as before.

        What lies within the error of the measurement corrects nothing.
        """
        predicted = self.offset(now_ns)
        drift = (measured.offset_ns - self._last.offset_ns) / max(1, measured.at_ns - self._last.at_ns)
        drift = max(-_LARGEST_DRIFT, min(drift, _LARGEST_DRIFT))
        missing = measured.offset_ns + round(drift * (now_ns - measured.at_ns)) - predicted
        self._last = measured
        if abs(missing) <= measured.error_ns:
            return
        slew_ns = max(_LEAST_SLEW_NS, round(abs(missing) / _LARGEST_SLEW))
        known = bisect_right(self._starts, now_ns)
        del self._starts[known:], self._pieces[known:]
        self._starts += [now_ns, now_ns + slew_ns]
        self._pieces += [(predicted, drift + missing / slew_ns), (predicted + missing + round(drift * slew_ns), drift)]
