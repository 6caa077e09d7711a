"""The job: signals, one search per strategy, the judgement by bucket, and the start that the hub takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from feature_repo.features import DECISION_V1
from feature_repo.market import Market
from feature_repo.store import FeatureRepo
from policies.errors import InvalidInput
from router.param_start import BUCKETS, ParamStart
from train.bo.entries import SymbolSignals, keep_signals, load_signals, signals_of
from train.bo.judged import Judged, judge, start_of
from train.bo.search import Problem, Search, searched
from train.bo.settings import BoSettings
from train.joined import Joined
from train.locked import locked
from train.pool import Job, Pool
from train.steps import Steps, key_of
from train.sweep import search
from train.tracking import code_version
from train.training_set import bars_until

SIGNALS = "signals"
Told = Callable[[str, int, int], None]  # (step, how many are done, of how many)


@dataclass(frozen=True)
class Optimised:
    """What a job came to. rows: by strategy and bucket, those with too few signals left out. failed: {step: reason}.

    searched_ms, later_ms: [from, until) of the bars that were searched and that it is judged on.
    """

    key: str
    settings: BoSettings
    rows: tuple[Judged, ...]
    start: ParamStart
    searched_ms: tuple[int, int]
    later_ms: tuple[int, int]
    failed: Mapping[str, str]


class Optimising:
    """One job. until_ms: no bar that closes later is seen; None: all bars. home: HUB_HOME. at_once: searches.

    search: what runs the trials of one search. told: hears of every step that is done.
    """

    def __init__(self, market: Market, repo: FeatureRepo, home: Path, settings: BoSettings, until_ms: int | None,
                 pool: Pool, at_once: int = 2, search: Search = search,
                 told: Told = lambda step, done, of: None) -> None:
        self._settings, self._pool = settings, pool
        self._at_once, self._search, self._told = at_once, search, told
        self._bars = bars_until(market, settings.symbols, until_ms, settings.lookback_bars)
        self._joined = Joined(market, repo, self._bars)
        code = code_version()
        self.key = key_of(asdict(settings), code, market.origin, self._joined.digest)
        self._steps = Steps(home.resolve() / "bo" / self.key)  # workers have working folders of their own
        self._made = {"market": market.describe(), "symbols": list(settings.symbols), "code_version": code,
                      "job": self.key, "seed": settings.seed, "trials": settings.trials}

    @cached_property
    def spans_ms(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """[from, until) of the bars that are searched, and of those that are judged on."""
        first = min(int(run.open_time_ms[0]) for run in self._bars.values())
        last = max(int(run.close_time_ms[-1]) for run in self._bars.values())
        interval_ms = next(iter(self._bars.values())).interval_ms
        split = last - round(self._settings.judged_share * (last - first)) // interval_ms * interval_ms
        return (first, split), (split, last + 1)

    def run(self) -> Optimised:
        """UnderWay if another process is at the same job."""
        with locked(self._steps.folder / "lock", f"the same search for levels, {self.key},"):
            return self._run()

    def _run(self) -> Optimised:
        problems = {f"search.{one.strategy}": one for one in self._problems()}
        failed = self._searched(problems)
        rows = [row for name, problem in problems.items() if self._steps.has(name)
                for row in judge(problem, self._steps.result(name)["trials"], self.spans_ms[1])]
        if not rows:
            why = next(iter(failed.values()), f"no bucket has {self._settings.least_trades} signals")
            raise InvalidInput("LOOKBACK", "bars with something to search on", self._settings.lookback_bars, why)
        made = {**self._made, "searched_from_ms": self.spans_ms[0][0], "searched_until_ms": self.spans_ms[0][1]}
        return Optimised(self.key, self._settings, tuple(rows), start_of(rows, made), *self.spans_ms, failed)

    def _problems(self) -> Iterator[Problem]:
        """One for each strategy that has a bucket with enough signals on the searched bars."""
        signals, span_ms = self._signals(), self.spans_ms[0]
        for strategy in self._settings.strategies:
            counts = {bucket: sum(len(one.entries(strategy, bucket, *span_ms)[0]) for one in signals.values())
                      for bucket in BUCKETS}
            enough = {bucket: count for bucket, count in counts.items() if count >= self._settings.least_trades}
            if enough:
                yield Problem(self._steps.folder, SIGNALS, strategy, enough, span_ms, self._settings)

    def _signals(self) -> dict[str, SymbolSignals]:
        if not self._steps.has(SIGNALS):
            rows = self._joined.rows
            keep_signals(self._steps, SIGNALS, {symbol: signals_of(self._bars[symbol], rows[symbol], DECISION_V1.names)
                                                for symbol in self._settings.symbols})
        self._told(SIGNALS, 0, 1)
        return load_signals(self._steps.folder, SIGNALS)

    def _searched(self, problems: Mapping[str, Problem]) -> dict[str, str]:
        """{search: why it failed}. A few at a time: each is a driver of Tune's in a process of its own."""
        left = iter([name for name in problems if not self._steps.has(name)])
        failed: dict[str, str] = {}
        done = sum(self._steps.has(name) for name in problems)
        while batch := list(islice(left, self._at_once)):
            jobs: dict[str, Job] = {name: (searched, (problems[name], self._steps.under_way(name), self._search))
                                    for name in batch}
            for name, result in self._pool.each(jobs, waits=True):
                done += 1
                if isinstance(result, Exception):
                    failed[name] = f"{type(result).__name__}: {result}"[:1_000]
                else:
                    self._steps.keep(name, {"trials": result})
                self._told(name, done, len(problems))
        return failed

