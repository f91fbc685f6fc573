from __future__ import annotations

import pytest

from foundry_ray.core import keys, topics
from foundry_ray.core.errors import NotFound

REPOSITORY = keys.repository(42, 97)
TASK = keys.task(REPOSITORY, "01jabc")
SESSION = keys.session(TASK, "01jdef")

KEYS = [
    (keys.APP, "app", "app_shell", None, "app"),
    (keys.APP_GITHUB, "app/github", "github_state", "app", "app"),
    (keys.user(7), "app/user/7", "user_github_data", "app", "app"),
    (keys.organization(42), "org/42", "organization", None, "org/42"),
    (keys.github("42"), "org/42/github", "github_state", "org/42", "org/42"),
    (REPOSITORY, "org/42/repo/97", "repository", "org/42", "org/42"),
    (keys.history(REPOSITORY), "org/42/repo/97/history", "history", REPOSITORY, "org/42"),
    (TASK, "org/42/repo/97/task/01jabc", "task", REPOSITORY, "org/42"),
    (SESSION, f"{TASK}/session/01jdef", "task_session", TASK, "org/42"),
    (keys.status_sync(SESSION), f"{SESSION}/status-sync", "session_status_sync", SESSION, "org/42"),
    (
        keys.sandbox(42, "local", "01jxyz"),
        "org/42/sandbox/local/01jxyz",
        "sandbox_instance",
        "org/42",
        "org/42",
    ),
]


@pytest.mark.parametrize(("built", "text", "kind", "parent", "root"), KEYS)
def test_a_key_tells_kind_parent_and_root(
    built: str, text: str, kind: str, parent: str | None, root: str
) -> None:
    assert built == text
    assert keys.kind_of(built) == kind
    assert keys.parent_of(built) == parent
    assert keys.root_of(built) == root


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "/",
        "org",
        "org/",
        "org/x",
        "org/42/",
        "org/42/repo",
        "org/42/repo/x",
        "org/42/repo/97/task",
        "org/42/repo/97/task/",
        "org/42/repo/97/task/..",
        "org/42/repo/97/task/UPPER",
        "org/42/repo/97/task/a/b",
        f"org/42/repo/97/task/{'x' * 65}",
        "org/42/repo/97/histories",
        "org/42\n",
        "org/42/repo/97\n",
        " org/42",
        "app/user/octocat",
        "app/organization/1",
        "user/7",
        "org/42/sandbox/local",
        "org/-1",
        "org/४२",
        "org/42\0",
    ],
)
def test_what_is_no_key_is_refused_at_the_door(garbage: str) -> None:
    with pytest.raises(NotFound):
        keys.kind_of(garbage)


def test_parts_of_a_key_can_be_read() -> None:
    assert keys.organization_id(SESSION) == "42"
    assert keys.repository_id(SESSION) == "97"
    assert keys.last_id(SESSION) == "01jdef"


def test_topics_are_made_of_keys() -> None:
    assert topics.organization(SESSION) == "organization:42"
    assert topics.repository(SESSION) == "repository:42/97"
    assert topics.task(SESSION) == "task:42/01jabc"
    assert topics.session(SESSION) == "session:42/01jabc/01jdef"
