# The one door. `make help` lists the targets; each installs what it needs into .venv first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
HUB_HOME ?= var
COINS ?= BTC,ETH,SOL,HYPE
LOOKBACK ?= 25200
export HUB_HOME
# An option that is asked for: 0, no and nothing mean no.
asked = $(if $(filter-out 0 no,$(1)),$(2))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install run test check demo features retrain_sup retrain_rl bo nightly forward_test ci_pipeline bench \
  experiments drift chaos browser screenshots lock clean

help: ## Show this list
	@grep -hE '^[a-z_]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed; name yours with PYTHON=..."; exit 1; }
	@echo "installing into $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

install: $(INSTALLED) ## Install everything into .venv

run: $(INSTALLED) ## Start every part and serve until Ctrl-C (HUB_DATA_DIR=folder of recorded bars)
	@exec $(BIN)/hub up

test: $(INSTALLED) ## Run the tests
	@$(BIN)/pytest

check: $(INSTALLED) ## Lint, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

demo: $(INSTALLED) ## Train, serve, replay later bars over HTTP, print what was learnt (MARKET=generated, SIGNAL=0)
	@$(BIN)/python -m ci.demo --market "$(or $(MARKET),auto)" --signal "$(or $(SIGNAL),1)"

features: $(INSTALLED) ## Apply the feature repo and fill its stores from the market and the ledger (COINS=BTC,ETH)
	@$(BIN)/hub features $(if $(filter-out undefined default,$(origin COINS)),--symbols $(COINS))

retrain_sup: $(INSTALLED) ## Search for better heads, judge them, hand over the best (COINS=SOL,BTC WINDOW=60 LOOKBACK=25200)
	@$(BIN)/python -W ignore::DeprecationWarning -m train.retrain_sup --home $(HUB_HOME) $(if $(HUB_DATA_DIR),--data-dir $(HUB_DATA_DIR)) \
	  --coins $(COINS) --lookback $(LOOKBACK) $(if $(WINDOW),--window $(WINDOW)) $(if $(HEADS),--heads $(HEADS)) \
	  $(if $(TRIALS),--trials $(TRIALS)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(FOLDS),--folds $(FOLDS)) \
	  $(if $(SIZE),--size $(SIZE)) $(if $(MARKET),--market $(MARKET)) $(call asked,$(STRICT),--strict) \
	  $(if $(HUB_URL),--hub-url $(HUB_URL))

MARKET_AND_HUB = $(if $(HUB_DATA_DIR),--data-dir $(HUB_DATA_DIR)) $(if $(MARKET),--market $(MARKET)) \
  $(if $(HUB_URL),--hub-url $(HUB_URL))
# Defaults of the commands themselves, unless the user names something else.
GIVEN_COINS = $(if $(filter-out undefined file,$(origin COINS)),--coins $(COINS))
GIVEN_LOOKBACK = $(if $(filter-out undefined file,$(origin LOOKBACK)),--lookback $(LOOKBACK))

retrain_rl: $(INSTALLED) ## Train PPO or SAC, judge it, hand it over (STEPS=1e6 ALGO=sac LOAD=checkpoint EPISODES=1)
	@$(BIN)/python -W ignore::DeprecationWarning -m train.rl.retrain_rl --home $(HUB_HOME) $(MARKET_AND_HUB) \
	  $(GIVEN_COINS) $(GIVEN_LOOKBACK) $(if $(STEPS),--steps $(STEPS)) $(if $(ALGO),--algo $(ALGO)) \
	  $(if $(LOAD),--load $(LOAD)) $(if $(SIZE),--size $(SIZE)) $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(STEPS_PER_UPDATE),--steps-per-update $(STEPS_PER_UPDATE)) \
  $(call asked,$(EPISODES),--episodes) $(call asked,$(STRICT),--strict)

bo: $(INSTALLED) ## Search levels per strategy and market over the backtest, hand over what the hub starts from (TRIALS=16)
	@$(BIN)/python -W ignore::DeprecationWarning -m train.bo.optimise --home $(HUB_HOME) $(MARKET_AND_HUB) \
	  $(GIVEN_COINS) $(GIVEN_LOOKBACK) $(if $(TRIALS),--trials $(TRIALS)) $(call asked,$(STRICT),--strict)

