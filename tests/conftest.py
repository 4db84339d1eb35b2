"""One body for all rank counts: the plugins in tests/harness.

`pytest` runs what fits one process, `mpiexec -n 4 pytest` what takes ranks, `python tests/run.py` one after the other.
"""

from hypothesis import HealthCheck, settings

pytest_plugins = ("ranks_in_step", "launched", "without_mpi", "lab", "built_wheel")

# The same examples on every rank and in every run. A group is made once a test, not once an example: that is meant.
settings.register_profile(
    "ranks",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("ranks")
