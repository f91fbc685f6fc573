"""The page about the actor tree is kept in step with the real tree (S31)."""

from __future__ import annotations

from pathlib import Path

from foundry_ray.bootstrap import ACTORS
from foundry_ray.cli.tree import describe, page

PAGE = Path(__file__).parents[2] / "docs" / "actor-tree.md"


def test_the_page_says_what_the_code_says() -> None:
    assert PAGE.read_text() == page(), "run: foundry tree > docs/actor-tree.md"


def test_every_kind_has_keys_messages_and_tables_of_its_own_name() -> None:
    shown = {kind["kind"]: kind for kind in describe()}

    assert set(shown) == {actor.actor_type for actor in ACTORS}
    for name, kind in shown.items():
        assert kind["keys"]
        assert kind["messages"]
        assert kind["tables"]
        for table in kind["tables"]:
            assert table.startswith(name)
        for message in kind["messages"]:
            assert message["kind"].startswith((f"{name}.", "runtime."))
