"""Step: a small search for supervised heads on the job's cluster; candidates, and none of them handed over."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from ci.pipeline.cluster import environment_of
from ci.pipeline.settings import PipelineSettings
from ci.pipeline.step import FAILED, Say, Stopped, command, leave_note
from policies.bundle import read_bundle

TRAINED, REPORT = "trained", "retrain_sup"


def training(settings: PipelineSettings) -> list[str]:
    """The command, which goes on where an interrupted one of the same settings was."""
    given: dict[str, Any] = {
        "home": settings.home, "market": settings.market, "coins": settings.coins, "lookback": settings.lookback,
        "heads": settings.heads, "trials": settings.trials, "folds": settings.folds, "seed": settings.seed,
        "signal": settings.signal, "generated-bars": settings.generated_bars, "hub-url": settings.url}
    if settings.data_dir:
        given["data-dir"] = settings.data_dir
    return [sys.executable, "-W", "ignore", "-m", "train.retrain_sup",
            *(part for name, value in given.items() for part in (f"--{name}", str(value))), "--keep-back"]


def run(settings: PipelineSettings, say: Say) -> str:
    asked = training(settings)
    returned = subprocess.run(asked, env={**os.environ, **environment_of(settings.home)}, check=False).returncode
    if returned:
        raise Stopped(FAILED if returned < 0 else returned, f"the training ended with {returned}")
    made = candidates(settings)
    leave_note(settings.home, TRAINED, made)
    return "candidates, best first: " + ", ".join(str(one["alias"]) for one in made)


def candidates(settings: PipelineSettings) -> list[dict[str, Any]]:
    """Those of the search that was reported last, best first: head, alias, policy_id, path."""
    import orjson

    report = orjson.loads((settings.home / "reports" / f"{REPORT}.json").read_bytes())
    found = []
    for told in report["heads"]:
        path = settings.home / "models" / f"candidate_{told['head']}.pt"
        bundle = read_bundle(path)
        if bundle.policy_id != told["policy_id"]:
            raise Stopped(FAILED, f"{path} is not the candidate of the report {REPORT}.json: another training has "
                                  f"written there")
        found.append({"head": told["head"], "alias": bundle.manifest.alias, "policy_id": bundle.policy_id,
                      "path": str(path)})
    return found


main = command(run, "Search for supervised heads in a small way.")

if __name__ == "__main__":
    main()
