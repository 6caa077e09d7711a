"""Does the judgement of trained heads let worthless ones through, and does it see those with an edge?

    python -m ci.experiments.judgement_power --seeds 400 --home var

Simulated trades, no training. Moves of three symbols with correlation 0.8, three times per block of four hours; a head
is long, short or away with all of them at once, so its trades win and lose together. Trials of one sweep are alike:
each follows a direction that all share, and now and then its own. The head that is judged is the best of its trials by
the Sharpe ratio on the very blocks it is judged on, which is worse than what training does (it chooses on earlier
ones). Before costs a direction without an edge earns exactly 0 on average, whatever the shape of the trades:

normal   normal moves
heavy    Student t with 3 degrees of freedom, not cut anywhere: a fourth moment does not exist
bursts   normal moves whose size wanders over days, e-fold and more
near     targets near, stops far: five of six trades win a little, one loses five times as much

An edge is planted as a direction that is right more often than not, such that the true profit factor is 1.2, 1.5 or 2.
The peer is who believes a profit factor of 1.5 on the same trades.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.signal import lfilter
from scipy.stats import norm

from ci.experiments.zero_edge import clopper_pearson
from policies.keyed_random import generator
from reports.report import BenchRow, Plot, write_report
from train.intervals import BlockGrid, BootstrapSettings, Track
from train.judgement import Judgement, JudgementSettings, Taken, judge, passes
from train.overfitting import sharpe_ratios

Floats = NDArray[np.float64]
BLOCK_MS, BLOCKS_A_DAY, SLOTS_A_BLOCK = 14_400_000, 6, 3
SYMBOLS, CORRELATION = 3, 0.8
TRADES_SHARE = 0.7  # of slots in which a head trades
RISK = 0.002  # net return over equity of a trade that moves by one
SHARED = 0.8  # of a trial's directions that are those of all
BURST_MEMORY, BURST_SPREAD = 0.95, 0.8
WIN_SHARE, NEAR_TARGET, FAR_STOP = 5 / 6, 0.4, 2.0
PEER_PROFIT_FACTOR, AIM = 1.5, 0.05
SETTINGS = JudgementSettings(bootstrap=BootstrapSettings(resamples=1_000))
SHAPES = ("normal", "heavy", "bursts", "near")
CALIBRATION_DRAWS = 1_000_000
DAYS, TRIALS, EDGES = (6, 30, 90), (1, 20, 200), (1.2, 1.5, 2.0)


@dataclass(frozen=True)
class Case:
    """profit_factor: true one of each trial that has the edge, 1 for none. with_edge: how many of the trials have it.
    shared: of the directions. baseline: true profit factor of the baseline.
    """

    shape: str
    days: int
    trials: int
    profit_factor: float = 1.0
    with_edge: int | None = None
    shared: float = SHARED
    baseline: float = 1.0

    @property
    def name(self) -> str:
        told = [f"true PF {self.profit_factor:g}" if self.profit_factor != 1 else "zero edge", self.shape,
                f"{self.days} days", f"{self.trials} trials"]
        told += [f"{self.with_edge} of them with the edge"] if self.with_edge is not None else []
        told += [f"{self.shared:.0%} of directions shared"] if self.shared != SHARED else []
        told += [f"baseline as good ({self.baseline:g})"] if self.baseline != 1 else []
        return ", ".join(told)

    @property
    def worthless(self) -> bool:
        """Whether nobody should pass: no edge, or none beyond the baseline's."""
        return self.profit_factor <= self.baseline


NULLS = (*(Case(shape, days, trials) for shape in SHAPES for days in DAYS for trials in TRIALS),
         *(Case("heavy", 30, 20, shared=shared) for shared in (0.0, 0.95)), Case("normal", 6, 2), Case("normal", 30, 5),
         Case("normal", 90, 1, 1.5, baseline=1.5), Case("normal", 90, 20, 1.5, baseline=1.5))
PLANTED = (*(Case("heavy", days, trials, edge) for edge in EDGES for days in DAYS for trials in TRIALS),
           *(Case("heavy", days, 20, 1.5, with_edge=1) for days in DAYS))


@dataclass(frozen=True)
class Seen:
    """What became of one simulated sweep. met: the single demands by name."""

    passed: bool
    peer: bool
    met: dict[str, bool]


@dataclass(frozen=True)
class Market:
    """latent: (slots, SYMBOLS) moves with scale 1. common: (slots,) the part that the symbols share."""

    shape: str
    latent: Floats
    common: Floats

    def earned(self, sign: int) -> Floats:
        """(slots, SYMBOLS) move of a trade in that direction."""
        moved = sign * self.latent
        if self.shape != "near":
            return moved
        return np.where(moved > norm.ppf(1 - WIN_SHARE), NEAR_TARGET, -FAR_STOP)


