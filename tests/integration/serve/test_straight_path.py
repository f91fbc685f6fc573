"""What every user does: sign in, look, make a task, talk to the agent."""

from __future__ import annotations

import pytest

from foundry_ray.actors.task.messages import ChangesTaken
from foundry_ray.core.facts import Changes as ChangesFacts
from foundry_ray.core.facts import FileChange
from foundry_ray.serve import models
from tests.helpers import eventually
from tests.integration.serve.world import Acme, Person, World, note, question

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_signed_in_people_see_themselves_and_their_organizations(ada: Person) -> None:
    seen = models.App.model_validate(await ada.get("/api/app"))

    assert seen.auth.status == "signed_in"
    assert seen.user is not None
    assert seen.user.login == "ada"
    assert {one.login: one.role for one in seen.organizations}["acme"] == "admin"
    assert seen.active_organization_id in {one.id for one in seen.organizations}


async def test_anonymous_callers_are_signed_out(world: World) -> None:
    async with world.browser() as http:
        answer = await http.get("/api/app")

    assert answer.status_code == 200
    assert answer.json()["auth"] == {"status": "signed_out"}


async def test_an_organization_is_shown_whole(acme: Acme) -> None:
    task = await acme.create("say whole")

    seen = models.Organization.model_validate(await acme.ada.get(acme.place))

    assert seen.github.installation_status == "connected"
    assert seen.github.install_url.startswith(acme.world.forge.url)
    assert [one.full_name for one in seen.repositories] == ["acme/demo"]
    assert task["id"] in {one.id for one in seen.tasks}
    assert seen.counts.tasks == len(seen.tasks)


async def test_repositories_and_branches_are_shown(acme: Acme) -> None:
    task = await acme.create("say branches", branch="shown/here")

    page = await acme.ada.get(f"{acme.place}/repositories")
    one = await acme.ada.get(f"{acme.place}/repositories/{acme.repository}")
    listed = await acme.ada.get(f"{acme.place}/repositories/{acme.repository}/branches")

    assert models.Page[models.RepositorySummary].model_validate(page).items[0].id == one["id"]
    branches = models.Items[models.Branch].model_validate(listed).items
    known = {branch.name: branch for branch in branches}
    assert known["main"].sha
    assert known["shown/here"].task_id == task["id"]
    assert known["shown/here"].sha is None


async def test_a_task_is_there_at_once_and_shows_what_went_wrong(acme: Acme) -> None:
    made = await acme.create("say there", title="There")
    task = models.Task.model_validate(made)
    acme.host_sandbox(made)

    assert task.provisioning.phase == "queued"
    assert [session.id for session in task.sessions] == [task.active_session_id]

    async def failed() -> models.Task | None:
        seen = models.Task.model_validate(await acme.ada.get(f"{acme.place}/tasks/{task.id}"))
        return seen if seen.status == "error" else None

    seen = await eventually(failed)
    assert seen is not None
    assert seen.provisioning.error is not None
    assert seen.provisioning.error.code == "sandbox_agent_missing"
    issues = await acme.ada.get(f"{acme.place}/runtime-issues")
    listed = models.Items[models.RuntimeIssue].model_validate(issues).items
    assert "sandbox_agent_missing" in {issue.code for issue in listed}


async def test_a_session_runs_from_message_to_answer(acme: Acme) -> None:
    talk = acme.session(await acme.create("say hello"))
    await talk.open()

    queued = await acme.ada.call("POST", f"{talk.place}/messages", {"text": "and then this"})
    await talk.agent(note("hello"), question(7))
    asking = models.Session.model_validate(await talk.until("needs_you"))
    [request] = asking.permission_requests
    answered = await acme.ada.call(
        "POST", f"{talk.place}/permissions/{request.id}", {"option_id": "yes"}
    )

    assert queued.status_code == 202
    assert models.Sent.model_validate(queued.json()).state == "queued"
    assert [message.text for message in asking.queued] == ["and then this"]
    assert answered.status_code == 200
    assert models.PermissionRequest.model_validate(answered.json()).state == "answered"

    events = await acme.ada.get(f"{talk.place}/events")
    items = models.Transcript.model_validate(events).items
    assert [event.index for event in items] == [1, 2]
    assert events["next_after"] == 2
    assert (await acme.ada.get(f"{talk.place}/events?after=1&limit=1"))["items"] == [
        events["items"][1]
    ]


