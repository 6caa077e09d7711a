"""The operator's page in a real browser: against a small server with canned answers, then against a running hub."""

from __future__ import annotations

import copy
import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

OPS = Path(__file__).parents[2] / "hub" / "ops"
TOKEN = "ops-token"
POLICY = "3f" * 32
SECURITY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


def head(policy_id: str, alias: str, **changes: Any) -> dict[str, Any]:
    values = {"policy_id": policy_id, "alias": alias, "role": "production", "share": 0.9, "decisions": 1204,
              "trades": 163, "profit_factor": 2.314, "max_drawdown_percent": 1.427, "latency_p95_ms": 8.31,
              "judgement": "approve", "rule": None, "figure": None, "green_lit": True, "missing": [], "e_value": 41.7,
              "paused": False, "promoted": False}
    return values | changes


STATUS: dict[str, Any] = {
    "hub": {"rollout": "hybrid", "clock": "replay", "now_ms": 1_760_000_000_000, "position": 5231, "epoch": 88,
            "market": "generated, seed 7: BTC, ETH, SOL, HYPE"},
    "heads": [
        head(POLICY, "tabnet_v1"),
        head("9c" * 32, "catboost_v1", role="challenger", share=0.05, decisions=131, trades=42, profit_factor=None,
             judgement="reduce", rule="latency_p95", figure=261.0, latency_p95_ms=261.0, green_lit=False, e_value=1.8,
             missing=["42 of 150 trades", "e-value 1.8 of 20"]),
        head("a0" * 32, "<img src=x onerror=alert(1)>", role="halted", share=0, judgement="halt", rule="drawdown",
             figure=4.21, green_lit=False, missing=["halted: an operator must resume it"], e_value=0.02),
    ],
    "llm_only_share": 0.05,
    "allocation": {"momentum": 0.42, "breakout": 0.21, "scalping": 0.155, "market_making": 0.1, "arbitrage": 0.07,
                   "sniping": 0.045},
    "degraded": [{"part": "memory", "reason": "no answer within 20 ms", "count": 3}],
    "book": {"peak_equity": 10_412.5, "equity": 10_377.21, "drawdown_percent": 0.339, "no_new_risk": False},
    "latency_ms": {"p50": 4.1, "p95": 7.9, "p99": 12.6},
}
AUDIT = {"verified": True, "rows": [
    {"position": 5200, "at_ms": 1_759_999_940_000, "kind": "epoch", "policy_id": None, "actor": "sentry", "rule": None,
     "figure": None, "summary": "epoch 88: tabnet_v1 production, catboost_v1 challenger"},
    {"position": 5102, "at_ms": 1_759_999_000_000, "kind": "verdict", "policy_id": "a0" * 32, "actor": "sentry",
     "rule": "drawdown", "figure": 4.21, "summary": "halt: drawdown 4.21 % over 4 %"},
    {"position": 4100, "at_ms": 1_759_990_000_000, "kind": "command", "policy_id": POLICY, "actor": "ops", "rule": None,
     "figure": None, "summary": "resume: weights checked"}]}


class CannedHub:
    """Serves the page as the hub does, and answers the API from `status` and `audit`."""

    def __init__(self) -> None:
        self.status, self.audit = copy.deepcopy(STATUS), copy.deepcopy(AUDIT)
        self.broken = False
        self.refuses_commands = ""
        self.commands: list[tuple[str, dict[str, Any]]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files = {"/ops": ("index.html", "text/html"), "/ops/ops.js": ("ops.js", "text/javascript"),
                         "/ops/ops.css": ("ops.css", "text/css")}
                if self.path in files:
                    name, kind = files[self.path]
                    self._send(200, (OPS / name).read_bytes(), f"{kind}; charset=utf-8")
                elif self.path.startswith("/v1/"):
                    self._answer(hub.status if self.path == "/v1/status" else hub.audit)
                else:
                    self._send(404, b"", "text/plain")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if hub.refuses_commands:
                    self._problem(503, hub.refuses_commands)
                    return
                hub.commands.append((self.path, body))
                name, command = self.path.split("/")[3:5]
                for entry in hub.status["heads"]:
                    if entry["policy_id"] == name:
                        entry |= {"paused": command == "pause", "role": "paused" if command == "pause" else "shadow"}
                self._answer({"recorded": True})

            def _answer(self, content: dict[str, Any]) -> None:
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    self._problem(401, "a bearer token is required")
                elif hub.broken:
                    self._problem(503, "the writer is away")
                else:
                    self._send(200, json.dumps(content).encode(), "application/json")

            def _problem(self, status: int, detail: str) -> None:
                content = json.dumps({"status": status, "detail": detail}).encode()
                self._send(status, content, "application/problem+json")

            def _send(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))),
                                    ("Content-Security-Policy", SECURITY)):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert path, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(10_000)
    made = context.new_page()
    yield made
    context.close()