def market(shape: str, slots: int, rng: np.random.Generator) -> Market:
    def draw(*size: int) -> Floats:
        return rng.standard_t(3, size) / np.sqrt(3) if shape == "heavy" else rng.standard_normal(size)

    common = draw(slots)
    size = bursts(slots, rng) if shape == "bursts" else np.ones(slots)
    latent = np.sqrt(CORRELATION) * common[:, None] + np.sqrt(1 - CORRELATION) * draw(slots, SYMBOLS)
    return Market(shape, size[:, None] * latent, size * common)


def bursts(slots: int, rng: np.random.Generator) -> Floats:
    """(slots,) sizes of moves: the logarithm is an autoregression from block to block, with spread BURST_SPREAD."""
    blocks = -(-slots // SLOTS_A_BLOCK)
    shocks = BURST_SPREAD * np.sqrt(1 - BURST_MEMORY**2) * rng.standard_normal(blocks)
    return np.repeat(np.exp(lfilter([1.0], [1.0, -BURST_MEMORY], shocks)), SLOTS_A_BLOCK)[:slots]


def right_share(shape: str, profit_factor: float) -> float:
    """How often a direction must be that of the common move for this profit factor; 1/2 for a profit factor of 1.

    Gains and losses of right and wrong directions are means over CALIBRATION_DRAWS moves.
    """
    if profit_factor == 1:
        return 0.5
    drawn = market(shape, CALIBRATION_DRAWS, generator(0, "calibration", shape))
    up, earned = (drawn.common > 0)[:, None], {sign: drawn.earned(sign) for sign in (1, -1)}
    right, wrong = np.where(up, earned[1], earned[-1]), np.where(up, earned[-1], earned[1])
    (gain_r, gain_w), (loss_r, loss_w) = ([float((side * part).clip(min=0).mean()) for part in (right, wrong)]
                                          for side in (1, -1))
    return (profit_factor * loss_w - gain_w) / (gain_r - gain_w - profit_factor * (loss_r - loss_w))


def directions(truth: NDArray[np.int64], share: float, heads: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(heads, slots) +1 or -1, that of `truth` (slots,) with probability `share`."""
    return np.where(rng.random((heads, len(truth))) < share, truth, -truth)


def sweep(case: Case, right: float, drawn: Market, rng: np.random.Generator) -> NDArray[np.int64]:
    """(trials, slots) +1, -1 or 0 of every trial."""
    truth = np.where(drawn.common > 0, 1, -1)
    shares = np.full(case.trials, right)
    if case.with_edge is not None:
        shares[case.with_edge:] = 0.5
    made = np.empty((case.trials, len(truth)), dtype=np.int64)
    for share in np.unique(shares):
        alike = np.flatnonzero(shares == share)
        family, own = directions(truth, share, 1, rng), directions(truth, share, len(alike), rng)
        made[alike] = np.where(rng.random(own.shape) < case.shared, family, own)
    return np.where(rng.random(made.shape) < TRADES_SHARE, made, 0)


def simulated(case: Case, seed: int, right: float, baseline_right: float) -> Seen:
    rng = generator(seed, "judgement_power", case.name)
    blocks = case.days * BLOCKS_A_DAY
    drawn = market(case.shape, blocks * SLOTS_A_BLOCK, rng)
    made = sweep(case, right, drawn, rng)
    base = sweep(replace(case, trials=1, with_edge=None), baseline_right, drawn, rng)[0]
    long, short = (RISK * drawn.earned(sign).sum(axis=1) for sign in (1, -1))
    by_slot = np.where(made > 0, long, np.where(made < 0, short, 0.0))
    performance = by_slot.reshape(case.trials, blocks, SLOTS_A_BLOCK).sum(axis=2).T
    sharpes = sharpe_ratios(performance)
    head = track(drawn, made[int(np.nanargmax(sharpes))], blocks)
    taken = Taken(case.trials, sharpes, performance)
    judged = judge(head, track(drawn, base, blocks), taken, (seed,), 2, rng, SETTINGS)
    return Seen(passes(judged, SETTINGS)[0], head.profit_factor >= PEER_PROFIT_FACTOR, demands_met(judged))


def track(drawn: Market, made: NDArray[np.int64], blocks: int) -> Track:
    """The trades of one head, slot by slot."""
    traded = np.flatnonzero(made)
    earned = np.where(made[traded, None] > 0, drawn.earned(1)[traded], drawn.earned(-1)[traded])
    grid = BlockGrid(0, blocks * BLOCK_MS, BLOCK_MS)
    return Track(grid, np.repeat(traded // SLOTS_A_BLOCK, SYMBOLS), RISK * earned.ravel())


def demands_met(judged: Judgement) -> dict[str, bool]:
    """Each figure against its demand alone."""
    demands = {"undeflated Sharpe": judged.probabilistic_sharpe >= SETTINGS.least_deflated_sharpe,
               "deflated Sharpe": judged.deflated_sharpe >= SETTINGS.least_deflated_sharpe,
               "by effective trials": judged.deflated_sharpe_effective >= SETTINGS.least_deflated_sharpe,
               "PF interval": judged.head.profit_factor_interval.low > 1}
    if judged.overfitting is not None and judged.loss_probability is not None:
        demands["PBO"] = judged.overfitting <= SETTINGS.most_overfitting
        demands["loss probability"] = judged.loss_probability <= SETTINGS.most_loss_probability
    if judged.difference_interval is not None:
        demands["beats baseline, not deflated"] = judged.difference_interval.low > 0
    demands["all but the baseline"] = passes(without_baseline(judged), SETTINGS)[0]
    return demands


def without_baseline(judged: Judgement) -> Judgement:
    return replace(judged, baseline=None, difference=None, difference_interval=None, difference_deflated_sharpe=None)


def row_of(case: Case, seeds: Sequence[int]) -> BenchRow:
    """Shares of sweeps whose best head passes, and of those that the peer believes. An aim for worthless heads only."""
    right, baseline_right = right_share(case.shape, case.profit_factor), right_share(case.shape, case.baseline)
    seen = [simulated(case, seed, right, baseline_right) for seed in seeds]
    hits, of = sum(one.passed for one in seen), len(seen)
    peer = sum(one.peer for one in seen) / of
    detail: dict[str, Any] = {"sweeps": of, "passed": hits, "interval_95": list(clopper_pearson(hits, of)),
                              **{f"share with {name}": sum(one.met[name] for one in seen) / of for name in seen[0].met}}
    share, believed = hits / of, f"believed at PF >= {PEER_PROFIT_FACTOR:g}"
    work = f"judgement: {case.name}"
    if not case.worthless:
        return BenchRow(work, share, "share of heads", believed, peer, None, None, None, "-", None, detail=detail)
    return BenchRow(work, share, "share of heads", believed, peer, AIM, peer / share if hits else None, share / AIM,
                    f"<= {AIM:.0%}", share <= AIM, detail=detail)


def plots_of(rows: dict[Case, BenchRow]) -> list[Plot]:
    """How often an edge is seen, by the length of the track."""
    plots = []
    for trials in TRIALS:
        lines = {f"PF {edge:g}": [(float(days), rows[case].figure or 0.0) for days in DAYS
                                  if (case := Case("heavy", days, trials, edge)) in rows] for edge in EDGES}
        if all(lines.values()):
            plots.append(Plot(f"Share of heads seen, best of {trials}", "days of test", "share", lines))
    return plots


def show(console: Console, rows: Sequence[BenchRow]) -> None:
    table = Table("case", "passed", "95 %", "peer", "without baseline", "Sharpe alone", "deflated alone", "PBO alone",
                  "loss alone", "met")
    for row in rows:
        low, high = row.detail["interval_95"]
        alone = (row.detail.get(f"share with {name}") for name in (
            "all but the baseline", "undeflated Sharpe", "deflated Sharpe", "PBO", "loss probability"))
        table.add_row(row.work.removeprefix("judgement: "), f"{row.figure:.1%}", f"{low:.1%} - {high:.1%}",
                      f"{row.peer_figure:.1%}", *("-" if share is None else f"{share:.1%}" for share in alone),
                      {True: "yes", False: "NO", None: "-"}[row.met])
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Simulate all cases, print them, write the report; 0 if every aim is met."""
    parser = argparse.ArgumentParser(description="How often the judgement passes worthless heads, and sees an edge")
    parser.add_argument("--seeds", type=int, default=400, help="sweeps of each case")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--home", type=Path, default=Path("var"), help="the report goes to HOME/reports")
    options = parser.parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    cases = [case for case in (*NULLS, *PLANTED) if options.only in case.name]
    rows = {}
    for case in cases:
        rows[case] = row_of(case, range(options.seeds))
        console.print(f"{case.name}: {rows[case].figure:.1%}")
    content = {"seeds": options.seeds, "settings": asdict(SETTINGS), "how it is measured": __doc__}
    page = write_report(options.home / "reports", "judgement_power", content, plots_of(rows), list(rows.values()))
    show(console, list(rows.values()))
    console.print(f"report: {page}")
    return 0 if all(row.met is not False for row in rows.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
