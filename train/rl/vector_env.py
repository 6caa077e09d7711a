"""Many trading environments in one: the same trajectories as `train.rl.env`, to the last bit, moved on together.

Gymnasium's mode of starting anew is NEXT_STEP, which is what RLlib's environment runner counts on: the step that ends
an episode returns its last observation, and the step after it, whose action is not looked at, the first of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from policies.engine.rules import price_rows
from policies.engine.stepping import SteppedAccounts
from policies.errors import InvalidInput
from train.rl.env_settings import EnvSettings
from train.rl.market_rows import ALL_TIME, MarketRows, TimeRange
from train.rl.spaces import action_space, observation_space
from train.rl.starts import AHEAD, drawn_ahead

Observations = NDArray[np.float32]
Stepped = tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class VectorTradingEnv(VectorEnv[Observations, NDArray[np.float32], NDArray[Any]]):
    """num_envs accounts over the bars of all symbols; each draws its episodes from a generator of its own.

    rows: standardised alike. start_range: episodes begin and end in it, drawn uniformly from all that do. seed: of the
    first reset, if that is given none; account i draws what a single environment that is reset with seed + i does, and
    with several symbols, from the starts of all, one after another. copy: whether each step returns observations of its
    own; without, the next step overwrites them.

    `accounts` holds the equity and the rest of each account. infos are empty but in steps that end episodes:
    {"final_equity": USD of each account, "_final_equity": where it has ended}.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, rows: Sequence[MarketRows], num_envs: int, settings: EnvSettings | None = None,
                 start_range: TimeRange = ALL_TIME, seed: int | None = None, initial_balance: float = 10_000.0,
                 copy: bool = True) -> None:
        self.settings, self.num_envs = settings or EnvSettings(), num_envs
        self.rows, self._copy, self._seed = list(rows), copy, seed
        self.single_action_space, self.single_observation_space = action_space(), observation_space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._offsets = np.concatenate([[0], np.cumsum([len(one) for one in self.rows])])
        self._starts = self._all_starts(start_range)
        if not len(self._starts):
            raise InvalidInput("start_range", f"a range with {self.settings.episode_bars + 1} bars that follow each "
                               "other and have features", start_range)
        self.accounts = SteppedAccounts(
            np.concatenate([price_rows(one.bars).T for one in self.rows]),
            np.concatenate([one.features for one in self.rows]), num_envs, self.settings.rules(initial_balance))
        self._generators: list[np.random.Generator] = []
        self._ahead, self._used = np.zeros((num_envs, AHEAD), np.int64), np.full(num_envs, AHEAD)
        self._begun = False

    def reset(self, *, seed: int | Sequence[int | None] | None = None,
              options: dict[str, Any] | None = None) -> tuple[Observations, dict[str, Any]]:
        """options: {"start_ms": closes of bars (N,)}, and with several symbols {"symbol": names (N,)}: begins there
        instead of at random, in the start range or not; later episodes are drawn.
        """
        self._seeded(seed)
        first = self._chosen(options) if options else self._drawn(np.arange(self.num_envs))
        self.accounts.begin(first, first + self.settings.episode_bars)
        self._begun = True
        return self._observations(), {}

    def step(self, actions: ArrayLike) -> Stepped:
        accounts = self.accounts
        if not self._begun:
            raise InvalidInput("step", "within an episode: call reset first", "no reset")
        accounts.step(actions)
        terminated, truncated = accounts.terminated.copy(), accounts.truncated.copy()
        infos: dict[str, Any] = {}
        ended = terminated | truncated
        if ended.any():
            infos = {"final_equity": accounts.equity, "_final_equity": ended}
            places = np.flatnonzero(ended)
            first = self._drawn(places)
            accounts.choose(places, first, first + self.settings.episode_bars)
        return self._observations(), accounts.rewards.copy(), terminated, truncated, infos

    def bar_of(self, place: int) -> tuple[MarketRows, int]:
        """The symbol that an account trades and the place of the bar it has last seen in that symbol's bars.

        Right after a step that ended its episode, those of its next episode.
        """
        bar = int(self.accounts.bar[place])
        market = int(np.searchsorted(self._offsets, bar, "right")) - 1
        return self.rows[market], bar - int(self._offsets[market])

    def _all_starts(self, within: TimeRange) -> NDArray[np.int64]:
        """As places in the bars of all symbols."""
        return np.concatenate([one.starts(self.settings.episode_bars, within) + offset
                               for one, offset in zip(self.rows, self._offsets, strict=False)])

    def _seeded(self, seed: int | Sequence[int | None] | None) -> None:
        """Generators anew where there is a seed; else they go on, or begin with the seed of the environment."""
        if seed is None and self._generators:
            return
        first = self._seed if seed is None else seed
        given = list(first) if isinstance(first, Sequence) else [
            None if first is None else first + place for place in range(self.num_envs)]
        if len(given) != self.num_envs:
            raise InvalidInput("seed", f"one, or {self.num_envs}", seed)
        for place, one in enumerate(given):
            if one is not None or not self._generators:
                self._used[place] = AHEAD
        self._generators = [self._generators[place] if one is None and self._generators else np_random(one)[0]
                            for place, one in enumerate(given)]

    def _drawn(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The next start of each of these accounts."""
        for place in places[self._used[places] == AHEAD].tolist():
            self._ahead[place], self._used[place] = drawn_ahead(self._generators[place], self._starts), 0
        first = self._ahead[places, self._used[places]]
        self._used[places] += 1
        return first

    def _chosen(self, options: dict[str, Any]) -> NDArray[np.int64]:
        wrong = InvalidInput("options", f"start_ms ({self.num_envs},), closes of bars after which a whole episode "
                             "lies, and with several symbols their names", options)
        names = options.get("symbol", [self.rows[0].symbol] * self.num_envs)
        by_name = {one.symbol: number for number, one in enumerate(self.rows)}
        times = np.broadcast_to(np.asarray(options.get("start_ms", -1), np.int64), self.num_envs)
        if set(options) - {"start_ms", "symbol"} or len(names) != self.num_envs or not by_name.keys() >= set(names):
            raise wrong
        first = []
        for name, time_ms in zip(names, times, strict=True):
            one, offset = self.rows[by_name[name]], self._offsets[by_name[name]]
            starts = one.starts(self.settings.episode_bars)
            place = int(np.searchsorted(one.bars.close_time_ms[starts], time_ms))
            if place == len(starts) or one.bars.close_time_ms[starts[place]] != time_ms:
                raise wrong
            first.append(int(starts[place] + offset))
        return np.array(first)

    def _observations(self) -> Observations:
        return self.accounts.observations.copy() if self._copy else self.accounts.observations
