"""Every code has one place in HTTP."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from foundry_ray.core.errors import Busy, FoundryError, NotFound, RateLimited
from foundry_ray.runtime.kernel import Passivated
from foundry_ray.serve import errors
from foundry_ray.store.engine import CommitConflict, CommitUnknown, StoreUnavailable

ROOT = Path(__file__).resolve().parents[3]
CODE = re.compile(r"^\| `([a-z_]+)`", re.MULTILINE)
OUTSIDE_TEXT, _, INSIDE_TEXT = (
    (ROOT / "docs/reference/errors.md").read_text().partition("## Within Foundry")
)


def test_every_code_of_the_reference_has_a_status_but_those_within_foundry() -> None:
    assert errors.STATUS.keys() == set(CODE.findall(OUTSIDE_TEXT))


@pytest.mark.parametrize("cls", [StoreUnavailable, CommitConflict, CommitUnknown, Passivated])
def test_what_stays_inside_is_unavailable_outside(cls: type[FoundryError]) -> None:
    answer = errors.answer(cls(where="inside"))

    said = json.loads(bytes(answer.body))
    assert cls.code in CODE.findall(INSIDE_TEXT)
    assert (answer.status_code, said["code"]) == (503, "unavailable")
    assert said["context"] == {}
    assert answer.headers["retry-after"]


def test_only_callers_mistakes_show_their_context() -> None:
    said = errors.problem(NotFound("No.", where="here"))
    inside = errors.problem(FoundryError("No.", where="here"))

    assert said.context == {"where": "here"}
    assert inside.context == {}
    assert inside.status == 500


@pytest.mark.parametrize(
    ("error", "seconds"), [(Busy(), "2"), (RateLimited(retry_after=41.6), "42")]
)
def test_who_must_wait_is_told_how_long(error: FoundryError, seconds: str) -> None:
    answer = errors.answer(error)

    assert answer.status_code == 429
    assert answer.headers["retry-after"] == seconds
