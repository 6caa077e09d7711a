// The operator's page: asks /v1/status and /v1/audit every two seconds and shows what they say.
//
// Text of the hub (aliases, reasons, rules) is untrusted and only ever becomes textContent. The token lives in
// sessionStorage, so it ends with the tab. Rows are updated in place, so that focus and selection survive a refresh.
"use strict";

const REFRESH_MS = 2000;
const DEADLINE_MS = 5000;
const STALE_MS = 6000;
const TOKEN_KEY = "learner-hub-ops-token";

const byId = (id) => document.getElementById(id);
let lastGoodAt = null;
let timer = null;
let session = 0; // answers to an earlier sign-in are dropped
let lastFocus = null;

// -- asking ----------------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function ask(path, body) {
  const options = {
    headers: { Authorization: `Bearer ${sessionStorage.getItem(TOKEN_KEY)}` },
    signal: AbortSignal.timeout(DEADLINE_MS),
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
  };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const content = await response.json().catch(() => null);
  if (!response.ok) {
    throw new Refused(response.status, (content && (content.detail || content.title)) || `HTTP ${response.status}`);
  }
  if (content === null || typeof content !== "object") throw new Error("the answer is not JSON");
  return content;
}

async function refresh(mine = session) {
  clearTimeout(timer);
  try {
    const [status, audit] = await Promise.all([ask("/v1/status"), ask("/v1/audit?limit=50")]);
    if (mine !== session) return;
    show(status, audit);
    lastGoodAt = Date.now();
    trouble("");
  } catch (error) {
    if (mine !== session) return;
    if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
      signOut(error.status === 401 ? "The hub does not know this token." : "This token may not operate the hub.");
      return;
    }
    trouble(`The hub does not answer: ${error.name === "TimeoutError" ? "too slow" : error.message}`);
  } finally {
    showAge();
    if (mine === session) timer = setTimeout(refresh, REFRESH_MS, mine);
  }
}

// -- showing ---------------------------------------------------------------------------------------------------------

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const known = (value) => typeof value === "number" && Number.isFinite(value);
const fixed = (value, digits) => (known(value) ? value.toFixed(digits) : "–");
const percent = (share) => (known(share) ? `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %` : "–");
const whole = (value) => (known(value) ? Math.round(value).toLocaleString("en") : "–");
const money = (value) => (known(value) ? `$${value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}` : "–");
const utc = (ms) => (known(ms) && ms > 0 ? new Date(ms).toISOString().replace("T", " ").slice(0, 19) : "–");
const short = (id) => (typeof id === "string" && id.length > 16 ? id.slice(0, 10) : id || "–");

function show(status, audit) {
  showFacts(status);
  showHeads(status.heads || []);
  showBook(status.book || {});
  showAllocation(status.allocation || {});
  showDegraded(status.degraded || []);
  showFeatures(status.features || []);
  showAudit(audit, status.heads || []);
}

function showPairs(list, pairs) {
  if (list.children.length !== pairs.length) {
    list.replaceChildren(...pairs.map(() => {
      const pair = element("div");
      pair.append(element("dt"), element("dd"));
      return pair;
    }));
  }
  pairs.forEach(([name, value], index) => {
    const [term, detail] = list.children[index].children;
    setText(term, name);
    setText(detail, value);
  });
}

function showFacts(status) {
  const hub = status.hub || {};
  const latency = status.latency_ms || {};
  showPairs(byId("facts"), [
    ["Rollout", hub.rollout ?? "–"],
    ["Clock", hub.clock ?? "–"],
    ["Time (UTC)", utc(hub.now_ms)],
    ["Position", whole(hub.position)],
    ["Epoch", whole(hub.epoch)],
    ["LLM only", percent(status.llm_only_share)],
    ["Decision p50 / p95 / p99 ms", ["p50", "p95", "p99"].map((q) => fixed(latency[q], 1)).join(" / ")],
    ["Embedding", (status.embedding || {}).version ?? "–"],
    ["Market", hub.market ?? "–"],
  ]);
}

function showHeads(heads) {
  const body = byId("heads");
  const focused = document.activeElement;
  const rows = new Map([...body.rows].map((row) => [row.dataset.policy, row]));
  heads.forEach((head, index) => {
    const row = rows.get(head.policy_id) || newHeadRow(head.policy_id);
    rows.delete(head.policy_id);
    fillHeadRow(row, head);
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] || null);
  });
  rows.forEach((row) => row.remove());
  // A row that changes its place loses the focus.
  if (focused.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
  showEmpty(body, heads.length === 0, 12, "No policy is registered.");
}

function showEmpty(body, isEmpty, columns, text) {
  if (!isEmpty) return;
  const cell = element("td", text, "muted");
  cell.colSpan = columns;
  const row = element("tr");
  row.append(cell);
  body.replaceChildren(row);
}

