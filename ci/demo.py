"""`make demo`: the whole hub on one market, from training to what it learnt, in minutes, with a table at the end.

Heads are trained on the first part of the market; the paper bot then replays later bars over HTTP, none of which was
seen in training. On recorded bars (HUB_DATA_DIR) profit factors are what they are. `--market generated` goes on until
the ladder has had the trades it needs: the planted signal is learnt, the trained head climbs to production and the bad
one loses its traffic. With `--signal 0` nobody has an edge, and routing is simulated over many seeds instead.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import httpx
from rich.console import Console
from rich.table import Table

from hub import engine
from hub.cli import heads_table
from hub.client import HubClient
from hub.config import HubConfig, home_of, load
from hub.home import Home
from hub.llm_stub import LlmStub, LlmStubSettings
from hub.paper_bot import BotReport, PaperBot
from policies.errors import HubError
from policies.free_ports import free_port
from policies.types import Rollout
from reports.report import Plot, write_report

if TYPE_CHECKING:
    from hub.up import Running

SEED = 11
CHUNK_BARS = 100
MINUTE_MS = 60_000
# The LLM's stand-in always has a direction and asks for no less risk than a head would, so that what is traded, and
# what comes of it, is the heads' doing; it never trades by itself.
LLM = LlmStubSettings(flat_below=0.0, trades=False, leverage=20.0, size_fraction=0.05)


@dataclass(frozen=True)
class DemoPlan:
    """symbols, strategies: the slots. bars: at most that many, of each symbol. until_settled: stop when the trained
    head is production by its own merit and the baseline has lost its traffic.
    """

    symbols: tuple[str, ...]
    strategies: tuple[str, ...]
    bars: int
    until_settled: bool


PLANS = {
    "files": DemoPlan(("BTC", "SOL"), ("momentum", "scalping", "breakout"), 2_100, False),
    "generated": DemoPlan(("BTC", "ETH", "SOL", "HYPE"), ("sniping",), 12_000, True),
}


@dataclass(frozen=True)
class Moment:
    """Where the heads stood after so many bars: what the plots and the milestones are made of."""

    bars: int
    equity: float
    heads: Mapping[str, Mapping[str, Any]]  # by alias


class Demo:
    def __init__(self, hub: Running, plan: DemoPlan, say: Any) -> None:
        self._hub, self._plan, self._say = hub, plan, say
        tokens = hub.home.tokens()
        self._http = httpx.Client(base_url=hub.url, timeout=30.0, headers={"Authorization": f"Bearer {tokens['ops']}"})
        self._bot_token = tokens["bot"]
        self.moments: list[Moment] = []

    def replay(self) -> BotReport:
        """Chunks of bars through one bot, so that progress can be told and the end be seen."""
        hub, plan = self._hub, self._plan
        assert hub.split_ms is not None
        assert hub.stop_ms is not None
        market = hub.choice.open()
        bars = {symbol: market.bars(symbol) for symbol in plan.symbols}
        with HubClient(hub.url, self._bot_token, hub.home.root / "bot_outbox.sqlite", timeout_s=1.0) as client:
            bot = PaperBot(client, bars, plan.strategies, LlmStub(SEED, LLM), concurrency=6, run_id="demo")
            first = hub.split_ms + MINUTE_MS
            for done in range(0, plan.bars, CHUNK_BARS):
                start = first + done * MINUTE_MS
                stop = min(start + CHUNK_BARS * MINUTE_MS, hub.stop_ms)
                report = bot.run(start, stop)
                if stop == hub.stop_ms or (self._note(report) and plan.until_settled):
                    break
        return report

    def _note(self, report: BotReport) -> bool:
        """Say what has changed; True once the trained head has climbed and the baseline is out."""
        heads = {head["alias"]: head for head in self._get("/v1/status")["heads"]}
        before = self.moments[-1].heads if self.moments else {}
        bars = report.bars
        self.moments.append(Moment(bars, report.equity, heads))
        for alias, head in heads.items():
            known = before.get(alias, {"role": "challenger", "green_lit": False})
            if (head["role"], head["green_lit"]) != (known["role"], known["green_lit"]) or not before:
                green = ", green-lit" if head["green_lit"] else ""
                reason = f" by {head['rule']} {head['figure']:.2f}" if head["figure"] is not None else ""
                self._say(f"bar {bars}: {alias} is {head['role']}{green} at {head['share']:.0%}{reason}, "
                          f"{head['lifetime']['trades']} trades")
        if bars % (5 * CHUNK_BARS) == 0:
            self._say(f"bar {bars} of at most {self._plan.bars}: {report.decisions} decisions, "
                      f"{report.decisions / report.wall_s:.0f} a second")
        settled = [head["role"] == "production" and head["green_lit"] for head in heads.values()]
        lost = [head["share"] == 0 for head in heads.values()]
        return any(settled) and any(lost)

    def findings(self) -> dict[str, Any]:
        """What the hub says of itself at the end."""
        symbol = self._plan.symbols[0]
        return {
            "status": self._get("/v1/status"), "allocation": self._get("/v1/allocation"),
            "params": {strategy: self._get(f"/v1/params/{strategy}?symbol={symbol}")
                       for strategy in self._plan.strategies},
            "learning_memory": self._get(f"/v1/memory/knn?symbol={symbol}&k=3"),
            "audit": self._get("/v1/audit?limit=20"),
        }

    def _get(self, path: str) -> dict[str, Any]:
        return dict(self._http.get(path).raise_for_status().json())


def show(console: Console, findings: dict[str, Any], report: BotReport) -> None:
    console.print(heads_table(findings["status"]))
    weights = Table("strategy", "weight", title="allocation")
    for strategy, weight in findings["allocation"]["weights"].items():
        weights.add_row(strategy, f"{weight:.3f}")
    console.print(weights)
    chosen = Table("strategy", "market", "leverage", "tp_pct", "sl_pct", "min_conf", "trades learnt from",
                   title="parameters in the present market")
    for strategy, found in findings["params"].items():
        values = found["proposal"]
        trades = sum(arm["trades"] for arm in found["arms"]["tp_pct"])
        chosen.add_row(strategy, found["bucket"], *(f"{values[name]:g}" for name in
                                                    ("leverage", "tp_pct", "sl_pct", "min_conf")), str(trades))
    console.print(chosen)
    console.print(f"learning_memory ({findings['learning_memory']['episodes']} episodes), the nearest three:")
    for neighbour in findings["learning_memory"]["neighbours"]:
        console.print(f"  {neighbour}", highlight=False)
    console.print(f"degraded: {dict(report.degraded) or 'nothing'}", highlight=False)
    latency = ", ".join(f"{name} {value:.1f} ms" for name, value in report.latency_ms.items() if value is not None)
    console.print(f"{report.bars} bars, {report.decisions} decisions, {report.trades} trades, "
                  f"{report.refused} outcomes refused; decision latency at the bot, six asked at once: {latency}",
                  highlight=False)


def configured(market: Literal["files", "generated"], signal: float, plan: DemoPlan) -> HubConfig:
    """The user's configuration with what a demo must have: it says so when it starts."""
    config = load()
    return replace(
        config,
        rollout=replace(config.rollout, mode=Rollout.FULL), ledger=replace(config.ledger, seed=SEED),
        market=replace(config.market, kind=market, symbols=plan.symbols, signal=signal),
        router=replace(config.router, horizon_s=600),
        server=replace(config.server, port=free_port()),
        storage=replace(config.storage, redis_port=free_port(), dashboard_port=free_port(),
                        mlflow_port=free_port()))


