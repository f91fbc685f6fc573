"""The client of a chaos run against a server that breaks in every way that a client meets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from foundry_ray.cli.chaos.client import Follower, Patient
from foundry_ray.cli.demo.client import Browser
from foundry_ray.cli.ports import choose_free
from foundry_ray.core.errors import WrongState
from tests.helpers import eventually

Answer = Callable[[Request], Response]


class Server:
    """Gives the prepared answers one after the other, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.answers: list[Answer] = []
        [self.port] = choose_free(1)

    async def __call__(self, request: Request) -> Response:
        await request.body()
        self.asked.append(request)
        return self.answers.pop(0)(request)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A real HTTP server."""
    made = Server()
    route = Route("/{rest:path}", made.__call__, methods=["GET", "POST"])
    config = uvicorn.Config(Starlette(routes=[route]), port=made.port, log_level="critical")
    running = uvicorn.Server(config)
    serving = asyncio.create_task(running.serve())
    await eventually(lambda: running.started)
    yield made
    running.should_exit = running.force_exit = True
    await serving


@pytest.fixture
async def patient(server: Server) -> AsyncIterator[Patient]:
    """The client."""
    async with Browser(f"http://127.0.0.1:{server.port}") as browser:
        yield Patient(browser)


def problem(status: int, code: str) -> Answer:
    body = json.dumps({"code": code, "detail": "no"})
    return lambda _: Response(body, status, media_type="application/problem+json")


def good(body: Any, status: int = 200) -> Answer:
    return lambda _: JSONResponse(body, status)


async def test_what_does_not_come_from_foundry_is_asked_for_again_by_the_same_name(
    server: Server, patient: Patient
) -> None:
    server.answers = [
        lambda _: PlainTextResponse("no such route", 404),
        lambda _: PlainTextResponse("deployment failed", 500),
        problem(503, "store_unavailable"),
        problem(429, "busy"),
        good({"done": True}),
    ]

    assert await patient.command("POST", "/api/x", {"a": 1}, key="k1") == {"done": True}

    assert [request.headers["idempotency-key"] for request in server.asked] == ["k1"] * 5
    assert [await request.json() for request in server.asked] == [{"a": 1}] * 5
    assert patient.count["asked again"] == 4


async def test_a_refusal_is_final(server: Server, patient: Patient) -> None:
    server.answers = [problem(409, "wrong_state")]

    with pytest.raises(WrongState):
        await patient.command("POST", "/api/x", key="k1")


async def test_a_command_that_is_answered_later_is_waited_for(
    server: Server, patient: Patient
) -> None:
    server.answers = [
        good({"command_id": "c1", "url": "/api/commands/c1"}, 202),
        good({"state": "pending"}),
        good({"state": "done", "answer": 7}),
    ]

    assert await patient.command("POST", "/api/x", key="k1") == 7


async def test_the_moment_at_which_a_request_has_left_is_before_its_answer(
    server: Server, patient: Patient
) -> None:
    order: list[str] = []

    def answer(_: Request) -> Response:
        order.append("answered")
        return JSONResponse({})

    server.answers = [answer]

    await patient.command("POST", "/api/x", {}, key="k1", left=lambda: order.append("left"))

    assert order == ["left", "answered"]


# -- the stream --------------------------------------------------------------------------


def stream(*events: tuple[str, str, dict[str, Any]]) -> Answer:
    async def body() -> AsyncIterator[str]:
        for kind, cursor, data in events:
            yield f"event: {kind}\nid: {cursor}\ndata: {json.dumps(data)}\n\n"

    return lambda _: StreamingResponse(body(), media_type="text/event-stream")


def snapshot(last: int) -> dict[str, Any]:
    data = {"status": "idle", "last_index": last, "revision": 1, "permission_requests": []}
    return {"topic": "session:1", "data": data}


def append(*indexes: int) -> dict[str, Any]:
    payload = {"method": "_foundry/turn_ended", "params": {"message_id": "p1"}}
    return {"events": [{"index": index, "payload": payload} for index in indexes]}


async def followed(patient: Patient, last: int) -> Follower:
    follower = Follower(patient, ("task:1", "session:1"), "/events")
    try:
        await follower.until(lambda: follower.last == last, f"event {last}", 10)
    finally:
        await follower.end()
    return follower


async def test_a_stream_that_broke_is_resumed_with_its_cursor(
    server: Server, patient: Patient
) -> None:
    server.answers = [
        stream(("snapshot", "c1", snapshot(0)), ("append", "c2", append(1, 2))),
        lambda _: PlainTextResponse("no replica", 503),
        stream(("append", "c3", append(3))),
        *[stream()] * 100,
    ]

    follower = await followed(patient, 3)

    cursors = [request.headers.get("last-event-id") for request in server.asked[:3]]
    assert cursors == [None, "c2", "c2"]
    assert follower.problems == []
    assert follower.ended["p1"]["message_id"] == "p1"


async def test_what_is_older_than_a_snapshot_is_read_and_not_a_gap(
    server: Server, patient: Patient
) -> None:
    events = append(1, 2)["events"]
    server.answers = [
        stream(("snapshot", "c1", snapshot(2)), ("append", "c2", append(2, 3))),
        good({"items": events}),
        *[stream()] * 100,
    ]

    follower = await followed(patient, 3)

    assert follower.problems == []


async def test_a_gap_and_a_repetition_are_noted(server: Server, patient: Patient) -> None:
    server.answers = [
        stream(
            ("snapshot", "c1", snapshot(0)),
            ("append", "c2", append(1)),
            ("append", "c3", append(1)),
            ("append", "c4", append(4)),
        ),
        *[stream()] * 100,
    ]

    follower = await followed(patient, 4)

    assert follower.problems == ["index 1 came after 1", "index 4 came after 1"]
