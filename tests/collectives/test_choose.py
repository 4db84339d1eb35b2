"""Choosing an algorithm: tables of costs, how they are fitted, and that all ranks choose alike."""

from typing import Any

import numpy as np
import pytest
from two_hosts import as_hosts

from hpcvol.collectives import Table, allreduce, check_algorithm, choose, measure, staged, table_of, use_table
from hpcvol.collectives.algorithms import CANDIDATES, ON_NODE
from hpcvol.collectives.choose import Chooser, levels_of
from hpcvol.collectives.table import Cost, Level, Measurement, fit
from hpcvol.comm import Group
from hpcvol.errors import ConfigError


def table_that_prefers(name: str) -> Table:
    costs = {other: Cost(1e-6, 1e-9) if other == name else Cost(1e-3, 1e-6) for other in CANDIDATES}
    within = {measure.BY_MESSAGES: Cost(1e-6, 1e-9)}
    return Table({"node": costs, "within": within, "between": costs, "all": costs})


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's table is gone afterwards."""
    monkeypatch.setattr(choose, "_own", Table({}))


def names(chooser: Chooser, nbytes: int) -> list[str]:
    """Ways of combining so many bytes, the cheapest first."""
    costs = chooser.costs(nbytes, np.dtype(np.float32))
    return sorted(costs, key=lambda name: costs[name][0])


def test_a_fit_finds_what_the_measurements_were_made_of() -> None:
    truth = Cost(20e-6, 1e-9)
    rows = [Measurement(6, 1.5 * n, truth.seconds(6, 1.5 * n)) for n in (1e3, 1e4, 1e5, 1e6)]
    found = fit(rows)
    assert found.alpha == pytest.approx(truth.alpha)
    assert found.beta == pytest.approx(truth.beta)


def test_a_fit_is_not_led_astray_by_one_measurement() -> None:
    truth = Cost(20e-6, 1e-9)
    random = np.random.default_rng(0)
    rows = [
        Measurement(2, n, truth.seconds(2, n) * random.uniform(0.95, 1.05) * (10 if i == 3 else 1))
        for i, n in enumerate(4.0 ** np.arange(5, 12))
    ]
    found = fit(rows)
    assert found.alpha == pytest.approx(truth.alpha, rel=0.3)
    assert found.beta == pytest.approx(truth.beta, rel=0.3)


@pytest.mark.parametrize("seconds", [[1e-6, 1e-3], [1e-3, 1e-6], [1e-3, 1e-3]])
def test_no_cost_is_negative(seconds: list[float]) -> None:
    found = fit([Measurement(2, n, s) for n, s in zip((1e3, 1e4), seconds, strict=True)])
    assert found.alpha >= 0
    assert found.beta >= 0
    assert found.alpha + found.beta > 0


def test_a_table_comes_back_from_json_to_the_same_numbers() -> None:
    table = Table({"node": {"ring": Cost(1 / 3 * 1e-6, 0.1)}, "between": {"library": Cost(0.0, 1e-300)}})
    assert Table.from_json(table.to_json()) == table


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "costs": {}}',
        '{"format": 1, "costs": {"node": {"ring": {"alpha": -1, "beta": 0}}}}',
    ],
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"table|format|Expecting|alpha"):
        Table.from_json(text)


def test_levels_follow_from_the_layout() -> None:
    assert levels_of(1, 1) == ()
    assert levels_of(1, 4) == ("node",)
    assert levels_of(3, 1) == ("between",)
    assert levels_of(3, 4) == ("within", "between", "all")


def test_measuring_gives_every_algorithm_a_cost(group: Group) -> None:
    with as_hosts(group, [0, 0, 1, 1][: group.size]) as spread:
        table = table_of(spread)
        nodes = 1 + (group.size > 2)
        assert set(table.costs) == set(levels_of(nodes, min(group.size, 2)))
        for level, costs in table.costs.items():
            assert set(costs) == ({measure.BY_MESSAGES} if level == "within" else set(CANDIDATES))
        assert len(set(group.gather_objects(table.to_json()))) == 1


def test_all_ranks_use_the_table_of_rank_0(group: Group) -> None:
    """Every rank believes in another algorithm: if each went its own way, they would hang or end with other bits."""
    favourites = list(CANDIDATES)
    use_table(table_that_prefers(favourites[group.rank]))
    for layout in ([0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3]):
        with as_hosts(group, layout[: group.size]) as spread:
            for numel in (1, 1000, 100_000):
                vector = np.full(numel, 1.0)
                allreduce(spread, vector)
                assert (vector == group.size).all()
            assert table_of(spread) == table_that_prefers(favourites[0])


def test_only_what_is_missing_is_measured(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Level] = []

    def count(_: Group, level: Level) -> Any:
        timed.append(level)
        return table_that_prefers("library").costs[level]

    monkeypatch.setattr(choose, "measure_level", count)
    known = table_that_prefers("ring")
    if group.rank == 0:
        use_table(Table({level: known.costs[level] for level in ("node", "within")}))
    with as_hosts(group, [0, 0, 1, 1][: group.size]) as spread:
        first = table_of(spread)
        assert timed == (["between", "all"] if group.size > 2 else [])
    assert first.costs["node"] == known.costs["node"]
    if group.size > 2:
        with as_hosts(group, [0, 1, 1, 0][: group.size]) as again:  # members changed: nothing is measured again
            assert table_of(again) == first
            assert len(timed) == 2


def test_short_vectors_take_few_messages_and_long_ones_little_traffic(group: Group) -> None:
    same = Table({"node": dict.fromkeys(sorted(set(CANDIDATES) - {"library"}), Cost(1e-5, 1e-9))})
    if group.size == 4:
        chooser = Chooser(group, same)
        assert names(chooser, 8)[0] == "recursive_doubling"
        assert names(chooser, 100_000_000)[0] in ("halving_doubling", "ring")


def test_between_nodes_carriers_share_the_work(group: Group) -> None:
    costs = {name: Cost(1e-4, 1e-8) for name in CANDIDATES}
    table = Table({"within": {measure.BY_MESSAGES: Cost(1e-6, 1e-10)}, "between": costs, "all": costs})
    if group.size == 4:
        with as_hosts(group, [0, 0, 1, 1]) as spread:
            assert names(Chooser(spread, table), 10_000_000)[0].startswith("hierarchical")


def test_ranks_that_share_memory_use_it_and_measure_nothing(group: Group) -> None:
    assert table_of(group) == Table({})
    assert choose.choose(group, np.zeros(9), "auto") is staged.allreduce


@pytest.mark.parametrize("algorithm", ON_NODE)
def test_what_needs_one_node_is_refused_on_two(group: Group, algorithm: Any) -> None:
    with as_hosts(group, [0, 0, 1, 1][: group.size]) as spread:
        with pytest.raises(ConfigError, match=f"'{algorithm}' needs all members on one host, .*host0.* do not have"):
            check_algorithm(spread, algorithm)
        with pytest.raises(ConfigError, match=algorithm):
            allreduce(spread, np.zeros(3), algorithm=algorithm)


def test_half_types_do_not_go_to_the_library(group: Group) -> None:
    if group.size > 1:
        chooser = Chooser(group, table_that_prefers("library"))
        assert names(chooser, 8)[0] == "library"
        assert "library" not in chooser.costs(8, np.dtype(np.float16))
