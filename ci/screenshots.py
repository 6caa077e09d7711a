"""Pictures of MLflow for the docs: the experiment, a comparison and the registered versions, taken in a real browser.

    make screenshots HUB_HOME=var            (a hub runs on this home and `make retrain_sup` has been through)

The pages are those of the MLflow that `make run` starts; nothing is drawn by us.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, sync_playwright

EXPERIMENT, MODEL = "retrain_sup", "learner_hub_policy"
WIDTH, HEIGHT = 1500, 900
SHOWN = ("trades", "profit_factor", "max_drawdown_percent", "deflated_sharpe", "served_ms")
# By what MLflow calls them: the assistant beside the page is closed, a search's runs and the figures are shown.
CLICKED = ("mlflow.assistant.chat_panel.close", "runnamecellrenderer", "experimentviewrunstableaddcolumncta")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


def pages(url: str) -> dict[str, tuple[str, str]]:
    """By name of the picture: the page's address, and text that stands on it once it is whole."""
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise SystemExit(f"no experiment {EXPERIMENT} at {url}: run `make retrain_sup` first")
    runs = client.search_runs([experiment.experiment_id], order_by=["metrics.deflated_sharpe DESC"])
    heads = [run for run in runs if "profit_factor" in run.data.metrics]
    compared = ",".join(f"%22{run.info.run_id}%22" for run in heads[:6])
    where = f"{url}/#/experiments/{experiment.experiment_id}"
    best = heads[0]
    return {
        "experiment": (f"{where}/runs?compareRunsMode=TABLE", "search_"),
        "comparison": (f"{url}/#/compare-runs?runs=[{compared}]&experiments=[%22{experiment.experiment_id}%22]",
                       "profit_factor"),
        "run": (f"{where}/runs/{best.info.run_id}", "profit_factor"),
        "versions": (f"{url}/#/models/{MODEL}", "challenger"),
    }


def take(browser: Browser, address: str, text: str, path: Path) -> None:
    """One picture, once the text is there."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.goto(address)
    page.get_by_text(text).first.wait_for(timeout=60_000)
    for control in CLICKED:
        found = page.locator(f'[data-component-id*="{control}"]')
        if found.count():
            found.first.dispatch_event("click")  # some are shown only where the mouse is
    if page.get_by_placeholder("Search columns").count():
        _show_columns(page)
    page.wait_for_timeout(3_000)  # charts draw themselves after their data has come; there is nothing to wait for
    page.screenshot(path=str(path))
    page.close()


def _show_columns(page: Page) -> None:
    """The figures that heads are compared by, in the place of columns that are empty here."""
    for name in ("Dataset", "Source", "Models", *SHOWN):
        page.get_by_placeholder("Search columns").fill(name)
        page.wait_for_timeout(500)
        page.locator(".du-bois-light-tree-title, [class*=tree-title]").get_by_text(name, exact=True).first.click()
    page.keyboard.press("Escape")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Pictures of MLflow's pages")
    parser.add_argument("--mlflow", default="http://127.0.0.1:5000")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        print("no Chromium found: install one first, on Debian with 'apt-get install chromium'", file=sys.stderr)
        return 1
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        for name, (address, text) in pages(options.mlflow.rstrip("/")).items():
            path = options.out / f"mlflow_{name}.png"
            take(browser, address, text, path)
            print(f"{path}: {address}")
        browser.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