async def test_stop_answers_when_the_turn_is_over(acme: Acme) -> None:
    talk = acme.session(await acme.create("hang"))
    await talk.open()

    late = await acme.ada.call("POST", f"{talk.place}/stop")  # nobody ends the turn in time
    said = late.json()
    await talk.end()

    async def done() -> models.CommandState | None:
        state = models.CommandState.model_validate(await acme.ada.get(said["url"]))
        return state if state.state == "done" else None

    assert late.status_code == 202
    state = await eventually(done)
    assert state is not None
    assert state.status == 200
    assert state.answer["status"] == "idle"
    again = await acme.ada.call("POST", f"{talk.place}/stop")
    assert again.status_code == 200
    assert models.SessionSummary.model_validate(again.json()).status == "idle"


async def test_a_further_session_is_there_at_once(acme: Acme) -> None:
    task = await acme.create("say first")
    await acme.session(task).open()
    place = f"{acme.place}/tasks/{task['id']}"

    made = await acme.ada.call("POST", f"{place}/sessions", {"title": "Second"})
    session = models.SessionSummary.model_validate(made.json())
    whole = models.Task.model_validate(await acme.ada.get(place))

    assert made.status_code == 201
    assert (session.title, session.agent) == ("Second", "scripted")
    assert whole.active_session_id == session.id
    assert {one.id for one in whole.sessions} == {task["active_session_id"], session.id}
    models.Session.model_validate(await acme.ada.get(f"{place}/sessions/{session.id}"))


async def test_changes_are_those_last_taken(acme: Acme) -> None:
    task = await acme.create("say changed")
    place = f"{acme.place}/tasks/{task['id']}"
    before = models.Changes.model_validate(await acme.ada.get(f"{place}/changes"))
    file = FileChange(path="a b.txt", status="added", added=1, removed=0, binary=False)
    taken = ChangesTaken(
        changes=ChangesFacts(base="b" * 40, head="h" * 40, files=[file]),
        patches={"a b.txt": "+one\n"},
    )
    await acme.world.services.client.tell(acme.task_key(task), taken)

    async def shown() -> models.Changes | None:
        seen = models.Changes.model_validate(await acme.ada.get(f"{place}/changes"))
        return seen if seen.as_of else None

    after = await eventually(shown)
    diff = await acme.ada.get(f"{place}/diff?path=a%20b.txt")

    assert before.as_of is None
    assert after is not None
    assert [one.path for one in after.files] == ["a b.txt"]
    assert models.Diff.model_validate(diff).patch == "+one\n"
    assert (await acme.ada.get(f"{place}/diff?path=other", 404))["code"] == "not_found"


async def test_history_tells_who_made_a_task(acme: Acme) -> None:
    task = await acme.create("say remembered", title="Remembered")

    async def told() -> list[models.HistoryItem]:
        page = await acme.ada.get(f"{acme.place}/history?task={task['id']}&limit=1")
        return models.Page[models.HistoryItem].model_validate(page).items

    [item] = await eventually(told)
    assert item.task_id == task["id"]


async def test_lists_go_on_where_they_ended(acme: Acme) -> None:
    made = [(await acme.create(f"say page {n}", title=f"Pages {n}"))["id"] for n in range(3)]

    first = await acme.ada.get(f"{acme.place}/tasks?q=pAGES&limit=2")
    rest = await acme.ada.get(f"{acme.place}/tasks?q=pages&cursor={first['next_cursor']}")

    models.Page[models.TaskSummary].model_validate(first)
    assert [task["id"] for task in [*first["items"], *rest["items"]]] == made[::-1]
    assert rest["next_cursor"] is None
