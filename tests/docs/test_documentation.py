"""What the documentation names exists: files, make targets, commands, routes, settings, classes and tests."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from hub.api import build_api
from hub.cli import cli
from hub.config import HubConfig, ServerConfig

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROOMS = ("hub", "train", "ci", "router", "sentry", "feature_repo", "policies", "tests", "docs")
SOURCES = "\n".join(path.read_text() for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))

LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")
PATH = re.compile(rf"(?<![\w/.-])(?:(?:{'|'.join(ROOMS)})/[\w./-]*|Makefile|pyproject\.toml|requirements\.lock)")
MAKE = re.compile(r"\bmake ([a-z][a-z_]*)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
COMMAND = re.compile(r"(?:^|[`/\s])hub ([a-z-]+)\b(?!/)")
ROUTE = re.compile(r"(?<![\w.])/(?:v1/[\w/{}-]+|healthz|readyz|metrics|ops)\b")
SETTING = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)(?:: [^`]+)?`")
TEST = re.compile(r"\btest_\w+")
CLASS = re.compile(r"`([A-Z][a-z]+[A-Z]\w+)(?:\.(\w+))?`")


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def document(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture
def text(document: Path) -> str:
    return document.read_text()


@pytest.fixture
def code(text: str) -> str:
    return "\n".join(CODE.findall(text))


def test_every_path_exists(text: str) -> None:
    named = {match.rstrip("./") for match in PATH.findall(text)}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_link_leads_to_a_file_and_a_heading(document: Path, text: str) -> None:
    for target, heading in LINK.findall(text):
        if target.startswith("http"):
            continue
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in headings}


def test_every_make_target_exists(code: str) -> None:
    targets = set(re.findall(r"^([a-z_]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(MAKE.findall(code)) <= targets


def test_every_command_exists(code: str) -> None:
    assert set(COMMAND.findall(code)) <= set(cli.commands)


def test_every_route_exists(text: str) -> None:
    nobody: Any = None
    app = build_api(nobody, nobody, {"bot": "b", "ops": "o"}, ServerConfig(), "", nobody, nobody)
    routes = [re.compile(re.sub(r"{\w+}", "[^/]+", route.path)) for route in app.routes if isinstance(route, APIRoute)]
    named = set(ROUTE.findall(text))
    assert [path for path in sorted(named) if not any(route.fullmatch(path) for route in routes)] == []


def test_every_dotted_name_is_a_setting_or_a_module(text: str) -> None:
    wrong = [name for name in SETTING.findall(text) if not (_is_setting(name) or _is_module(name) or _is_file(name))]
    assert wrong == []


def test_every_class_and_test_exists(text: str) -> None:
    for name, member in CLASS.findall(text):
        assert re.search(rf"^class {name}\b", SOURCES, re.MULTILINE), name
        assert not member or re.search(rf"\b(def )?{member}\b", SOURCES), f"{name}.{member}"
    defined = set(re.findall(r"def (test_\w+)", SOURCES)) | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    assert set(TEST.findall(text)) <= defined


def test_the_checks_can_fail() -> None:
    assert PATH.findall("see `hub/nowhere.py`, not HUB_HOME/policies/") == ["hub/nowhere.py"]
    assert MAKE.findall("`make nothing`") == ["nothing"]
    assert COMMAND.findall("`hub nothing`") == ["nothing"]
    assert ROUTE.findall("GET http://127.0.0.1:8000/v1/nothing") == []
    assert ROUTE.findall("`/v1/nothing`") == ["/v1/nothing"]
    assert not _is_setting("router.nothing")
    assert not _is_module("router.nothing")


def _is_setting(name: str) -> bool:
    kind: Any = HubConfig
    for part in name.split("."):
        if not dataclasses.is_dataclass(kind) or part not in {field.name for field in dataclasses.fields(kind)}:
            return False
        kind = typing.get_type_hints(kind)[part]
    return True


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def _is_file(name: str) -> bool:
    return name.rpartition(".")[2] in ("json", "sqlite", "yaml", "toml") or name == "torch.load"
