"""What a night is asked for, and its plan made of that: the one table of steps and their commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from feature_repo.drift import DAY_MS
from feature_repo.windows import WINDOW_BARS
from policies.errors import InvalidInput
from train.bo.settings import BoSettings
from train.nightly.plan import FOLDER_OF, OUT, Plan, Step
from train.rl.settings import ALGOS, RlSettings

RL = ("auto", "yes", "no")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PYTHON = (sys.executable, "-W", "ignore::DeprecationWarning", "-m")


@dataclass(frozen=True)
class NightSettings:
    """rl: auto is once a week, on rl_weekday (0 is Monday, UTC). lookback_bars, window_bars: of each symbol. trials: of
    each supervised sweep; bo_trials: of each search for levels. steps: of each reinforcement learner. signal,
    generated_bars, seed: of a generated market. least_profit_factor: of a forward test. heads: "" is all.

    What a job of the night would refuse is refused here, InvalidInput with the word, before the night begins.
    """

    symbols: tuple[str, ...]
    market: str = "auto"
    data_dir: str | None = None
    lookback_bars: Annotated[int, Ge(3_000), Le(1_000_000)] = 25_200
    window_bars: Annotated[int, Ge(10), Le(WINDOW_BARS)] = 60
    heads: str = ""
    trials: Annotated[int, Ge(1), Le(1_000)] = 4
    folds: Annotated[int, Ge(1), Le(50)] = 2
    bo_trials: Annotated[int, Ge(1), Le(1_000)] = 40
    rl: Literal["auto", "yes", "no"] = "auto"
    rl_weekday: Annotated[int, Ge(0), Le(6)] = 6
    algorithms: tuple[str, ...] = ALGOS
    steps: Annotated[int, Ge(1_000), Le(10**9)] = 200_000
    size: str = "small"
    least_profit_factor: Annotated[float, Ge(0), Le(1_000)] = 0.0
    hub_url: str = "http://127.0.0.1:8000"
    seed: int = 7
    signal: float = 1.0
    generated_bars: int = 43_200

    def __post_init__(self) -> None:
        if not self.symbols or len(set(self.symbols)) != len(self.symbols) or not all(self.symbols):
            raise InvalidInput("COINS", "different symbols, at least one", self.symbols)
        if self.rl not in RL:
            raise InvalidInput("RL", f"one of {', '.join(RL)}", self.rl)
        if not self.algorithms or len(set(self.algorithms)) != len(self.algorithms):
            raise InvalidInput("ALGO", f"different ones of {', '.join(ALGOS)}, at least one", self.algorithms)
        for name, value, low, high in (("rl-weekday", self.rl_weekday, 0, 6), ("BO_TRIALS", self.bo_trials, 1, 1_000),
                                       ("min-pf", self.least_profit_factor, 0, 1_000)):
            if not low <= value <= high:
                raise InvalidInput(name, f"{low} to {high:g}", value)
        self._require_jobs()

    def _require_jobs(self) -> None:
        """Refuse now, by their own settings, what the jobs of the night would refuse hours later."""
        from train.retrain_settings import HEADS, RetrainSettings  # with every learner behind it

        RetrainSettings(self.symbols, self.window_bars, self.lookback_bars,
                        tuple(self.heads.split(",")) if self.heads else HEADS, self.trials, 1, self.folds, self.size,
                        self.seed)
        BoSettings(self.symbols, self.lookback_bars, self.bo_trials, self.seed)
        for algorithm in self.algorithms if self.rl != "no" else ():
            RlSettings(self.symbols, algorithm, self.steps, self.lookback_bars, self.size, self.seed)


def no_rl_because(settings: NightSettings, now_ms: int) -> str:
    """Why there is no reinforcement learning this night; "" if there is. now_ms: of the market's clock."""
    if settings.rl == "no":
        return "not asked for"
    today = datetime.fromtimestamp(now_ms / 1_000, UTC).weekday()
    if settings.rl == "auto" and today != settings.rl_weekday:
        return f"weekly, on {DAYS[settings.rl_weekday]}; tonight is {DAYS[today]}"
    return ""


def night_plan(home: Path, settings: NightSettings, now_ms: int) -> Plan:
    """The table. now_ms: of the market's clock."""
    from train.retrain_settings import HEADS  # with every learner behind it

    base = ("--home", str(home))
    market = (*base, "--coins", ",".join(settings.symbols), "--market", settings.market,
              *_given("--data-dir", settings.data_dir), "--seed", str(settings.seed), "--signal", str(settings.signal),
              "--generated-bars", str(settings.generated_bars))
    job = (*market, "--lookback", str(settings.lookback_bars), "--hub-url", settings.hub_url)
    midnight_ms = now_ms // DAY_MS * DAY_MS  # so that a night that is gone on with has the same steps
    no_rl = no_rl_because(settings, now_ms)
    learners = [Step(f"rl.{algorithm}", (
        *PYTHON, "train.rl.retrain_rl", *job, "--keep-back", "--algo", algorithm, "--steps", str(settings.steps),
        "--size", settings.size), ("features",), makes=(f"models/candidate_{algorithm}.pt",), skipped=no_rl)
        for algorithm in settings.algorithms]
    makers = ("supervised", *(step.name for step in learners))
    made = tuple(part for name in makers for part in ("--made", FOLDER_OF % name))
    return Plan((
        Step("features", (str(Path(sys.executable).with_name("hub")), *base, "features",
                          *_given("--data-dir", settings.data_dir), "--symbols", ",".join(settings.symbols)),
             environment=hub_market(settings)),
        Step("drift", (*PYTHON, "train.nightly.drift_step", *market, "--until", str(midnight_ms), "--out", OUT),
             ("features",)),
        Step("supervised", (
            *PYTHON, "train.retrain_sup", *job, "--keep-back", "--window", str(settings.window_bars),
            *_given("--heads", settings.heads), "--trials", str(settings.trials), "--folds", str(settings.folds),
            "--size", settings.size), ("features",), makes=(*(f"models/candidate_{head}.pt" for head in HEADS),
                                                             "models/embedder.pt")),
        *learners,
        Step("bo", (*PYTHON, "train.bo.optimise", *job, "--keep-back", "--trials", str(settings.bo_trials)),
             ("features",), makes=("models/param_start.json",)),
        Step("forward", (*PYTHON, "train.nightly.forward_step", *market, *made, "--out", OUT, "--min-pf",
                         str(settings.least_profit_factor)), needs_one_of=makers),
        Step("register", (*PYTHON, "train.nightly.register_step", *base, "--hub-url", settings.hub_url,
                          "--forward", FOLDER_OF % "forward", *made, "--out", OUT), ("forward",)),
        Step("param_start", (*PYTHON, "train.nightly.param_start_step", *base, "--hub-url", settings.hub_url,
                             "--made", FOLDER_OF % "bo", "--out", OUT), ("bo",))))


def hub_market(settings: NightSettings) -> Mapping[str, str]:
    """The hub's own commands take the market from the hub's configuration; what was asked for here overrides it."""
    if settings.market == "auto":
        return {}
    found = {"HUB_MARKET__KIND": settings.market}
    if settings.market == "generated":
        found |= {"HUB_MARKET__SEED": str(settings.seed), "HUB_MARKET__SIGNAL": str(settings.signal),
                  "HUB_MARKET__GENERATED_BARS": str(settings.generated_bars)}
    return found


def _given(option: str, value: str | None) -> tuple[str, ...]:
    return (option, value) if value else ()