@pytest.fixture
def hub() -> Iterator[CannedHub]:
    canned = CannedHub()
    yield canned
    canned.stop()


def sign_in(page: Page, url: str, token: str = TOKEN) -> None:
    page.goto(f"{url}/ops")
    page.get_by_label("Token of scope ops").fill(token)
    page.get_by_role("button", name="Sign in").click()


def head_row(page: Page, alias: str) -> Any:
    return page.locator("#heads tr").filter(has=page.get_by_text(alias, exact=True))


def test_table_shows_every_head_with_its_figures(page: Page, hub: CannedHub) -> None:
    sign_in(page, hub.url)
    expect(page.locator("#heads tr")).to_have_count(3)
    cells = head_row(page, "tabnet_v1").locator("th, td").all_inner_texts()
    assert cells[0].split() == ["tabnet_v1", POLICY[:10]]
    assert cells[1:11] == ["production", "90 %", "1,204", "163", "2.31", "1.43", "8.3", "41.70", "approve",
                           "Green light"]
    slow = head_row(page, "catboost_v1")
    expect(slow).to_contain_text("latency_p95 (261.00)")
    expect(slow).to_contain_text("42 of 150 trades · e-value 1.8 of 20")
    expect(page.locator("#facts")).to_contain_text("4.1 / 7.9 / 12.6")
    expect(page.locator("#facts")).to_contain_text("2025-10-09 08:53:20")
    expect(page.locator("#allocation li")).to_have_count(6)
    expect(page.locator("#allocation li").first).to_contain_text("momentum")
    expect(page.locator("#degraded")).to_contain_text("no answer within 20 ms × 3")
    expect(page.locator("#verified")).to_have_text("chain verified")
    expect(page.locator("#audit tr").nth(2)).to_contain_text("tabnet_v1")
    expect(page.locator("#age")).to_contain_text("Updated")


def test_an_alias_is_text_and_nothing_breaks_the_content_policy(page: Page, hub: CannedHub) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type} {message.text} {message.location['url']}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    sign_in(page, hub.url)
    expect(page.locator("#heads")).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator("#heads img").count() == 0
    assert [text for text in said if not text.endswith("/favicon.ico")] == []  # browsers ask for it, there is none


def test_pause_asks_for_a_reason_and_sends_it_once(page: Page, hub: CannedHub) -> None:
    sign_in(page, hub.url)
    page.get_by_role("button", name="Pause tabnet_v1").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Pause tabnet_v1")
    expect(page.get_by_label("Reason, for the audit")).to_be_focused()
    dialog.get_by_role("button", name="Pause").click()
    assert hub.commands == []  # no reason, no command
    page.get_by_label("Reason, for the audit").fill("odd sizes since noon")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(head_row(page, "tabnet_v1").locator(".badge").first).to_have_text("paused")
    expect(page.get_by_role("button", name="Resume tabnet_v1")).to_be_visible()
    expect(page.get_by_role("button", name="Pause tabnet_v1")).to_be_hidden()
    [(path, body)] = hub.commands
    assert path == f"/v1/policies/{POLICY}/pause"
    assert body["reason"] == "odd sizes since noon"
    assert body["command_id"]


def test_refused_command_says_so_and_can_be_sent_again_under_the_same_id(page: Page, hub: CannedHub) -> None:
    sign_in(page, hub.url)
    page.get_by_role("button", name="Resume <img").click()
    page.get_by_label("Reason, for the audit").fill("weights checked")
    hub.refuses_commands = "the writer is away"
    with page.expect_request("**/resume") as first:
        page.keyboard.press("Enter")
    expect(page.locator("#confirm-trouble")).to_have_text("Not done: the writer is away")
    hub.refuses_commands = ""
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert [body["command_id"] for _, body in hub.commands] == [json.loads(first.value.post_data or "")["command_id"]]


