"""What a night consists of: steps, what each one needs, and the commands that they are.

    features ─┬─ drift
              ├─ supervised ───────┬─ forward ── register
              ├─ rl.ppo, rl.sac ───┘   (weekly)
              └─ bo ── param_start

A step that fails stops those that need it, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from policies.errors import InvalidInput
from train.steps import key_of

OUT, FOLDER_OF = "{out}", "{of %s}"  # in a command: the step's own folder, and that of a finished step


@dataclass(frozen=True)
class Step:
    """A command that can be repeated and does nothing twice.

    needs: steps that must be done. needs_one_of: of these, at least one. makes: patterns below HUB_HOME of files that
    it leaves; those of tonight are kept with the step. skipped: why it is not run tonight; "": it is.
    """

    name: str
    command: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    needs_one_of: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    skipped: str = ""

    @property
    def before(self) -> tuple[str, ...]:
        return (*self.needs, *self.needs_one_of)


class Plan:
    """Steps in the order in which they begin: each one stands behind those that it needs, or InvalidInput."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps: dict[str, Step] = {}
        self._keys: dict[str, str] = {}
        for step in steps:
            unknown = set(step.before) - set(self.steps)
            if unknown or step.name in self.steps:
                raise InvalidInput(f"plan.{step.name}", "a new name behind the steps that it needs", sorted(unknown))
            self.steps[step.name] = step
            self._keys[step.name] = key_of(step.command, dict(step.environment), [self._keys[n] for n in step.before])

    def folder_of(self, name: str) -> str:
        """Names the step with all that it depends on: with other arguments, or after others, it is another step."""
        return f"{name}-{self._keys[name][:8]}"

    @property
    def key(self) -> str:
        return key_of(self._keys)

    def after(self, name: str) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps.values() if name in step.before)


def with_folders(command: Sequence[str], out: str, folders: Mapping[str, str]) -> tuple[str, ...]:
    """The command as it is run. folders: by step, of those that have one."""
    found = []
    for argument in command:
        for name, folder in ((OUT, out), *((FOLDER_OF % step, folder) for step, folder in folders.items())):
            argument = argument.replace(name, folder)
        found.append(argument)
    return tuple(found)
