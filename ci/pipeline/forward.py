"""Step: the forward test of every candidate; the chain stops here if none passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ci.forward_test import forward_tested, symbols_of
from ci.pipeline.settings import PipelineSettings
from ci.pipeline.step import NOT_PASSED, Say, Stopped, command, leave_note, read_note
from ci.pipeline.train_small import TRAINED
from feature_repo.market import Market
from policies.bundle import read_bundle
from train.forward import NotPlayable
from train.forward_figures import REPORT, as_json, sentence_of, write_page
from train.training_set import open_market

TESTED = "forward"


def run(settings: PipelineSettings, say: Say) -> str:
    trained = read_note(settings.home, TRAINED, "train_small")
    market = open_market(settings.market, settings.data_dir or None, settings.symbols, settings.seed, settings.signal,
                         settings.generated_bars)
    tested = [_tested(settings, one, market, say) for one in trained]
    leave_note(settings.home, TESTED, tested)
    passed = [one for one in tested if one["passed"]]
    if not passed:
        raise Stopped(NOT_PASSED, "no candidate passed: " + "; ".join(f"{one['alias']}: {', '.join(one['missed'])}"
                                                                      for one in tested))
    return f"{len(passed)} of {len(tested)} passed, the first is {passed[0]['alias']}"


def _tested(settings: PipelineSettings, one: dict[str, Any], market: Market, say: Say) -> dict[str, Any]:
    bundle = read_bundle(Path(one["path"]))
    try:
        result = forward_tested(settings.home, bundle, market, settings.forward(symbols_of(bundle, settings.coins)))
    except NotPlayable as error:
        say(str(error))
        return {**one, "passed": False, "missed": [str(error)]}
    say(f"{one['alias']}: {'passed' if result.passed else 'not passed'}: {sentence_of(result)}")
    page = write_page(settings.home / "reports", result, {"market": market.describe(), "path": one["path"]},
                      f"{REPORT}_{one['head']}")
    return {**as_json(result), **one, "page": str(page)}


main = command(run, "Play every candidate on bars later than its training.")

if __name__ == "__main__":
    main()