def test_escape_leaves_everything_as_it_was_and_returns_the_focus(page: Page, hub: CannedHub) -> None:
    sign_in(page, hub.url)
    button = page.get_by_role("button", name="Pause tabnet_v1")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(button).to_be_focused()
    assert hub.commands == []


def test_focus_survives_a_refresh(page: Page, hub: CannedHub) -> None:
    sign_in(page, hub.url)
    button = page.get_by_role("button", name="Pause catboost_v1")
    button.focus()
    hub.status["heads"][1]["decisions"] = 777
    hub.status["heads"].reverse()
    expect(head_row(page, "catboost_v1")).to_contain_text("777")
    expect(page.locator("#heads tr").first).to_contain_text("<img")
    expect(button).to_be_focused()


def test_silent_hub_is_shown_and_forgotten_when_it_answers_again(page: Page, hub: CannedHub) -> None:
    sign_in(page, hub.url)
    expect(page.locator("#heads tr")).to_have_count(3)
    hub.broken = True
    expect(page.get_by_role("alert").first).to_have_text("The hub does not answer: the writer is away")
    expect(page.locator("#age")).to_have_attribute("data-state", "stale")
    expect(page.locator("#heads tr")).to_have_count(3)
    hub.broken = False
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#age")).to_have_attribute("data-state", "live")


def test_wrong_token_returns_to_the_form_and_is_not_kept(page: Page, hub: CannedHub) -> None:
    sign_in(page, hub.url, "wrong")
    expect(page.locator("#trouble")).to_have_text("The hub does not know this token.")
    expect(page.get_by_label("Token of scope ops")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_token_survives_a_reload_but_not_a_sign_out(page: Page, hub: CannedHub) -> None:
    sign_in(page, hub.url)
    expect(page.locator("#heads tr")).to_have_count(3)
    page.reload()
    expect(page.locator("#heads tr")).to_have_count(3)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token of scope ops")).to_be_visible()
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0


def test_tripped_breaker_is_announced_and_can_be_lifted(page: Page, hub: CannedHub) -> None:
    hub.status["book"]["no_new_risk"] = True
    hub.audit["verified"] = False
    sign_in(page, hub.url)
    expect(page.locator("#breaker")).to_contain_text("no new risk")
    expect(page.locator("#verified")).to_have_text("chain broken")
    page.get_by_role("button", name="Lift the breaker").click()
    page.get_by_label("Reason, for the audit").fill("deposit was booked late")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert hub.commands[0][0] == "/v1/policies/book/resume"


def test_pause_pressed_on_the_page_holds_from_the_next_decision(page: Page, running_hub: Any) -> None:
    bearer = {"Authorization": f"Bearer {running_hub.bot_token}"}
    with httpx.Client(base_url=running_hub.url, headers=bearer, timeout=10.0) as api:
        status = api.get("/v1/status").raise_for_status().json()
        target = max(status["heads"], key=lambda entry: (entry["share"], entry["policy_id"]))
        assert target["policy_id"] in deciders(api, status["hub"], "before")
        sign_in(page, running_hub.url, running_hub.ops_token)
        expect(page.locator("#heads tr")).to_have_count(len(status["heads"]))
        page.get_by_role("button", name=f"Pause {target['alias']}").click()
        page.get_by_label("Reason, for the audit").fill("pressed by the browser test")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_hidden()
        assert target["policy_id"] not in deciders(api, status["hub"], "after")
        expect(head_row(page, target["alias"])).to_contain_text("paused")
        expect(page.locator("#audit")).to_contain_text("pressed by the browser test")


def deciders(api: httpx.Client, hub: dict[str, Any], when: str) -> set[str]:
    """Who decides 40 requests at the hub's present time: a head with 90 % misses all of them once in 10^40."""
    found = set()
    for n in range(40):
        request = {"request_id": f"{when}-{n}-{time.time_ns()}", "symbol": hub["symbols"][0], "strategy": "momentum",
                   "time_ms": hub["now_ms"] if hub["clock"] == "replay" else None, "portfolio": {"equity": 10_000.0}}
        found.add(api.post("/v1/decisions", json=request).raise_for_status().json()["policy_id"])
    return found