def run_demo(home: Home, market: Literal["files", "generated"], signal: float, data_dir: str | None,
             reports: Path) -> None:
    started = time.monotonic()
    plan = PLANS[market]

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - started:6.1f} s] {text}" if text else "")

    home.create()
    home.lock().close()  # HomeInUse while another demo runs on it
    shutil.rmtree(home.root)
    home.create()
    say(f"demo in {home.root}, emptied; it overrides rollout (full), horizon (600 s), symbols, seed and ports")
    with engine.prepared(home, say):
        from hub.up import running  # imports Ray, which reads what was just prepared

        with running(home, configured(market, signal, plan), data_dir, say, with_mlflow=False) as hub:
            demo = Demo(hub, plan, say)
            report = demo.replay()
            findings = demo.findings()
    show(Console(width=150), findings, report)
    page = write_report(reports, "demo", {"market": market, "bot": report.to_dict(), **findings}, _plots(demo.moments))
    say(f"report: {page}")
    say(f"replay it: HUB_HOME={home.root} hub replay")


def _plots(moments: list[Moment]) -> list[Plot]:
    aliases = moments[-1].heads

    def line(pick: Any) -> dict[str, list[tuple[float, float]]]:
        return {alias: [(m.bars, pick(m.heads[alias])) for m in moments if alias in m.heads] for alias in aliases}

    return [Plot("Account value", "bars", "USD", {"equity": [(m.bars, m.equity) for m in moments]}),
            Plot("Share of the traffic", "bars", "share", line(lambda head: head["share"])),
            Plot("Profit factor over all trades", "bars", "PF",
                 line(lambda head: head["lifetime"]["profit_factor"] or float("nan")))]


@click.command()
@click.option("--market", type=click.Choice(["auto", "files", "generated"]), default="auto", show_default=True)
@click.option("--signal", type=click.FloatRange(0, 10), default=1.0, show_default=True)
@click.option("--data-dir", envvar="HUB_DATA_DIR", default=None)
def main(market: str, signal: float, data_dir: str | None) -> None:
    """Train, serve, replay later bars over HTTP, and print what was learnt."""
    root = home_of()
    chosen: Literal["files", "generated"] = "files" if market == "files" or (market == "auto" and data_dir) \
        else "generated"
    if chosen == "generated" and signal == 0:
        click.echo("SIGNAL=0: nobody has an edge; routing alone, simulated over 40 seeds")
        sys.exit(subprocess.run([sys.executable, "-m", "ci.experiments.zero_edge", "--seeds", "40",
                                 "--home", str(root)], check=False).returncode)
    try:
        run_demo(Home(root / "demo" / chosen), chosen, signal, data_dir, root / "reports")
    except HubError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