nightly: $(INSTALLED) ## Every job of a night, resumable, one report (RL=1|0, NIGHT=2026-11-20 to go on with that one)
	@$(BIN)/python -W ignore::DeprecationWarning -m train.nightly --home $(HUB_HOME) $(MARKET_AND_HUB) \
	  $(GIVEN_COINS) $(GIVEN_LOOKBACK) $(if $(WINDOW),--window $(WINDOW)) $(if $(HEADS),--heads $(HEADS)) \
	  $(if $(TRIALS),--trials $(TRIALS)) $(if $(FOLDS),--folds $(FOLDS)) $(if $(BO_TRIALS),--bo-trials $(BO_TRIALS)) \
	  --rl $(if $(filter 1 yes,$(RL)),yes,$(if $(filter 0 no,$(RL)),no,$(or $(RL),auto))) $(if $(ALGO),--algo $(ALGO)) \
	  $(if $(STEPS),--steps $(STEPS)) $(if $(SIZE),--size $(SIZE)) $(if $(MIN_PF),--min-pf $(MIN_PF)) \
	  $(if $(NIGHT),--night $(NIGHT))

forward_test: $(INSTALLED) ## A candidate on bars later than its training (CANDIDATE=var/models/candidate_linear.pt MIN_PF=1.5)
	@$(BIN)/python -W ignore::DeprecationWarning -m ci.forward_test --home $(HUB_HOME) --path $(CANDIDATE) \
	  $(GIVEN_COINS) $(if $(MIN_PF),--min-pf $(MIN_PF)) $(if $(MIN_TRADES),--min-trades $(MIN_TRADES)) \
	  $(if $(MAX_DD),--max-dd $(MAX_DD)) $(call asked,$(STRICT),--strict)

ci_pipeline: $(INSTALLED) ## Tests, training, forward test, MLflow, S3 or folder, webhook, challenger (LOCAL=0: no S3 and hub of its own)
	@$(BIN)/python -W ignore::DeprecationWarning -m ci.pipeline --home $(HUB_HOME) $(if $(filter 0,$(LOCAL)),,--local-s3) \
	  $(if $(FROM),--from $(FROM))

bench: $(INSTALLED) ## Measure everything that has a peer and a floor (ONLY=decision|join|online|backtest|environment|sampling)
	@$(BIN)/python -m ci.bench $(if $(ONLY),--only $(ONLY))

EXPERIMENTS ?= zero_edge judgement_power planted embeddings rl burst
experiments: $(INSTALLED) ## Routing, judgement and search with a known truth, what embeddings and RL give; many seeds, resumable
	@failed=0; for name in $(EXPERIMENTS); do echo "experiment $$name"; \
	  $(BIN)/python -W ignore::DeprecationWarning -m ci.experiments.$$name $(if $(SEEDS),--seeds $(SEEDS)) --home $(HUB_HOME) || failed=1; done; exit $$failed

drift: $(INSTALLED) ## Measure the drift figures on a recorded year (HUB_DATA_DIR=folder of recorded bars)
	@$(BIN)/python -m ci.experiments.drift --home $(HUB_HOME)

chaos: $(INSTALLED) ## Break the feature store of a running hub and check every answer (FAULTS=frozen,flushed)
	@$(BIN)/python -m ci.chaos $(if $(FAULTS),--faults $(FAULTS))

browser: $(INSTALLED) ## The ops page in headless Chromium (needs a Chromium: on Debian, apt-get install chromium)
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { echo "no Chromium found: install one first, on Debian with 'apt-get install chromium'"; exit 1; }
	@$(BIN)/pytest tests/browser

screenshots: $(INSTALLED) ## Pictures of MLflow's pages for the docs, of a running hub (needs a Chromium)
	@$(BIN)/python -m ci.screenshots $(if $(MLFLOW),--mlflow $(MLFLOW))

lock: ## Write requirements.lock from what .venv holds
	@$(BIN)/pip freeze --exclude-editable | grep -viE '^(pip|setuptools|wheel)==' \
	  | sed 's/+cpu$$//' > requirements.lock  # a build's local label is not on every index

clean: ## Remove the virtual environment and build output (never HUB_HOME)
	@rm -rf $(VENV) build *.egg-info
