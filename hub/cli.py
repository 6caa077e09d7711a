"""The `hub` command. `up` runs the hub; `replay` reads a ledger; everything else talks HTTP to a running hub."""

from __future__ import annotations

import json
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import httpx
from rich import box
from rich.console import Console
from rich.table import Table

from policies.errors import HubError

# A narrower terminal wraps the lines; a narrower table would cut the figures.
TABLE_WIDTH = 140


@click.group()
@click.option("--home", type=click.Path(path_type=Path), envvar="HUB_HOME", default=Path("var"), show_default=True,
              help="The hub's folder.")
@click.option("--url", envvar="HUB_URL", default="", help="Address of a running hub; by default the configured one.")
@click.pass_context
def cli(context: click.Context, home: Path, url: str) -> None:
    """The learner hub: a learning layer for a bot that trades with an LLM in charge."""
    context.obj = {"home": home.resolve(), "url": url}


@cli.command()
@click.option("--data-dir", envvar="HUB_DATA_DIR", default=None, help="Recorded bars; by default the public market.")
@click.option("--training/--no-training", default=True, show_default=True,
              help="Train and register the first heads if the ledger knows none.")
@click.option("--mlflow/--no-mlflow", default=True, show_default=True,
              help="Start MLflow's server, and the mirror of the policies in its registry.")
@click.pass_obj
def up(options: dict[str, Any], data_dir: str | None, training: bool, mlflow: bool) -> None:
    """Start every part and serve until Ctrl-C."""
    started = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - started:6.1f} s] {text}" if text else "")

    from hub import engine
    from hub.config import load
    from hub.home import Home

    home, config = Home(options["home"]), load()
    home.create()
    with engine.prepared(home, say):
        from hub.up import up as serve_until_ended  # imports Ray, which reads what was just prepared

        serve_until_ended(home, config, data_dir, say, training, mlflow)


@cli.command()
@click.option("--data-dir", envvar="HUB_DATA_DIR", default=None, help="Recorded bars; by default the public market.")
@click.option("--symbols", default="", help="Separated by commas; by default the configured ones.")
@click.pass_obj
def features(options: dict[str, Any], data_dir: str | None, symbols: str) -> None:
    """Apply the feature repo and fill its stores; again, and it adds what is new."""
    from feature_repo.market import symbols_in
    from hub.config import load
    from hub.feature_job import drift_table, extents_table, fill_features
    from hub.home import Home

    home, config = Home(options["home"]), load()
    if symbols:
        config = replace(config, market=replace(config.market, symbols=symbols_in(symbols)))
    home.create()
    run = fill_features(home, config, data_dir, click.echo)
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(extents_table(run.extents))
    if run.drift:
        console.print("Drift of the last whole day against the 90 days before, in nats:")
        console.print(drift_table(run.drift))


@cli.command()
@click.pass_obj
def status(options: dict[str, Any]) -> None:
    """Heads, roles, shares and gates of a running hub."""
    found = _call(options, "GET", "/v1/status", "bot")
    hub = found["hub"]
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(f"rollout {hub['rollout']} · clock {hub['clock']} · position {hub['position']} "
                  f"· epoch {hub['epoch']} · decisions {hub['decisions']} · outcomes {hub['outcomes']}",
                  highlight=False)
    console.print(f"market: {hub['market']}", highlight=False)
    console.print(heads_table(found))
    for entry in found["features"]:
        if not entry["fresh"]:
            age = "absent" if entry["age_ms"] is None else f"{entry['age_ms'] / 1_000:.0f} s old"
            console.print(f"stale: features {entry['group']} of {entry['symbol']}, {age}", highlight=False)
    for entry in found["degraded"]:
        console.print(f"degraded: {entry['part']}: {entry['reason']} ({entry['count']} times)", highlight=False)


@cli.command()
@click.option("--path", type=click.Path(exists=True, path_type=Path), default=None,
              help="A bundle: a folder, or one file such as models/candidate.pt.")
