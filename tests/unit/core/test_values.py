"""Secrets, patience, identifiers, messages, clocks."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from pydantic import SecretStr, ValidationError

from foundry_ray.core.clock import SystemClock
from foundry_ray.core.errors import Busy, Internal, InvalidInput
from foundry_ray.core.facts import Trouble
from foundry_ray.core.ids import new_id, new_uuid
from foundry_ray.core.messages import SYSTEM, Failure, IssueReported, Person, decode, registry
from foundry_ray.core.retry import RetryPolicy
from foundry_ray.core.secrets import Sealer, fingerprint, random_token
from foundry_ray.testing.clock import FakeClock

SEALER = Sealer(b"a key of at least thirty-two bytes")


# -- secrets -----------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["", "plain", "ключ 🔑", "x" * 100_000])
def test_what_is_sealed_opens_for_its_purpose(secret: str) -> None:
    sealed = SEALER.seal(secret, "purpose")

    assert SEALER.open(sealed, "purpose").get_secret_value() == secret
    assert not secret or secret not in sealed


def test_sealing_twice_gives_two_texts() -> None:
    assert SEALER.seal("x", "p") != SEALER.seal(SecretStr("x"), "p")


def test_another_purpose_another_key_or_a_changed_text_do_not_open() -> None:
    sealed = SEALER.seal("secret", "purpose")
    key_id, _, text = sealed.partition(".")
    changed = f"{key_id}.{text[:-6]}{'A' if text[-6] != 'A' else 'B'}{text[-5:]}"

    for sealer, given, purpose in (
        (SEALER, sealed, "another"),
        (Sealer(b"another key of thirty-two bytes...."), sealed, "purpose"),
        (SEALER, changed, "purpose"),
    ):
        with pytest.raises(Internal) as refusal:
            sealer.open(given, purpose)
        assert "secret" not in str(refusal.value.context)


def test_a_derived_secret_depends_on_key_purpose_and_text() -> None:
    one = SEALER.derive("pkce", "state")

    assert one == SEALER.derive("pkce", "state")
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", one)
    others = {
        SEALER.derive("pkce", "other"),
        SEALER.derive("p", "kce\0state"),
        Sealer(b"another key of thirty-two bytes....").derive("pkce", "state"),
    }
    assert one not in others
    assert len(others) == 3


def test_tokens_are_random_and_stored_as_fingerprints() -> None:
    tokens = {random_token("fdy_") for _ in range(100)}

    assert len(tokens) == 100
    assert all(re.fullmatch(r"fdy_[A-Za-z0-9_-]{43}", token) for token in tokens)
    assert fingerprint("x") == fingerprint("x") != fingerprint("y")


# -- patience -----------------------------------------------------------------------


def test_delays_double_up_to_the_longest_and_are_half_random() -> None:
    policy = RetryPolicy(first_delay=timedelta(seconds=1), max_delay=timedelta(seconds=10))

    for attempt, ceiling in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (1000, 10)):
        delays = {policy.delay(attempt).total_seconds() for _ in range(50)}
        assert min(delays) >= ceiling / 2
        assert max(delays) <= ceiling
        assert len(delays) > 10, "many that fail together do not come back together"


def test_no_policy_waits_for_days() -> None:
    """A policy in days is a policy in seconds with a unit forgotten."""
    import foundry_ray.actors.github_state.steps as github
    import foundry_ray.actors.sandbox_instance.steps as sandbox
    import foundry_ray.actors.session_status_sync.steps as sync
    from foundry_ray.runtime.workflow import Step

    steps = [v for m in (github, sandbox, sync) for v in vars(m).values() if isinstance(v, Step)]
    assert len(steps) > 15
    for step in steps:
        assert step.retry.max_delay <= timedelta(minutes=5), step.name
        assert step.timeout <= timedelta(minutes=10), step.name


# -- identifiers ----------------------------------------------------------------------


def test_ids_are_unique_sortable_by_time_and_safe_in_a_key() -> None:
    ids = [new_id() for _ in range(5000)]

    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-hjkmnp-tv-z]{26}", one) for one in ids)
    times = [one[:10] for one in ids]
    assert times == sorted(times)


def test_ids_cannot_be_guessed_from_one_another() -> None:
    ids = [new_id() for _ in range(1000)]

    assert len({one[10:20] for one in ids}) == 1000


def test_uuids_are_random() -> None:
    assert new_uuid() != new_uuid()
    assert new_uuid().version == 4


# -- messages ------------------------------------------------------------------------


FAILURE = Failure(fingerprint="f", code="c", message="m", entity="e", workflow="w", attempt=1,
                  will_retry=False)  # fmt: skip


def test_a_message_is_found_by_its_kind() -> None:
    event = IssueReported(failure=FAILURE)

    assert registry()["runtime.issue_reported"] is IssueReported
    assert decode(event.kind, event.model_dump(mode="json")) == event


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("nobody.knows", {}),
        ("runtime.issue_reported", {}),
        ("runtime.issue_reported", {"failure": FAILURE.model_dump(), "more": 1}),
        ("runtime.issue_reported", {"kind": "runtime.child_failed", "failure": {}}),
    ],
)
def test_a_body_that_does_not_fit_is_invalid_input(kind: str, body: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        decode(kind, body)


def test_values_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        SYSTEM.id = "x"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Person(unknown="x")  # type: ignore[call-arg]


def test_two_messages_cannot_have_one_kind() -> None:
    from typing import Literal

    from foundry_ray.core.messages import Event

    with pytest.raises(TypeError, match="two messages"):

        class Another(Event):
            kind: Literal["runtime.issue_reported"] = "runtime.issue_reported"


def test_trouble_is_an_error_for_people() -> None:
    error = Busy("Too much.", hint="Wait.", stderr="x" * 5000)

    trouble = Trouble.of(error)

    assert (trouble.code, trouble.message, trouble.hint) == ("busy", "Too much.", "Wait.")
    assert trouble.retryable
    assert len(trouble.log_tail) == 4000


# -- clocks ---------------------------------------------------------------------------


def test_a_fake_clock_goes_only_when_told_and_never_back() -> None:
    clock = FakeClock()
    start = clock.now()

    assert clock.now() == start
    assert clock.advance(90) - start == timedelta(seconds=90)
    assert clock.advance(timedelta(hours=1)) == clock.now()
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_every_clock_is_aware_and_in_utc() -> None:
    for clock in (SystemClock(), FakeClock()):
        assert clock.now().utcoffset() == timedelta(0)
