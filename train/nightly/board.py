"""Progress for people: a line when a step begins, when it says something new, and when it ends."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from train.estimate import described
from train.nightly.night import FAILED, Ended
from train.nightly.plan import Plan


class NightBoard:
    """before: by step, the seconds that earlier nights took; the last one is what is expected."""

    def __init__(self, plan: Plan, before: Mapping[str, Sequence[float]], console: Console,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._plan, self._console, self._clock = plan, console, clock
        self._expected = {name: seconds[-1] for name, seconds in before.items() if seconds}
        self._open = {step.name for step in plan.steps.values() if not step.skipped}
        self._began_s: dict[str, float] = {}

    def begins(self, step: str) -> None:
        self._began_s[step] = self._clock()
        self._say(step, f"begins, {self.time_left()}")

    def goes_on(self, step: str, line: str) -> None:
        self._say(step, line)

    def ended(self, how: Ended, before: bool) -> None:
        self._open.discard(how.step)
        self._began_s.pop(how.step, None)
        if before:
            self._say(how.step, f"was {how.state} before this run")
            return
        took = f" in {described(how.seconds)}" if how.exit_code is not None else ""
        code = "" if how.state != FAILED else f" (exit {how.exit_code})"
        left = f" [{self.time_left()}]" if self._open else ""
        self._say(how.step, f"{how.state}{took}{code}: {how.said}{left}")

    def time_left(self) -> str:
        """By what the last night took; steps that no night has finished count like the median of the others."""
        if not self._expected:
            return "no earlier night to estimate from"
        other = statistics.median(self._expected.values())
        left = sum(max(0.0, self._expected.get(step, other) - self._spent(step)) for step in self._open)
        return f"about {described(left)} left by the last night"

    def _spent(self, step: str) -> float:
        return self._clock() - self._began_s[step] if step in self._began_s else 0.0

    def _say(self, step: str, text: str) -> None:
        over = len(self._plan.steps) - len(self._open)
        self._console.print(f"[{over}/{len(self._plan.steps)}] {step}: {text}", highlight=False, markup=False,
                            soft_wrap=True)
