"""What the command line prints."""

from __future__ import annotations

import io

from rich.console import Console

from hub.cli import TABLE_WIDTH, heads_table


def test_table_of_heads_cuts_no_figure() -> None:
    head = {"alias": "catboost_v1", "role": "production", "share": 0.9, "decisions": 1_234_567, "green_lit": True,
            "paused": True, "judgement": "throttle", "rule": "profit_factor", "figure": 0.5, "e_value": 24.4,
            "lifetime": {"trades": 50_500, "profit_factor": 3.14, "max_drawdown_percent": 10.68}}
    page = io.StringIO()
    Console(width=TABLE_WIDTH, file=page).print(
        heads_table({"heads": [head], "llm_only_share": 0.1, "llm_only_decisions": 5}))
    said = page.getvalue()
    for part in ("catboost_v1", "production, green", "90%", "1234567", "50500", "3.14", "10.68", "24.40",
                 "throttle: profit_factor 0.50, paused", "llm_only"):
        assert part in said
    assert "…" not in said