function newHeadRow(policyId) {
  const row = element("tr");
  row.dataset.policy = policyId;
  const name = element("th");
  name.scope = "row";
  name.append(element("span", "", "alias"), element("code", "", "muted"));
  const role = element("td");
  role.append(element("span", "", "badge"));
  const figures = Array.from({ length: 7 }, () => element("td", "", "figure"));
  const verdict = element("td");
  verdict.append(element("span", "", "badge"), element("span", "", "muted"));
  const traffic = element("td");
  const buttons = element("div", undefined, "buttons");
  buttons.append(...["pause", "resume"].map((command) => {
    const button = element("button", command === "pause" ? "Pause" : "Resume");
    button.type = "button";
    button.dataset.command = command;
    return button;
  }));
  traffic.append(buttons);
  row.append(name, role, ...figures, verdict, element("td", "", "ladder"), traffic);
  return row;
}

function fillHeadRow(row, head) {
  const cells = row.cells;
  const alias = head.alias || short(head.policy_id);
  setText(cells[0].children[0], alias);
  setText(cells[0].children[1], short(head.policy_id));
  cells[0].children[1].title = head.policy_id;
  badge(cells[1].children[0], head.promoted ? `${head.role}, promoted` : head.role, head.role);
  [percent(head.share), whole(head.decisions), whole(head.trades), fixed(head.profit_factor, 2),
    fixed(head.max_drawdown_percent, 2), fixed(head.latency_p95_ms, 1), fixed(head.e_value, 2),
  ].forEach((text, index) => setText(cells[2 + index], text));
  badge(cells[9].children[0], head.judgement, head.judgement);
  setText(cells[9].children[1], head.rule ? ` ${head.rule}${known(head.figure) ? ` (${fixed(head.figure, 2)})` : ""}` : "");
  setText(cells[10], head.green_lit ? "Green light" : (head.missing || []).join(" · ") || "–");
  const stopped = head.paused || head.judgement === "halt" || head.judgement === "throttle";
  const [pause, resume] = cells[11].querySelectorAll("button");
  [[pause, !head.paused], [resume, stopped]].forEach(([button, usable]) => {
    button.hidden = !usable;
    button.dataset.policy = head.policy_id;
    button.dataset.alias = alias;
    button.setAttribute("aria-label", `${button.textContent} ${alias}`);
  });
}

function badge(node, text, kind) {
  setText(node, text || "–");
  node.dataset.kind = kind || "";
}

function showBook(book) {
  showPairs(byId("book"), [
    ["Equity", money(book.equity)],
    ["Peak", money(book.peak_equity)],
    ["Drawdown", known(book.drawdown_percent) ? `${fixed(book.drawdown_percent, 2)} %` : "–"],
    ["Breaker", book.no_new_risk ? "tripped" : "closed"],
  ]);
  byId("lift").hidden = !book.no_new_risk;
  banner("breaker", book.no_new_risk
    ? "The book's breaker is tripped: no new risk, only closing and reducing, until an operator lifts it." : "");
}

function showAllocation(weights) {
  const entries = Object.entries(weights).sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  if (entries.length === 0) {
    byId("allocation").replaceChildren(element("li", "Nothing is allocated yet.", "muted"));
    return;
  }
  byId("allocation").replaceChildren(...entries.map(([strategy, weight]) => {
    const bar = element("meter");
    bar.max = 1;
    bar.value = known(weight) ? weight : 0;
    bar.setAttribute("aria-label", strategy);
    const item = element("li");
    item.append(element("span", strategy.replaceAll("_", " ")), bar, element("span", percent(weight), "figure"));
    return item;
  }));
}

function showDegraded(rows) {
  const items = rows.map((row) => {
    const item = element("li");
    item.append(element("strong", row.part), element("span", ` ${row.reason} `), element("span", `× ${whole(row.count)}`, "muted"));
    return item;
  });
  byId("degraded").replaceChildren(...(items.length ? items : [element("li", "Nothing. Every part does its work.", "muted")]));
}

// One row per symbol: the age of each group that was ever written; a group past its ttl says so.
function showFeatures(rows) {
  const bySymbol = new Map();
  rows.forEach((row) => {
    const text = known(row.age_ms) ? `${row.group} ${age(row.age_ms)}${row.fresh ? "" : " stale"}` : `${row.group} absent`;
    bySymbol.set(row.symbol, [...(bySymbol.get(row.symbol) || []), text]);
  });
  showPairs(byId("features"), bySymbol.size ? [...bySymbol].map(([symbol, groups]) => [symbol, groups.join(", ")])
    : [["online store", "empty or away"]]);
}

