"""Messages to sandboxes."""

from __future__ import annotations

from typing import Any

from foundry_ray.actors.github_state.messages import MintCredential
from foundry_ray.actors.sandbox_instance import steps
from foundry_ray.actors.sandbox_instance.messages import (
    AnswerAgent,
    CancelPrompt,
    CredentialReady,
    CredentialRefused,
    DeleteSandbox,
    DeliverPrompt,
    OpenAgentSession,
    ProvisionSandbox,
    PushBranch,
    RetrySandbox,
    StopSandbox,
    TakeChanges,
)
from foundry_ray.actors.sandbox_instance.tables import SandboxInstance, SandboxInstanceSession
from foundry_ray.actors.sandbox_instance.workflows import (
    Answer,
    Cancel,
    Compare,
    Deliver,
    EndSandbox,
    OpenSession,
    Provision,
    PushOut,
)
from foundry_ray.actors.task.messages import PhaseChanged, PushFailed
from foundry_ray.runtime.tables import RtRun
from tests.integration.every_message.kit import (
    ADA,
    DEMO,
    GITHUB,
    SANDBOX,
    SESSION,
    TASK,
    TROUBLE,
    Case,
    gone,
    kept,
    mail,
    row,
    run,
    run_row,
)


def sandbox(state: str, **values: Any) -> SandboxInstance:
    """Return a sandbox of the task."""
    return kept(
        SandboxInstance,
        SANDBOX,
        provider="local",
        task_key=TASK,
        repository_id="9001",
        clone_url=DEMO.clone_url,
        branch="door",
        base_branch="main",
        owner=ADA.model_dump(),
        state=state,
        **values,
    )


HERE = {"provider": "local", "sandbox_id": "b1"}
OPEN = kept(
    SandboxInstanceSession,
    SANDBOX,
    session_key=SESSION,
    agent="scripted",
    server_id="s1",
    agent_session_id="one",
)
AT_WORK = (sandbox("ready"), OPEN)
CASES = (
    Case(
        "sandbox_instance",
        ProvisionSandbox(
            task_key=TASK,
            clone_url=DEMO.clone_url,
            branch="door",
            base_branch="main",
            on_branch=None,
            owner=ADA,
        ),
        (
            row(SandboxInstance, actor_key=SANDBOX, state="provisioning", run_id=...),
            run(Provision, steps.create_sandbox, step_input=HERE),
            mail(TASK, PhaseChanged, phase="creating_sandbox", state="running"),
        ),
    ),
    Case(
        "sandbox_instance",
        RetrySandbox(branch="window"),
        (
            row(SandboxInstance, state="provisioning", branch="window"),
            run(Provision, steps.create_sandbox, id="r1"),
        ),
        rows=(
            sandbox("error", run_id="r1"),
            run_row(
                SANDBOX,
                "r1",
                Provision,
                step=steps.create_sandbox.name,
                step_input=HERE,
                state="parked",
            ),
        ),
    ),
    Case(
        "sandbox_instance",
        OpenAgentSession(session_key=SESSION, agent="scripted"),
        (
            row(SandboxInstanceSession, session_key=SESSION, run_id=...),
            run(OpenSession, steps.open_agent_session, input={"of": SESSION}),
            mail(TASK, PhaseChanged, phase="starting_session"),
        ),
        rows=(sandbox("ready"),),
    ),
    Case(
        "sandbox_instance",
        DeliverPrompt(session_key=SESSION, message_id="m1", text="Say hello"),
        (run(Deliver, steps.send_prompt, step_input={"message_id": "m1", "server_id": "s1"}),),
        rows=AT_WORK,
    ),
    Case(
        "sandbox_instance",
        CancelPrompt(session_key=SESSION),
        (run(Cancel, steps.cancel_prompt, step_input={"agent_session_id": "one"}),),
        rows=AT_WORK,
    ),
    Case(
        "sandbox_instance",
        AnswerAgent(session_key=SESSION, rpc_id=5, option_id="yes"),
        (run(Answer, steps.answer_agent, step_input={"rpc_id": 5, "option_id": "yes"}),),
        rows=AT_WORK,
    ),
    Case(
        "sandbox_instance",
        TakeChanges(),
        (
            row(SandboxInstance, changes_run_id=...),
            run(Compare, steps.read_changes, step_input={"branch": "door"}),
        ),
        rows=AT_WORK,
    ),
    Case(
        "sandbox_instance",
        PushBranch(by=ADA),
        (
            row(SandboxInstance, push_run_id=...),
            run(PushOut),
            mail(GITHUB, MintCredential, access="write", reply_to=SANDBOX),
        ),
        rows=AT_WORK,
    ),
    Case(
        "sandbox_instance",
        CredentialReady(purpose="clone", secret_id="credential/c1"),
        (
            run(Provision, steps.start_clone, id="r1", step_input={"secret_id": "credential/c1"}),
            mail(TASK, PhaseChanged, phase="cloning"),
        ),
        rows=(
            sandbox("provisioning", run_id="r1", work_dir="/work"),
            run_row(SANDBOX, "r1", Provision, step=steps.check_health.name, state="waiting"),
        ),
    ),
    Case(
        "sandbox_instance",
        CredentialRefused(purpose="push/r2", error=TROUBLE),
        (
            row(SandboxInstance, push_run_id=None),
            gone(RtRun, id="r2"),
            mail(TASK, PushFailed, error={"code": "unavailable"}),
        ),
        rows=(
            sandbox("ready", push_run_id="r2"),
            run_row(SANDBOX, "r2", PushOut, state="waiting", input={"by": ADA.model_dump()}),
        ),
    ),
    Case(
        "sandbox_instance",
        StopSandbox(),
        (run(EndSandbox, steps.stop_sandbox, input={"delete": False}),),
        rows=AT_WORK,
    ),
    Case(
        "sandbox_instance",
        DeleteSandbox(),
        (
            run(Provision, steps.delete_sandbox, id="r1", undoing=True, undo=[]),
            gone(RtRun, id="r2"),
        ),
        rows=(
            sandbox("provisioning", run_id="r1", push_run_id="r2"),
            run_row(
                SANDBOX,
                "r1",
                Provision,
                step=steps.check_health.name,
                state="waiting",
                undo=[["delete-sandbox", {"provider": "local", "sandbox_id": "b1"}]],
            ),
            run_row(SANDBOX, "r2", PushOut, state="waiting", input={"by": ADA.model_dump()}),
        ),
    ),
)
