"""Bad input is answered as the contract says, and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog

from tests.integration.serve.world import Acme, Person, World, problem

pytestmark = pytest.mark.asyncio(loop_scope="package")

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"repository_id": "999999"}, 404, "not_found"),
        ({"repository_id": "no number"}, 422, "invalid_input"),
        ({"prompt": ""}, 422, "prompt_empty"),
        ({"prompt": " \n\t "}, 422, "prompt_empty"),
        ({"prompt": "x" * (MIB + 1)}, 413, "too_large"),
        ({"prompt": "x" * (3 * MIB)}, 413, "too_large"),
        ({"prompt": "a \x00 in it"}, 422, "invalid_input"),
        ({"prompt": "\ud800"}, 422, "invalid_input"),
        ({"prompt": 7}, 422, "invalid_input"),
        ({"branch": "two..dots"}, 422, "invalid_branch"),
        ({"branch": "-begins"}, 422, "invalid_branch"),
        ({"branch": "ends.lock"}, 422, "invalid_branch"),
        ({"branch": "with space"}, 422, "invalid_branch"),
        ({"branch": ""}, 422, "invalid_branch"),
        ({"branch": "main"}, 409, "branch_taken"),
        ({"branch": "main/below"}, 409, "branch_taken"),
        ({"on_branch": "nowhere"}, 422, "invalid_input"),
        ({"agent": "nobody"}, 422, "invalid_input"),
        ({"provider": "the/moon"}, 422, "invalid_input"),
        ({"colour": "blue"}, 422, "invalid_input"),
    ],
)
async def test_a_task_that_cannot_be_made(
    acme: Acme, change: dict[str, Any], status: int, code: str
) -> None:
    body = {"repository_id": acme.repository, "prompt": "say x", "agent": "scripted", **change}
    before = await tasks(acme)

    # Surrogates and the like travel as JSON escapes.
    answer = await acme.ada.http.post(
        f"{acme.place}/tasks",
        content=json.dumps(body),
        headers={"Origin": acme.world.settings.public_url, "Content-Type": "application/json"},
    )

    said = problem(answer, status, code)
    assert "x" * 100 not in json.dumps(said)
    assert await tasks(acme) == before


async def tasks(acme: Acme) -> list[dict[str, Any]]:
    await acme.world.calm()
    return await acme.world.fetch(
        "SELECT (SELECT count(*) FROM repository_task) AS tasks,"
        " (SELECT count(*) FROM rt_entity WHERE kind IN ('task', 'task_session')) AS begun,"
        " (SELECT count(*) FROM rt_entity WHERE kind = 'repository') AS repositories"
    )


async def test_a_branch_that_a_task_has_is_taken(acme: Acme) -> None:
    await acme.create("say mine", branch="mine/alone")
    before = await tasks(acme)

    body = {"repository_id": acme.repository, "prompt": "say too", "branch": "mine/alone"}
    answer = await acme.ada.call("POST", f"{acme.place}/tasks", {**body, "agent": "scripted"})

    problem(answer, 409, "branch_taken")
    assert await tasks(acme) == before


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 50_000, 400),
        (b'"text"', 422),
        (b"", 422),
        (b"null", 422),
    ],
)
async def test_a_body_that_is_not_what_it_should_be(
    acme: Acme, content: bytes, status: int
) -> None:
    before = await acme.world.totals()

    answer = await acme.ada.http.post(
        f"{acme.place}/tasks",
        content=content,
        headers={"Origin": acme.world.settings.public_url, "Content-Type": "application/json"},
    )

    problem(answer, status, "invalid_input")
    assert await acme.world.totals() == before


async def test_a_body_of_unknown_length_is_counted(acme: Acme) -> None:
    async def chunks() -> Any:
        yield b'{"repository_id": "1", "prompt": "'
        for _ in range(40):
            yield b"x" * 65536

    before = await acme.world.totals()
    answer = await acme.ada.http.post(
        f"{acme.place}/tasks",
        content=chunks(),
        headers={"Origin": acme.world.settings.public_url, "Content-Type": "application/json"},
    )

    problem(answer, 413, "too_large")
    assert await acme.world.totals() == before


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/nowhere", 404, "not_found"),
        ("GET", "/api/app/", 404, "not_found"),
        ("PUT", "/api/app", 405, "invalid_input"),
        ("GET", "{acme}/tasks/none", 404, "not_found"),
        ("GET", "{acme}/tasks/UPPER", 404, "not_found"),
        ("GET", "{acme}/tasks/%00", 404, "not_found"),
        ("GET", "{acme}/tasks/a%2Fb", 404, "not_found"),
        ("GET", "{acme}/tasks?limit=0", 422, "invalid_input"),
        ("GET", "{acme}/tasks?limit=x", 422, "invalid_input"),
        ("GET", "{acme}/tasks?status=sleepy", 422, "invalid_input"),
        ("GET", "{acme}/tasks?cursor=@", 422, "invalid_input"),
        ("GET", "{acme}/tasks?cursor=WzFd", 422, "invalid_input"),
        ("GET", "{acme}/tasks?q=%00", 422, "invalid_input"),
        ("GET", "{acme}/history?repository=x", 422, "invalid_input"),
        ("GET", "{acme}/repositories/999999", 404, "not_found"),
        ("GET", "{acme}/repositories/99999999999999999999999", 404, "not_found"),
        ("GET", "{acme}/repositories/999999/branches", 404, "not_found"),
        ("POST", "{acme}/tasks/none/push", 404, "not_found"),
        ("POST", "{acme}/tasks/none/kill", 404, "not_found"),
        ("DELETE", "{acme}/runtime-issues/none", 404, "not_found"),
        ("DELETE", "/api/app/tokens/none", 404, "not_found"),
        ("GET", "/api/commands/none", 404, "not_found"),
    ],
)
async def test_a_place_that_is_not_there(
    acme: Acme, method: str, path: str, status: int, code: str
) -> None:
    before = await acme.world.totals()

    answer = await acme.ada.call(method, path.format(acme=acme.place))

    problem(answer, status, code)
    assert await acme.world.totals() == before


async def test_a_session_refuses_what_it_cannot_use(acme: Acme) -> None:
    talk = acme.session(await acme.create("say refuse"))
    await talk.open()
    before = await acme.world.totals()
    ask = acme.ada.call

    problem(await ask("POST", f"{talk.place}/messages", {"text": " "}), 422, "prompt_empty")
    large = {"text": "x" * (MIB + 1)}
    problem(await ask("POST", f"{talk.place}/messages", large), 413, "too_large")
    problem(await ask("POST", f"{talk.place}/messages", {"text": 1}), 422, "invalid_input")
    gone = f"{talk.place}/permissions/99"
    problem(await ask("POST", gone, {"option_id": "yes"}), 404, "not_found")
    problem(await ask("GET", f"{talk.place}/events?after=-1"), 422, "invalid_input")
    problem(await ask("GET", f"{talk.place}/events?after={2**63}"), 422, "invalid_input")
    other = talk.place.replace(talk.id, "none")
    problem(await ask("POST", f"{other}/messages", {"text": "x"}), 404, "not_found")
    problem(await ask("GET", other), 404, "not_found")

    after = await acme.world.totals()
    assert after["rt_entity"] == before["rt_entity"]
    assert after["task_session_message"] == before["task_session_message"]


async def test_work_that_needs_a_ready_task_says_so(acme: Acme) -> None:
    task = await acme.create("say not ready")
    place = f"{acme.place}/tasks/{task['id']}"

    problem(await acme.ada.call("POST", f"{place}/push"), 409, "wrong_state")
    problem(await acme.ada.call("PUT", f"{place}/pull-request", {}), 409, "wrong_state")
    problem(await acme.ada.call("POST", f"{place}/retry"), 409, "wrong_state")


async def test_an_error_names_the_field_and_never_its_value(ada: Person) -> None:
    secret = "hunter2" * 20
    answer = await ada.call("POST", "/api/app/tokens", {"name": secret})

    said = problem(answer, 422, "invalid_input")
    assert "body.name" in said["detail"]
    assert "hunter2" not in json.dumps(said)


async def test_a_request_id_goes_in_and_comes_out(world: World) -> None:
    async with world.browser() as http:
        kept = await http.get("/api/nowhere", headers={"X-Request-Id": "mine-1"})
        made = await http.get("/healthz", headers={"X-Request-Id": "not <mine>"})

    assert kept.headers["x-request-id"] == kept.json()["request_id"] == "mine-1"
    assert made.headers["x-request-id"] != "not <mine>"


async def test_the_turn_that_a_request_asked_for_is_logged_with_its_id(
    world: World, ada: Person
) -> None:
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))
    merge = structlog.contextvars.merge_contextvars
    try:
        with structlog.testing.capture_logs(processors=[merge]) as events:
            answer = await ada.call(
                "POST", "/api/app/tokens", {"name": "logged"}, X_Request_Id="mine-2"
            )
    finally:
        structlog.configure(wrapper_class=before)

    assert answer.status_code == 201
    ours = {e["event"]: e for e in events if e.get("request_id") == "mine-2"}
    assert ours["request"]["path"] == "/api/app/tokens"
    assert ours["turn_taken"]["actor_key"] == "app"
    assert ours["turn_taken"]["message_kind"].startswith("app_shell.")
    assert {"epoch", "message_id", "command_id"} <= ours["turn_taken"].keys()
