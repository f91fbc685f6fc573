"""The house rules that no linter knows."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlmodel import SQLModel

import foundry_ray
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.messages import Message, decode, registry
from foundry_ray.core.settings import PREFIX, Settings
from foundry_ray.runtime.actor import Actor
from foundry_ray.runtime.workflow import Step, Workflow
from tests.samples import sample

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "foundry_ray"
FLATS = sorted(p.name for p in (SOURCE / "actors").iterdir() if (p / "messages.py").exists())

# What a flat may hold (docs/adr/0002); a room that grew becomes a package of its name.
ROOMS = {"messages", "rules", "tables", "steps", "workflows", "read_models", "actor"}
EXTRA_ROOMS = {"task": {"workbench"}}

# Not for importing: Alembic runs the first, the others are started as programs.
NOT_IMPORTED = re.compile(r"\.migrations\.(env|versions\..*)$|\.__main__$|\.testing\.|\.shim$")


def every_module() -> list[ModuleType]:
    found = pkgutil.walk_packages(foundry_ray.__path__, "foundry_ray.")
    return [importlib.import_module(m.name) for m in found if not NOT_IMPORTED.search(m.name)]


MODULES = every_module()


def room(module: ModuleType, name: str) -> bool:
    return bool(re.fullmatch(rf"foundry_ray\.actors\.\w+\.{name}(\.\w+)?", module.__name__))


def flat_of(name: str) -> str | None:
    match = re.match(r"foundry_ray\.actors\.(\w+)", name)
    return match and match.group(1)


MESSAGES = sorted(registry().items())
ERRORS = sorted(
    {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, FoundryError)
    },
    key=lambda cls: cls.__name__,
)
STEPS = sorted(
    {
        (flat_of(module.__name__) or "", value.name)
        for module in MODULES
        if room(module, "steps")
        for value in vars(module).values()
        if isinstance(value, Step)
    }
)
WORKFLOWS = [
    value
    for module in MODULES
    if room(module, "workflows")
    for value in vars(module).values()
    if isinstance(value, type)
    and issubclass(value, Workflow)
    and value.__module__ == module.__name__
    and hasattr(value, "kind")
]


# -- messages ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind, _ in MESSAGES])
def test_a_message_is_frozen_closed_and_survives_json(kind: str) -> None:
    cls = registry()[kind]
    config = cls.model_config
    message = sample(cls)

    assert config.get("frozen")
    assert config.get("extra") == "forbid"
    assert message.kind == kind
    assert decode(kind, message.model_dump(mode="json")) == message
    assert cls.model_validate_json(message.model_dump_json()) == message


def test_a_kind_begins_with_the_actor_that_owns_it() -> None:
    for kind, cls in MESSAGES:
        owner = flat_of(cls.__module__) or "runtime"
        assert kind.split(".")[0] == owner, cls


def test_every_message_class_has_a_kind() -> None:
    for module in MODULES:
        for cls in vars(module).values():
            if (
                isinstance(cls, type)
                and issubclass(cls, Message)
                and cls.__module__ == module.__name__
                and room(module, "messages")
            ):
                assert registry().get(cls.model_fields["kind"].default) is cls


def test_a_row_is_never_a_message() -> None:
    for _, cls in MESSAGES:
        assert not issubclass(cls, SQLModel)


# -- errors --------------------------------------------------------------------


@pytest.mark.parametrize("cls", ERRORS)
def test_an_error_survives_pickling_with_its_context(cls: type[FoundryError]) -> None:
    error = cls("It broke.", hint="Mend it.", where="here", times=3)

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is cls
    assert (copy.message, copy.hint, copy.context) == (
        "It broke.",
        "Mend it.",
        {"where": "here", "times": 3},
    )


@pytest.mark.parametrize("cls", ERRORS)
def test_an_error_has_a_code_and_a_sentence(cls: type[FoundryError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", cls.code)
    assert str(cls()).endswith(".")


# -- flats ---------------------------------------------------------------------


@pytest.mark.parametrize("flat", FLATS)
def test_a_flat_holds_only_known_rooms(flat: str) -> None:
    found = {p.stem for p in (SOURCE / "actors" / flat).iterdir() if not p.name.startswith("_")}

    assert found <= ROOMS | EXTRA_ROOMS.get(flat, set())


def test_a_table_carries_the_name_of_its_owner() -> None:
    for module in MODULES:
        for cls in vars(module).values():
            if not (isinstance(cls, type) and issubclass(cls, SQLModel)):
                continue
            table = SQLModel.metadata.tables.get(str(getattr(cls, "__tablename__", "")))
            if table is None or cls.__module__ != module.__name__:
                continue
            owner = flat_of(module.__name__)
            prefixes = (owner, f"{owner}_", "rm_") if owner else ("rt_",)
            assert table.name == prefixes[0] or table.name.startswith(prefixes[1:] or prefixes)
            if owner:
                assert "actor_key" in table.primary_key.columns, table.name


def test_an_actor_type_is_the_name_of_its_flat() -> None:
    for module in MODULES:
        if room(module, "actor"):
            types = {
                value.actor_type
                for value in vars(module).values()
                if isinstance(value, type)
                and issubclass(value, Actor)
                and value.__module__ == module.__name__
            }
            assert types == {flat_of(module.__name__)}


def test_step_names_are_those_written_down() -> None:
    """A stored step name never changes; a new meaning is a new name."""
    file = ROOT / "tests" / "step_names.txt"

    assert [f"{flat}/{name}" for flat, name in STEPS] == file.read_text().split()


def written_step(step: Step[Any, Any]) -> str:
    return step.name if step.undo is None else f"{step.name}<{step.undo.name}"


def test_a_workflow_keeps_the_steps_that_are_written_down_for_its_version() -> None:
    """A run ends by the version with which it began; another order is another version."""
    file = ROOT / "tests" / "workflow_steps.txt"
    written = [
        f"{workflow.kind} {workflow.version}: {' '.join(written_step(s) for s in workflow.steps)}"
        for workflow in sorted(WORKFLOWS, key=lambda w: (w.kind, w.version))
    ]

    assert written == file.read_text().splitlines()


def test_every_workflow_belongs_to_the_actor_whose_name_it_bears() -> None:
    listed = [
        (flat_of(module.__name__), workflow)
        for module in MODULES
        if room(module, "actor")
        for actor in vars(module).values()
        if isinstance(actor, type)
        and issubclass(actor, Actor)
        and actor.__module__ == module.__name__
        for workflow in actor.workflows
    ]

    assert {workflow.kind.split(".")[0] == flat for flat, workflow in listed} == {True}
    assert {workflow for _, workflow in listed} == set(WORKFLOWS)
    names = [(workflow.kind, workflow.version) for workflow in WORKFLOWS]
    assert sorted(set(names)) == sorted(names)


# -- documents -----------------------------------------------------------------


def test_every_error_code_is_documented_and_no_other() -> None:
    text = (ROOT / "docs/reference/errors.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)`", text, re.MULTILINE))

    assert documented == {cls.code for cls in ERRORS}


def test_every_setting_is_documented_and_no_other() -> None:
    text = (ROOT / "docs/reference/settings.md").read_text()
    documented = set(re.findall(rf"^\| `({PREFIX}[A-Z_]+)`", text, re.MULTILINE))
    made_once = {"instance_id"}

    assert documented == {
        f"{PREFIX}{name.upper()}" for name in Settings.model_fields if name not in made_once
    }


def test_every_rule_of_the_system_is_written_down_once() -> None:
    text = (ROOT / "docs/rules.md").read_text()

    assert re.findall(r"^- \*\*S(\d+)\*\*", text, re.MULTILINE) == [str(n) for n in range(1, 38)]


def test_links_between_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_project_names_no_registry_and_no_machine() -> None:
    lock = (ROOT / "requirements.lock").read_text()

    assert "://" not in lock