@click.option("--from-url", default="", help="Of a bundle, or a pointer to one, in the hub's artefact store.")
@click.pass_obj
def register(options: dict[str, Any], path: Path | None, from_url: str) -> None:
    """Hand a candidate to the running hub, which gives it a challenger's share."""
    from hub.client import candidate_bytes

    if (path is None) == (not from_url):
        raise click.UsageError("give --path or --from-url")
    try:
        sent: dict[str, Any] = {"json": {"url": from_url}} if path is None else {"content": candidate_bytes(path)}
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    answer = _call(options, "POST", "/v1/policies", "ops", **sent)
    if version := answer.get("embedding_version"):
        click.echo(f"stored {answer['alias']}; `hub embedding use {version}` puts it into use")
    else:
        click.echo(f"registered {answer['alias']} as {answer['policy_id']} at position {answer['position']}")


@cli.command("webhook-secret")
@click.option("--show", is_flag=True, help="Print the secret itself.")
@click.pass_obj
def show_webhook_secret(options: dict[str, Any], show: bool) -> None:
    """Where the secret lies with which webhooks are signed; made at first use."""
    from hub.home import Home
    from hub.webhook import secret_file, webhook_secret

    Home(options["home"]).create()
    secret = webhook_secret(options["home"])
    click.echo(secret if show else secret_file(options["home"]))


@cli.group()
def embedding() -> None:
    """Which embedding decisions are made with."""


@embedding.command("show")
@click.pass_obj
def embedding_show(options: dict[str, Any]) -> None:
    """The version in use, the one before it, and all that there are."""
    found = _call(options, "GET", "/v1/status", "bot")["embedding"]
    click.echo(f"in use {found['version']} · before {found['earlier'] or '-'} · known {', '.join(found['known'])}")


@embedding.command("use")
@click.argument("version")
@click.option("--reason", default="by the command line", show_default=True)
@click.option("--force", is_flag=True, help="Also where that takes heads off line which have a share.")
@click.pass_obj
def embedding_use(options: dict[str, Any], version: str, reason: str, force: bool) -> None:
    """Embed with VERSION from now on; `none` for no embedding."""
    _choose_embedding(options, version=version, reason=reason, force=force)


@embedding.command("revert")
@click.option("--reason", default="by the command line", show_default=True)
@click.pass_obj
def embedding_revert(options: dict[str, Any], reason: str) -> None:
    """Go back to the last version in use before this one."""
    _choose_embedding(options, revert=True, reason=reason)


def _choose_embedding(options: dict[str, Any], **body: Any) -> None:
    answer = _call(options, "POST", "/v1/embedding", "ops", json={**body, "command_id": uuid.uuid4().hex})
    click.echo(f"embedding {answer['version']}: recorded at position {answer['position']}")


@cli.group()
def params() -> None:
    """What the parameter learners start from."""


@params.command("start")
@click.option("--path", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True,
              help="The file that `python -m train.bo.optimise` writes, such as models/param_start.json.")
@click.option("--reason", default="by the command line", show_default=True)
@click.pass_obj
def params_start(options: dict[str, Any], path: Path, reason: str) -> None:
    """Have the running hub start from this file; the same file again changes nothing."""
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:  # no UTF-8 either
        raise click.ClickException(f"{path} is not JSON: {error}") from None
    answer = _call(options, "POST", "/v1/params/start", "ops", json={"start": document, "reason": reason})
    click.echo(f"parameters start from {answer['start_id'][:12]} ({answer['buckets']} buckets): {answer['accepted']} "
               f"at position {answer['position']}")


@params.command("show")
@click.pass_obj
def params_show(options: dict[str, Any]) -> None:
    """The start in use, by strategy and bucket."""
    found = _call(options, "GET", "/v1/params", "bot")
    start = found["start"]
    click.echo(f"param_mode {found['param_mode']} · start {start['start_id'][:12] or 'none'} · "
               f"by {start['actor'] or '-'} at position {start['position']}: {start['reason'] or '-'}")
    if start["levels"]:
        Console(width=None if sys.stdout.isatty() else TABLE_WIDTH).print(start_table(start["levels"]))


