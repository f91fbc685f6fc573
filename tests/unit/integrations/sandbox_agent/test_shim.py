"""The shim, as a process between a pipe and a tiny agent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import eventually
from tests.unit.integrations.sandbox_agent.rig import Rig, runs


async def test_every_line_is_journalled_with_consecutive_numbers(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.prompt("hello", "m1")

        records = rig.journal()

    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    told = [
        (record["direction"], record["message_id"], record["payload"].get("method"))
        for record in records
    ]
    assert told == [
        ("note", None, None),
        ("in", None, "initialize"),
        ("out", None, None),
        ("in", None, "session/new"),
        ("out", None, None),
        ("in", "m1", "session/prompt"),
        ("out", None, "session/update"),
        ("out", "m1", None),
        ("end", "m1", None),
    ]


async def test_what_goes_out_says_where_it_stands_in_the_journal(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.prompt("stream 3", "m1")
        places = [line["_foundry"] for line in rig.told if "_foundry" in line]
        content = rig.segments()[0].read_bytes()

    assert [place["seq"] for place in places] == list(range(1, len(places) + 1))
    for place in places:
        line = content[: place["end"]].rstrip(b"\n").rpartition(b"\n")[2]
        assert json.loads(line)["seq"] == place["seq"]
        assert place["segment"] == 1


async def test_a_message_sent_again_joins_the_running_turn(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        first = await rig.begin("hold", "m1")
        second = await rig.request("session/prompt", **rig.prompt_params("hold", "m1"))
        await rig.send(method="session/cancel", params={"sessionId": "s1"})

        answers = [await rig.answer_to(first), await rig.answer_to(second)]

    assert [answer["result"] for answer in answers] == [{"stopReason": "cancelled"}] * 2
    assert rig.seen() == ["hold"]


async def test_an_ended_message_is_answered_from_the_journal_even_by_a_later_shim(
    tmp_path: Path,
) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.prompt("hello", "m1")
        again = await rig.prompt("hello", "m1")
    async with Rig(tmp_path) as later:
        await later.open()
        much_later = await later.prompt("hello", "m1")

    assert again["result"] == much_later["result"] == {"stopReason": "end_turn"}
    assert rig.seen() == ["hello"]


async def test_an_answer_may_be_had_as_soon_as_the_message_is_journalled(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        states = []
        for _ in range(2):
            answer = await rig.prompt("hold", "m1", foundry_reply="journalled")
            states.append(answer["result"]["_meta"]["foundry"]["state"])
        await eventually(lambda: rig.seen() == ["hold"])
        await rig.send(method="session/cancel", params={"sessionId": "s1"})
        await eventually(lambda: "m1" in rig.ends())
        answer = await rig.prompt("hold", "m1", foundry_reply="journalled")

    assert [*states, answer["result"]["_meta"]["foundry"]["state"]] == ["given", "running", "ended"]
    assert rig.ends() == {"m1": {"stop_reason": "cancelled"}}


@pytest.mark.parametrize("keep", [False, True])
async def test_an_agent_sees_our_marks_only_if_it_asked_for_them(
    tmp_path: Path, keep: bool
) -> None:
    async with Rig(tmp_path, *(["--keep-meta"] if keep else [])) as rig:
        await rig.open()
        await rig.prompt("hello", "m1", theirs=1)

    params = json.loads(rig.witness.read_text())
    assert params["_meta"] == ({"foundry_message_id": "m1", "theirs": 1} if keep else {"theirs": 1})


async def test_an_agent_that_exits_in_a_turn_ends_it_and_the_next_prompt_goes_on(
    tmp_path: Path,
) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        answer = await rig.prompt("die 7", "m1")
        refused = await rig.prompt("hello", "m2")
        await rig.initialize()
        unknown = await rig.prompt("hello", "m2")
        await rig.ask("session/load", sessionId="s1", cwd="/", mcpServers=[])
        given = await rig.prompt("hello", "m2")

    assert answer["error"]["data"]["code"] == "agent_exited"
    assert answer["error"]["data"]["exit_code"] == 7
    assert answer["error"]["data"]["stderr"] == "last words\n"
    assert (
        refused["error"]["data"]["code"] == unknown["error"]["data"]["code"] == "session_not_open"
    )
    assert given["result"] == {"stopReason": "end_turn"}
    assert rig.seen() == ["die 7", "hello"]
    assert rig.ends()["m1"]["error"]["code"] == "agent_exited"


async def test_a_turn_whose_shim_was_killed_ends_and_is_not_given_again(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.begin("hold", "m1")
        agent = rig.agent_pid()
        await rig.kill()
    async with Rig(tmp_path) as later:
        await later.open()
        again = await later.prompt("hold", "m1")

        await eventually(lambda: not runs(agent))

    assert again["error"]["data"]["code"] == "agent_exited"
    assert later.seen() == ["hold"]
    assert later.ends()["m1"]["error"]["code"] == "agent_exited"


async def test_an_agent_that_ignores_its_dead_shim_is_killed_by_the_next(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.begin("mute", "m1")  # sleeps, so that it does not see its input end
        agent = rig.agent_pid()
        await rig.kill()
    assert runs(agent)
    async with Rig(tmp_path) as later:
        await later.open()

        await eventually(lambda: not runs(agent))


async def test_an_answer_in_the_journal_without_its_end_is_the_end(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.prompt("hello", "m1")
    segment = rig.segments()[0]
    lines = segment.read_bytes().splitlines(keepends=True)
    assert json.loads(lines.pop())["direction"] == "end"
    segment.write_bytes(b"".join(lines))

    async with Rig(tmp_path) as later:
        await later.open()

    assert later.ends() == {"m1": {"stop_reason": "end_turn"}}


async def test_a_torn_last_line_is_cut_off_and_the_numbers_go_on(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.prompt("hello", "m1")
    before = len(rig.journal())
    with rig.segments()[-1].open("ab") as segment:
        segment.write(b'{"seq":%d,"at_ms":1,"direction":"out","mess' % (before + 1))

    async with Rig(tmp_path) as later:
        await later.open()
        await later.prompt("hello again", "m2")

    numbers = [record["seq"] for record in later.journal()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > before
    assert set(later.ends()) == {"m1", "m2"}


async def test_segments_hold_a_thousand_lines_and_are_named_by_their_first(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.prompt("stream 2500", "m1")

    counts = {int(path.stem): len(path.read_bytes().splitlines()) for path in rig.segments()}
    total = sum(counts.values())
    assert counts == {1: 1000, 1001: 1000, 2001: total - 2000}
    assert [record["seq"] for record in rig.journal()] == list(range(1, total + 1))


async def test_lines_of_several_megabytes_pass_in_both_directions(tmp_path: Path) -> None:
    size = 5_000_000
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.prompt(f"big {size}", "m1")
        await rig.prompt("x" * size, "m2")

    told = [line for line in rig.told if line.get("method") == "session/update"]
    assert len(told[0]["params"]["update"]["content"]["text"]) == size
    assert len(rig.seen()[1]) == size
    assert len(rig.segments()) > 1  # big segments are left early


async def test_a_question_is_answered_once_and_by_its_own_name(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        names = []
        for message_id in ("m1", "m2"):
            turn = await rig.begin("ask", message_id)
            question = await rig.hear_method("session/request_permission")
            names.append(question["id"])
            for outcome in ("yes", "no"):
                await rig.send(id=names[0], result={"outcome": outcome})
            if message_id == "m2":
                await rig.send(id=question["id"], result={"outcome": "later"})
            assert (await rig.answer_to(turn))["result"] == {"stopReason": "end_turn"}

    assert len(set(names)) == 2
    answers = [
        record["payload"]
        for record in rig.journal()
        if record["direction"] == "in" and "method" not in record["payload"]
    ]
    assert [(answer["id"], answer["result"]["outcome"]) for answer in answers] == [
        (names[0], "yes"),
        (names[1], "later"),
    ]


async def test_a_request_that_nobody_offered_is_refused_by_the_shim(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.prompt("read", "m1")

    said = [line for line in rig.told if line.get("method") == "session/update"]
    assert "-32601" in said[-1]["params"]["update"]["content"]["text"]


async def test_what_a_loaded_session_tells_of_its_past_is_a_note(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.initialize()
        await rig.ask("session/load", sessionId="s9", cwd="/", mcpServers=[])

    notes = [record["payload"] for record in rig.journal() if record["direction"] == "note"]
    assert notes[-1]["event"] == "replayed"
    assert not [line for line in rig.told if line.get("method") == "session/update"]


async def test_loading_an_open_session_does_not_reach_the_agent(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.ask("session/set_mode", sessionId="s1", modeId="b")
        before = len(rig.journal())
        answer = await rig.ask("session/load", sessionId="s1", cwd="/", mcpServers=[])

        assert len(rig.journal()) == before

    assert answer["result"]["modes"] == {"currentModeId": "b"}


async def test_initialize_is_answered_without_a_second_agent(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        agent = rig.agent_pid()
        again = await rig.initialize()

        assert rig.agent_pid() == agent
    assert again["result"] == {"agentCapabilities": {"loadSession": True}}


async def test_a_missing_agent_program_is_told_as_such(tmp_path: Path) -> None:
    async with Rig(tmp_path, agent=["/nowhere/agent"]) as rig:
        answer = await rig.initialize()

    assert answer["error"]["data"]["code"] == "agent_missing"


async def test_hanging_up_ends_the_agent_and_its_turn(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        await rig.begin("hold", "m1")
        agent = rig.agent_pid()
        await rig.hang_up()

        assert not runs(agent)

    assert rig.ends()["m1"]["error"]["code"] == "agent_exited"


async def test_an_agent_that_closed_its_output_is_ended(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        answer = await rig.prompt("mute", "m1")

    assert answer["error"]["data"]["code"] == "agent_exited"


async def test_a_child_that_keeps_the_pipes_does_not_hide_the_agents_exit(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        answer = await rig.prompt("leave-child 5", "m1")

    assert answer["error"]["data"]["exit_code"] == 5


async def test_what_is_no_message_is_noted_and_not_passed_on(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        answer = await rig.prompt("noise", "m1")

    assert answer["result"] == {"stopReason": "end_turn"}
    notes = [record["payload"] for record in rig.journal() if record["direction"] == "note"]
    assert notes[-1] == {"event": "noise", "text": "this is no JSON"}


async def test_an_agents_error_is_the_end_of_its_turn(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.open()
        answer = await rig.prompt("fail no idea", "m1")

    assert answer["error"]["message"] == "no idea"
    assert rig.ends()["m1"]["error"]["code"] == "agent_error"


async def test_a_second_shim_waits_for_the_first_to_let_go_of_the_journal(tmp_path: Path) -> None:
    async with Rig(tmp_path) as first, Rig(tmp_path) as second:
        await first.open()
        await first.begin("hold", "m1")
        waiting = await second.request("initialize", _meta={"foundry": {"server_id": "srv"}})
        await first.hang_up()

        assert "result" in await second.answer_to(waiting)

    numbers = [record["seq"] for record in second.journal()]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_a_server_id_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        answer = await rig.initialize("../elsewhere")

    assert answer["error"]["code"] == -32602