function age(ms) {
  const seconds = Math.round(ms / 1000);
  if (Math.abs(seconds) < 120) return `${seconds} s`;
  return Math.abs(seconds) < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function showAudit(audit, heads) {
  const aliases = new Map(heads.map((head) => [head.policy_id, head.alias]));
  const rows = audit.rows || [];
  badge(byId("verified"), audit.verified ? "chain verified" : "chain broken", audit.verified ? "approve" : "halt");
  byId("audit").replaceChildren(...rows.map((entry) => {
    const row = element("tr");
    row.append(
      element("td", whole(entry.position), "figure"), element("td", utc(entry.at_ms), "time"), element("td", entry.kind),
      element("td", aliases.get(entry.policy_id) || short(entry.policy_id)), element("td", entry.actor || "–"),
      element("td", entry.rule || "–"), element("td", fixed(entry.figure, 2), "figure"), element("td", entry.summary || ""));
    return row;
  }));
  showEmpty(byId("audit"), rows.length === 0, 8, "Nothing is recorded yet.");
}

function banner(id, text) {
  const node = byId(id);
  setText(node, text);
  node.hidden = text === "";
}

function trouble(text) {
  banner("trouble", text);
}

function showAge() {
  const node = byId("age");
  if (!sessionStorage.getItem(TOKEN_KEY)) {
    setText(node, "Signed out");
    node.dataset.state = "idle";
    return;
  }
  const age = lastGoodAt === null ? null : Date.now() - lastGoodAt;
  setText(node, age === null ? "Waiting for the hub" : `Updated ${Math.floor(age / 1000)} s ago`);
  const stale = age === null || age > STALE_MS || !byId("trouble").hidden;
  node.dataset.state = stale ? "stale" : "live";
  byId("board").classList.toggle("stale", stale);
}

// -- doing -----------------------------------------------------------------------------------------------------------

const EFFECTS = {
  pause: "It gets no traffic from the next decision on, through restarts, until an operator resumes it.",
  resume: "Its record starts anew and it may get traffic again.",
  lift: "Policies may take new risk again. The peak of the book's equity starts anew.",
};

function confirmCommand(command, policy, title, effect, opener) {
  lastFocus = opener;
  const dialog = byId("confirm");
  setText(byId("confirm-title"), title);
  setText(byId("confirm-effect"), effect);
  setText(byId("confirm-go"), command === "pause" ? "Pause" : "Resume");
  setText(byId("confirm-trouble"), "");
  byId("reason").value = "";
  // One id for however often the button is pressed: the hub does it once.
  Object.assign(dialog.dataset, { command, policy, title, commandId: crypto.randomUUID() });
  dialog.showModal();
  byId("reason").focus();
}

async function sendCommand(event) {
  event.preventDefault();
  const { command, policy, title, commandId } = byId("confirm").dataset;
  const go = byId("confirm-go");
  go.disabled = true;
  try {
    await ask(`/v1/policies/${encodeURIComponent(policy)}/${command}`,
      { reason: byId("reason").value.trim(), command_id: commandId });
    byId("confirm").close();
    setText(byId("said"), `Done: ${title}`);
    await refresh();
  } catch (error) {
    setText(byId("confirm-trouble"), `Not done: ${error.message}`);
  } finally {
    go.disabled = false;
  }
}

function signIn(event) {
  event.preventDefault();
  sessionStorage.setItem(TOKEN_KEY, byId("token").value.trim());
  byId("token").value = "";
  trouble("");
  start();
}

function start() {
  session += 1;
  lastGoodAt = null;
  showBoard(true);
  refresh();
}

function signOut(reason) {
  session += 1;
  clearTimeout(timer);
  sessionStorage.removeItem(TOKEN_KEY);
  banner("breaker", "");
  trouble(reason);
  showBoard(false);
  showAge();
  byId("token").focus();
}

function showBoard(signedIn) {
  byId("sign-in").hidden = signedIn;
  byId("board").hidden = !signedIn;
  byId("sign-out").hidden = !signedIn;
  if (byId("confirm").open) byId("confirm").close();
}

byId("token-form").addEventListener("submit", signIn);
byId("sign-out").addEventListener("click", () => signOut(""));
byId("confirm-form").addEventListener("submit", sendCommand);
byId("confirm-cancel").addEventListener("click", () => byId("confirm").close());
byId("confirm").addEventListener("close", () => lastFocus && lastFocus.isConnected && lastFocus.focus());
byId("lift").addEventListener("click", (event) => confirmCommand(
  "resume", "book", "Lift the book's breaker", EFFECTS.lift, event.currentTarget));
byId("heads").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-command]");
  if (!button) return;
  const { command, policy, alias } = button.dataset;
  confirmCommand(command, policy, `${command === "pause" ? "Pause" : "Resume"} ${alias}`, EFFECTS[command], button);
});
setInterval(showAge, 1000);
if (sessionStorage.getItem(TOKEN_KEY)) start();
else byId("token").focus();