def start_table(levels: list[dict[str, Any]]) -> Table:
    """What `hub params show` prints, from /v1/params."""
    table = Table(title="start of the parameter learners", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("strategy", "bucket"):
        table.add_column(name, no_wrap=True)
    for name in ("tp %", "sl %", "limit offset %", "trades", "mean reward", "advantage", "weight"):
        table.add_column(name, no_wrap=True, justify="right")
    for row in levels:
        table.add_row(row["strategy"], row["bucket"], *(f"{100 * row[name]:.3f}" for name in
                                                        ("tp_pct", "sl_pct", "limit_offset_pct")),
                      str(row["trades"]), f"{row['mean_reward']:+.3f}", f"{row['shrunk_advantage']:+.3f}",
                      f"{row['weight']:.1f}")
    return table


def _command(name: str, text: str) -> None:
    @cli.command(name, help=text)
    @click.argument("policy")
    @click.option("--reason", default="by the command line", show_default=True)
    @click.pass_obj
    def run(options: dict[str, Any], policy: str, reason: str) -> None:
        answer = _call(options, "POST", f"/v1/policies/{policy}/{name}", "ops",
                       json={"reason": reason, "command_id": uuid.uuid4().hex})
        click.echo(f"{name} {answer['policy_id']}: recorded at position {answer['position']}")


for _name, _text in (("pause", "Take all traffic from a policy until it is resumed."),
                     ("resume", "Lift a pause, a throttle or a halt; `book` lifts the book's breaker."),
                     ("promote", "Make a policy production until a gate fires or it is demoted."),
                     ("demote", "Lift a promotion.")):
    _command(_name, _text)


@cli.command()
@click.option("--ledger", type=click.Path(exists=True, path_type=Path), default=None, help="Default: HUB_HOME's own.")
@click.pass_obj
def replay(options: dict[str, Any], ledger: Path | None) -> None:
    """Make every decision again from the ledger alone, heads included, and compare field by field."""
    from hub.home import Home
    from hub.replay import replay_ledger

    home = Home(options["home"])
    report = replay_ledger(ledger or home.ledger, home.policies, progress=_progress)
    click.echo(report.summary())
    for line in report.lines(limit=20):
        click.echo(line)
    sys.exit(0 if report.equal else 1)


def heads_table(found: dict[str, Any]) -> Table:
    """The table of heads that `hub status` and the demo print, from /v1/status. Figures are over all trades."""
    table = Table(title="heads", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("head", "role"):
        table.add_column(name, no_wrap=True)
    for name in ("share", "decisions", "trades", "PF", "DD %", "e-value"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("verdict", overflow="fold")
    for head in found["heads"]:
        life = head["lifetime"]
        verdict = head["judgement"] + (f": {head['rule']} {_number(head['figure'])}" if head["rule"] else "")
        if head["paused"]:
            verdict += ", paused"
        table.add_row(head["alias"], head["role"] + (", green" if head["green_lit"] else ""), f"{head['share']:.0%}",
                      str(head["decisions"]), str(life["trades"]), _number(life["profit_factor"]),
                      _number(life["max_drawdown_percent"]), _number(head["e_value"]), verdict)
    table.add_row("llm_only", "", f"{found['llm_only_share']:.0%}", str(found["llm_only_decisions"]), *[""] * 5)
    return table


def main() -> None:
    """Errors that a user can cause are one line and exit code 2, not a traceback."""
    try:
        cli(standalone_mode=True)
    except HubError as error:
        click.echo(f"hub: {error}", err=True)
        sys.exit(2)


def _call(options: dict[str, Any], method: str, path: str, scope: str, **more: Any) -> dict[str, Any]:
    from hub.config import load
    from hub.home import Home

    url = options["url"]
    if not url:
        server = load().server
        url = f"http://{server.host}:{server.port}"
    home = Home(options["home"])
    if not home.tokens_file.exists():
        raise click.ClickException(f"no {home.tokens_file}: is --home (or HUB_HOME) the running hub's folder?")
    try:
        answer = httpx.request(method, url + path, timeout=60.0,
                               headers={"Authorization": f"Bearer {home.tokens()[scope]}"}, **more)
    except httpx.HTTPError as error:
        raise click.ClickException(f"no hub at {url} ({error}); start one with `make run`") from None
    if answer.status_code != 200:
        raise click.ClickException(f"{answer.status_code}: {_detail(answer)}")
    return dict(answer.json())


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if abs(value) < 1_000 else f"{value:.3g}"


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {total} rows", nl=done == total, err=True)
