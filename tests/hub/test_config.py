"""The configuration: the user's contract as documented, strange keys and values refused by name."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from hub.config import DEFAULT_FILE, HubConfig, LearningConfig, grids_of, home_of, load, parse, parse_recorded
from policies.errors import InvalidInput
from policies.types import STRATEGIES, Rollout

# The contract, word by word.
LEARNING = """
enabled: true
allocation_mode: hybrid
allocation_hybrid_blend: 0.5
param_mode: bandit
memory: {enabled: true, knn_k: 8, max_episodes: 50000, embedder: none}
bandits:
  update_cadence_sec: 60
  reward_cvar_alpha: 0.2
  reward_scale: 1.0
  per_strategy:
    default:   {leverage_grid: [2,4,6,8,10], tp_grid_pct: [0.006,0.008,0.010,0.012,0.015],
                sl_grid_pct: [0.004,0.005,0.006,0.008,0.010], min_conf_grid: [0.50,0.55,0.60,0.65,0.70]}
    momentum:  {leverage_grid: [6,10,14,18,20]}
    breakout:  {leverage_grid: [6,10,14,18,20]}
    scalping:  {leverage_grid: [4,8,10,12]}
    sniping:   {leverage_grid: [8,12,16,20,25]}
bo: {enabled: false, min_samples: 100, update_cadence_sec: 180}
rl: {enabled: false, policy_path: models/policy_rl.pt, blend_weight: 0.25}
"""


def refused(values: dict[str, Any]) -> InvalidInput:
    with pytest.raises(InvalidInput) as found:
        parse(values)
    return found.value


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


# -- defaults ---------------------------------------------------------------------------------------------------------


def test_the_learning_block_of_the_file_is_the_contract() -> None:
    assert yaml.safe_load(DEFAULT_FILE.read_text())["learning"] == yaml.safe_load(LEARNING)
    assert load(environment={}).learning == parse({"learning": yaml.safe_load(LEARNING)}).learning


def test_the_file_says_what_is_the_default_anyway() -> None:
    from_file, built_in = asdict(load(environment={})), asdict(HubConfig())
    assert from_file["learning"]["bandits"].pop("per_strategy")
    built_in["learning"]["bandits"].pop("per_strategy")
    assert from_file == built_in


@pytest.mark.parametrize("url", ["", "s3://bucket", "s3://bucket/a/b", "file:///srv/artefacts", "/srv/artefacts"])
def test_artefacts_lie_in_a_folder_or_in_a_bucket(url: str) -> None:
    assert parse({"storage": {"artefacts_url": url}}).storage.artefacts_url == url


def test_a_fresh_installation_starts_in_shadow() -> None:
    assert load(environment={}).rollout.mode is Rollout.SHADOW
    assert parse({}).rollout.mode is Rollout.SHADOW


def test_what_is_recorded_parses_to_the_same_configuration_with_the_same_hash() -> None:
    config = parse({"rollout": {"mode": "hybrid"}, "router": {"challenger_share": 0.2}})
    again = parse(config.configuration())
    assert again.configuration() == config.configuration()
    assert again.configuration_hash == config.configuration_hash
    assert config.configuration_hash != HubConfig().configuration_hash


def test_what_no_decision_depends_on_is_not_recorded() -> None:
    for values in ({"server": {"port": 9000}}, {"storage": {"artefacts_url": "s3://bucket/prefix"}},
                   {"registration": {"trusted_keys": ["ab" * 32]}}):
        assert parse(values).configuration_hash == HubConfig().configuration_hash


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "near"), [
    ("lerning", "learning"), ("learning.enable", "enabled"), ("learning.memory.knnk", "knn_k"),
    ("learning.bandits.reward_scal", "reward_scale"), ("learning.bandits.per_strategy.momentun", "momentum"),
    ("learning.bandits.per_strategy.default.tp_grid", "tp_grid_pct"), ("router.chalenger_share", "challenger_share"),
    ("sentry.halt_drawdown", "halt_drawdown_percent"), ("shield.max_leverag", "max_leverage"),
    ("evidence.alfa", "alpha"), ("server.prt", "port"), ("storage.artefact_url", "artefacts_url"),
    ("storage.s3_endpoint", "s3_endpoint_url"), ("storage.mlflow_uri", "mlflow_url"), ("registraton", "registration"),
    ("registration.trusted_key", "trusted_keys"),
])
def test_an_unknown_key_is_refused_at_any_depth_with_the_one_that_was_meant(path: str, near: str) -> None:
    error = refused(nested(path, 1))
    assert error.field == path
    assert error.hint == f"did you mean {near}?"
    assert near in error.legal


def test_an_unknown_key_like_no_other_is_refused_with_the_known_ones() -> None:
    error = refused({"zzz": 1})
    assert (error.field, error.hint) == ("zzz", "")
    assert "learning" in error.legal


@pytest.mark.parametrize(("path", "value"), [
    ("learning.allocation_hybrid_blend", 1.01), ("learning.allocation_hybrid_blend", -0.01),
    ("learning.allocation_hybrid_blend", math.nan), ("learning.allocation_mode", "random"),
    ("learning.memory.knn_k", 0), ("learning.memory.knn_k", 2.5), ("learning.memory.max_episodes", 0),
    ("learning.bandits.reward_cvar_alpha", 0), ("learning.bandits.reward_cvar_alpha", 1),
    ("learning.bandits.reward_scale", math.inf), ("learning.bandits.update_cadence_sec", 0),
    ("learning.bandits.per_strategy.default.leverage_grid", [0.5]),
    ("learning.bandits.per_strategy.default.tp_grid_pct", [0.01, math.nan]), ("learning.enabled", "perhaps"),
    ("learning", []), ("learning.memory", 3), ("rollout.mode", "half"), ("rollout.blend", 2),
    ("router.challenger_share", 0.5), ("router.horizon_s", 0), ("sentry.book_drawdown_percent", 0),
    ("sentry.halt_drawdown_percent", math.nan), ("shield.min_conf", 0.4), ("shield.max_leverage", 101),
    ("evidence.alpha", 1), ("evidence.c", math.inf), ("evidence.c", math.nan), ("ladder.min_profit_factor", math.inf),
    ("market.symbols", []), ("market.signal", -1), ("server.port", 0), ("server.port", 65_536), ("ledger.seed", -1),
    ("storage.artefacts_url", "gs://bucket"), ("storage.artefacts_url", "s3://"), ("storage.artefacts_url", "var/x"),
    ("storage.s3_endpoint_url", "127.0.0.1:9000"), ("storage.mlflow_url", "sqlite:///x"),
    ("registration.trusted_keys", ["ab"]), ("registration.trusted_keys", "ab" * 32),
])
def test_a_value_out_of_its_range_is_refused_by_name(path: str, value: Any) -> None:
    error = refused(nested(path, value))
    assert error.field.startswith(path)
    assert error.legal


@pytest.mark.parametrize(("path", "value"), [
    ("learning.memory.embedder", "sbert-mini"), ("learning.memory.embedder", "openai-text-ada"),
])
def test_what_this_version_does_not_have_is_refused_and_not_ignored(path: str, value: Any) -> None:
    error = refused(nested(path, value))
    assert error.field == path
    assert "in this version" in error.legal


def test_param_mode_bo_needs_the_optimiser() -> None:
    assert refused(nested("learning.param_mode", "bo")).field == "learning.param_mode"
    assert parse({"learning": {"param_mode": "bo", "bo": {"enabled": True}}}).learning.param_mode == "bo"
    assert parse({"learning": {"bo": {"enabled": True}}}).learning.param_mode == "bandit", "it may be watched first"


# -- where it comes from ----------------------------------------------------------------------------------------------


def test_single_values_come_from_the_environment_and_win(tmp_path: Path) -> None:
    path = tmp_path / "hub.yaml"
    path.write_text("rollout: {mode: hybrid, blend: 0.4}\n")
    environment = {"HUB_CONFIG": str(path), "HUB_ROLLOUT__MODE": "full", "HUB_LEARNING__MEMORY__KNN_K": "3",
                   "HUB_LEARNING__ENABLED": "false", "HUB_MARKET__SYMBOLS": "[BTC]", "HUB_HOME": "/x",
                   "OTHER__KEY": "1"}
    config = load(environment=environment)
    assert (config.rollout.mode, config.rollout.blend) == (Rollout.FULL, 0.4)
    assert (config.learning.memory.knn_k, config.learning.enabled) == (3, False)
    assert config.market.symbols == ("BTC",)


@pytest.mark.parametrize(("name", "text", "field"), [
    ("HUB_ROLLOUT__MOD", "full", "rollout.mod"), ("HUB_LEARNING__MEMORY__KNN_K", "many", "learning.memory.knn_k"),
    ("HUB_ROLLOUT__MODE__DEEPER", "1", "rollout.mode"),
])
def test_a_variable_that_fits_nowhere_is_refused(name: str, text: str, field: str) -> None:
    with pytest.raises(InvalidInput) as found:
        load(environment={name: text})
    assert found.value.field.startswith(field)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "hub.yaml"
    path.write_text(content)
    with pytest.raises(InvalidInput, match="HUB_CONFIG"):
        load(path, {})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        load(environment={"HUB_CONFIG": str(tmp_path / "none.yaml")})


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "hub.yaml").write_text("")
    assert load(tmp_path / "hub.yaml", {}) == HubConfig()


def test_the_home_is_the_variables_or_var() -> None:
    assert home_of({"HUB_HOME": "/srv/hub"}) == Path("/srv/hub")
    assert home_of({}) == Path("var").resolve()


# -- grids ------------------------------------------------------------------------------------------------------------


def learning_with(**per_strategy: Any) -> LearningConfig:
    return parse(nested("learning.bandits.per_strategy", per_strategy)).learning


def test_a_grid_falls_back_to_default_and_default_to_the_built_in() -> None:
    learning = learning_with(default={"tp_grid_pct": [0.02]}, momentum={"leverage_grid": [3]})
    momentum, scalping = grids_of(learning, "momentum"), grids_of(learning, "scalping")
    assert (momentum.leverage_grid, momentum.tp_grid_pct) == ((3,), (0.02,))
    assert (scalping.leverage_grid, scalping.tp_grid_pct) == ((2, 4, 6, 8, 10), (0.02,))
    assert momentum.min_conf_grid == scalping.min_conf_grid == (0.50, 0.55, 0.60, 0.65, 0.70)


def test_every_strategy_has_its_documented_grids() -> None:
    learning = load(environment={}).learning
    own = {"momentum": (6, 10, 14, 18, 20), "breakout": (6, 10, 14, 18, 20), "scalping": (4, 8, 10, 12),
           "sniping": (8, 12, 16, 20, 25)}
    for strategy in STRATEGIES:
        grids = grids_of(learning, strategy)
        assert grids.leverage_grid == own.get(strategy, (2, 4, 6, 8, 10))
        assert grids.sl_grid_pct == (0.004, 0.005, 0.006, 0.008, 0.010)


def test_what_was_recorded_before_a_key_existed_means_what_it_meant_then() -> None:
    recorded = HubConfig().configuration()
    del recorded["router"]["first_decisions"]
    assert parse_recorded(recorded).router.first_decisions == 0
    assert parse_recorded(HubConfig().configuration()) == HubConfig()
    assert parse(recorded).router.first_decisions == HubConfig().router.first_decisions, "a file that leaves it out"


def test_a_ledger_of_an_older_version_opens_without_the_keys_that_are_gone() -> None:
    recorded = HubConfig().configuration()
    recorded["router"]["update_cadence_sec"] = 60
    recorded["lookback"] = {"bars": 5}
    assert parse_recorded(recorded) == HubConfig()
