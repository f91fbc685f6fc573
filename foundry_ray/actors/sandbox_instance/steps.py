"""What a sandbox instance does outside; every step may run twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import SecretStr

from foundry_ray.core.clock import Clock
from foundry_ray.core.errors import (
    AgentExited,
    BranchTaken,
    CloneFailed,
    NotFound,
    PushRejected,
    SandboxStartFailed,
    SetupFailed,
    Unavailable,
)
from foundry_ray.core.facts import Changes, FileChange
from foundry_ray.core.messages import Value
from foundry_ray.core.retry import RetryPolicy
from foundry_ray.core.secrets import random_token
from foundry_ray.integrations.sandbox_agent.base import SandboxAgent
from foundry_ray.providers.base import Endpoint, SandboxProvider, SandboxSpec
from foundry_ray.runtime.workflow import Nothing, StepContext, step

PATIENT = RetryPolicy(max_attempts=8, first_delay=timedelta(seconds=0.3))
BRIEF = RetryPolicy(
    max_attempts=20, first_delay=timedelta(seconds=0.1), max_delay=timedelta(seconds=2)
)
ONCE = RetryPolicy(max_attempts=1)

# git asks this helper; the token is only in the environment of that one process.
_HELPER = '!f() { echo username=x-access-token; echo "password=$FOUNDRY_GIT_TOKEN"; }; f'
GIT = ("git", "-c", "credential.helper=", "-c", f"credential.helper={_HELPER}")
WATCH_FOR = timedelta(seconds=2)
LOOK_EVERY = 0.05  # seconds; sandbox-agent has no event for the end of a process
PATCH_LIMIT = 256 * 1024  # characters of one file's patch that are kept
PATCHES_LIMIT = 4 * 1024 * 1024  # characters of all patches of a branch


@dataclass(frozen=True)
class SandboxTools:
    """What the steps work with.

    Attributes:
        connect: Makes the client of the sandbox-agent behind an endpoint.
        environment: What agents need, such as model keys; never a secret of Foundry.
    """

    providers: Mapping[str, SandboxProvider]
    connect: Callable[[Endpoint, SecretStr, str], SandboxAgent]
    instance_id: str
    clock: Clock
    environment: Mapping[str, str]


class Place(Value):
    """Which sandbox."""

    provider: str
    sandbox_id: str


class Created(Value):
    """A sandbox exists; its bearer token lies sealed in the result."""

    provider_id: str
    state: str
    home: str
    work_dir: str
    sealed_token: str


@asynccontextmanager
async def inside(
    tools: SandboxTools, place: Place, context: StepContext
) -> AsyncIterator[SandboxAgent]:
    """Connect to the sandbox's sandbox-agent."""
    provider = tools.providers[place.provider]
    facts = await provider.get(place.sandbox_id)
    endpoint = await provider.preview_endpoint(place.sandbox_id)
    token = await context.secret(f"{context.key}#token")
    async with tools.connect(endpoint, token, facts.home) as agent:
        yield agent


@step("create-sandbox", timeout=timedelta(minutes=3), retry=PATIENT)
async def create_sandbox(tools: SandboxTools, input: Place, context: StepContext) -> Created:
    """Create the sandbox, or find the one an earlier try made, and make up its token."""
    provider = tools.providers[input.provider]
    facts = await provider.create(
        SandboxSpec(
            sandbox_id=input.sandbox_id,
            instance_id=tools.instance_id,
            labels={"foundry_sandbox": context.key},
            environment=tools.environment,
        )
    )
    try:
        token = await context.secret(f"{context.key}#token")
    except NotFound:
        token = SecretStr(random_token())
    return Created(
        provider_id=facts.provider_id,
        state=facts.state,
        home=facts.home,
        work_dir=facts.work_dir,
        sealed_token=context.seal(token, f"{context.key}#token"),
    )


@step("start-agent-server", timeout=timedelta(minutes=1), retry=PATIENT)
async def start_agent_server(tools: SandboxTools, input: Place, context: StepContext) -> Nothing:
    """Start sandbox-agent in the sandbox, or adopt the one that runs (S35)."""
    provider = tools.providers[input.provider]
    await provider.start(input.sandbox_id)
    token = await context.secret(f"{context.key}#token")
    await provider.start_sandbox_agent(input.sandbox_id, token.get_secret_value())
    return Nothing()


class Preview(Value):
    """Where sandbox-agent answers."""

    url: str


@step("find-preview", timeout=timedelta(seconds=20), retry=BRIEF)
async def find_preview(tools: SandboxTools, input: Place, context: StepContext) -> Preview:
    """Look up the preview endpoint (S32)."""
    endpoint = await tools.providers[input.provider].preview_endpoint(input.sandbox_id)
    return Preview(url=endpoint.url)


@step("check-health", timeout=timedelta(seconds=20), retry=BRIEF)
async def check_health(tools: SandboxTools, input: Place, context: StepContext) -> Nothing:
    """Ask sandbox-agent whether it is well."""
    async with inside(tools, input, context) as agent:
        await agent.health()
    return Nothing()


# -- git -----------------------------------------------------------------------------


class CloneInput(Place):
    """What to fetch, and the sealed credential for it."""

    work_dir: str
    clone_url: str
    secret_id: str


class Started(Value):
    """A managed process runs."""

    process_id: str


async def _git(agent: SandboxAgent, cwd: str, *arguments: str, **environment: str) -> str:
    """Run git; return what it printed.

    Raises:
        SetupFailed: It ended with an error; context ``stderr`` has its words.
    """
    result = await agent.run(
        (*GIT, *arguments),
        cwd=cwd,
        environment={"GIT_TERMINAL_PROMPT": "0", **environment},
        timeout=timedelta(seconds=120),
        max_output=16 * 1024 * 1024,
    )
    if result.exit_code != 0:
        raise SetupFailed(
            f"git {arguments[0]} failed.",
            stderr=result.stderr[-2000:],
            exit_code=result.exit_code,
        )
    return result.stdout


@step("start-clone", timeout=timedelta(minutes=1), retry=PATIENT)
async def start_clone(tools: SandboxTools, input: CloneInput, context: StepContext) -> Started:
    """Begin to fetch the repository, as a process that outlives this step."""
    token = await context.secret(input.secret_id)
    async with inside(tools, input, context) as agent:
        await agent.make_directory(input.work_dir)
        await _git(agent, input.work_dir, "init", "--quiet")
        await _git(agent, input.work_dir, "config", "remote.origin.url", input.clone_url)
        await _git(
            agent,
            input.work_dir,
            "config",
            "remote.origin.fetch",
            "+refs/heads/*:refs/remotes/origin/*",
        )
        process = await agent.start_process(
            (*GIT, "fetch", "--progress", "--prune", "origin"),
            cwd=input.work_dir,
            environment={
                "GIT_TERMINAL_PROMPT": "0",
                "FOUNDRY_GIT_TOKEN": token.get_secret_value(),
            },
        )
    return Started(process_id=process.id)


class WatchInput(Place):
    """Which process to watch."""

    process_id: str


class Watched(Value):
    """What a process came to, or where it is."""

    finished: bool
    tail: str


@step("watch-clone", timeout=timedelta(seconds=30), retry=PATIENT)
async def watch_clone(tools: SandboxTools, input: WatchInput, context: StepContext) -> Watched:
    """Look after the fetch for a while; its last words show in the phase.

    Raises:
        CloneFailed: git ended with an error; context ``log_tail`` has its words.
    """
    async with inside(tools, input, context) as agent:
        until = tools.clock.now() + WATCH_FOR
        while True:
            process = await agent.process(input.process_id)
            if process.status != "running" or tools.clock.now() >= until:
                break
            await asyncio.sleep(LOOK_EVERY)
        tail = (await agent.process_log(input.process_id))[-1500:]
        if process.status == "running":
            return Watched(finished=False, tail=tail)
        await agent.delete_process(input.process_id)
    if process.exit_code != 0:
        raise CloneFailed(
            hint="Check that the repository exists and that Foundry's GitHub App may read it;"
            " then retry the task.",
            log_tail=tail,
        )
    return Watched(finished=True, tail=tail)


class CheckoutInput(Place):
    """Which branch, from where, for whom."""

    work_dir: str
    branch: str
    base_branch: str
    author_name: str
    author_email: str


@step("check-out", timeout=timedelta(minutes=5), retry=PATIENT)
async def check_out(tools: SandboxTools, input: CheckoutInput, context: StepContext) -> Nothing:
    """Make the branch from its base and check it out; one that is there stays as it is.

    Raises:
        BranchTaken: The remote has a branch of this name; retry with another one.
    """
    async with inside(tools, input, context) as agent:
        heads = await _git(
            agent,
            input.work_dir,
            "for-each-ref",
            "--format=%(refname)",
            "refs/heads",
            "refs/remotes",
        )
        refs = set(heads.split())
        if f"refs/heads/{input.branch}" in refs:
            await _git(agent, input.work_dir, "checkout", "--quiet", input.branch, "--")
        elif f"refs/remotes/origin/{input.branch}" in refs:
            raise BranchTaken(
                f"GitHub already has a branch {input.branch}.",
                hint="Retry the task with another branch name.",
            )
        else:
            base = f"refs/remotes/origin/{input.base_branch}"
            if base not in refs:
                raise SetupFailed(f"The branch {input.base_branch} does not exist on GitHub.")
            await _git(
                agent, input.work_dir, "checkout", "--quiet", "--no-track", "-b", input.branch, base
            )
        await _git(agent, input.work_dir, "config", "user.name", input.author_name)
        await _git(agent, input.work_dir, "config", "user.email", input.author_email)
    return Nothing()


class ChangesInput(Place):
    """Which work tree to compare with what."""

    home: str
    work_dir: str
    branch: str
    base_branch: str


class ChangesRead(Value):
    """What the comparison found."""

    changes: Changes
    patches: dict[str, str]


@step("read-changes", timeout=timedelta(minutes=3), retry=PATIENT)
async def read_changes(
    tools: SandboxTools, input: ChangesInput, context: StepContext
) -> ChangesRead:
    """Compare the work tree, new files included, with the merge base.

    A private index file is filled; work tree, index and branch stay untouched.
    """
    own = {"GIT_INDEX_FILE": f"{input.home}/.foundry/changes.index"}
    async with inside(tools, input, context) as agent:

        async def git(*arguments: str) -> str:
            return await _git(agent, input.work_dir, *arguments, **own)

        await agent.make_directory(f"{input.home}/.foundry")
        head = (await git("rev-parse", "HEAD")).strip()
        base = (await git("merge-base", "HEAD", f"origin/{input.base_branch}")).strip()
        await git("read-tree", "HEAD")
        await git("add", "--all")
        compare = ("diff", "--cached", "-M", "--no-ext-diff", "--no-color")
        numbers = await git(*compare, "--numstat", "-z", base)
        states = await git(*compare, "--name-status", "-z", base)
        patch = await git(*compare, base)
        remote = await git(
            "for-each-ref", "--format=%(objectname)", f"refs/remotes/origin/{input.branch}"
        )
    files = _files(states, numbers)
    return ChangesRead(
        changes=Changes(
            base=base, head=head, files=files, unpushed=head not in (base, remote.strip())
        ),
        patches=_patches(patch, files),
    )


def _files(states: str, numbers: str) -> list[FileChange]:
    """Read ``--name-status -z`` and ``--numstat -z``, which list the same files."""
    counts: dict[str, tuple[str, str]] = {}
    fields = iter(numbers.split("\0"))
    for field in fields:
        if not field:
            continue
        added, removed, path = field.split("\t", 2)
        if not path:  # a rename: old and new path follow
            next(fields)
            path = next(fields)
        counts[path] = (added, removed)
    names = {"A": "added", "D": "deleted", "R": "renamed"}
    found = []
    fields = iter(states.split("\0"))
    for letter in fields:
        if not letter:
            continue
        path = next(fields)
        old = None
        if letter[0] in "RC":
            old, path = path, next(fields)
        added, removed = counts.get(path, ("0", "0"))
        found.append(
            FileChange.model_validate(
                {
                    "path": path,
                    "old_path": old if letter[0] == "R" else None,
                    "status": names.get(letter[0], "modified"),
                    "added": 0 if added == "-" else int(added),
                    "removed": 0 if removed == "-" else int(removed),
                    "binary": added == "-",
                }
            )
        )
    return found


def _patches(patch: str, files: list[FileChange]) -> dict[str, str]:
    """Cut a patch into one per file, in the order of *files*; a long one says that it is cut."""
    pieces: list[str] = []
    for text in ("\n" + patch).split("\ndiff --git ")[1:]:
        piece = f"diff --git {text}"
        # A file that became a link is two pieces of one name: a deletion and an addition.
        if pieces and pieces[-1].partition("\n")[0] == piece.partition("\n")[0]:
            pieces[-1] += f"\n{piece}"
        else:
            pieces.append(piece)
    kept: dict[str, str] = {}
    room = PATCHES_LIMIT
    for file, piece in zip(files, pieces, strict=False):
        limit = min(PATCH_LIMIT, room)
        cut = piece if len(piece) <= limit else piece[:limit] + "\n[patch cut here: too long]\n"
        kept[file.path] = cut
        room = max(0, room - len(cut))
    return kept


class PushInput(Place):
    """Which branch to push with which credential."""

    work_dir: str
    branch: str
    secret_id: str


class BranchPushed(Value):
    """The remote has the branch at this commit."""

    sha: str


@step("push-branch", timeout=timedelta(minutes=5), retry=PATIENT)
async def push_branch(tools: SandboxTools, input: PushInput, context: StepContext) -> BranchPushed:
    """Push the branch; a repeat with nothing new is harmless.

    Raises:
        PushRejected: The remote refused; context ``stderr`` has its words.
        Unavailable: The remote did not answer.
    """
    token = await context.secret(input.secret_id)
    async with inside(tools, input, context) as agent:
        sha = (await _git(agent, input.work_dir, "rev-parse", f"refs/heads/{input.branch}")).strip()
        result = await agent.run(
            (
                *GIT,
                "push",
                "--porcelain",
                "origin",
                f"refs/heads/{input.branch}:refs/heads/{input.branch}",
            ),
            cwd=input.work_dir,
            environment={
                "GIT_TERMINAL_PROMPT": "0",
                "FOUNDRY_GIT_TOKEN": token.get_secret_value(),
            },
            timeout=timedelta(minutes=4),
        )
        if result.exit_code == 0:
            return BranchPushed(sha=sha)
    # Porcelain lines begin with "!" for refs that the remote refused (git-push(1)).
    if any(line.startswith("!") for line in result.stdout.splitlines()):
        raise PushRejected(
            hint="Bring the branch up to date with the remote and push again.",
            stderr=result.stderr[-2000:],
        )
    if result.exit_code == 128:
        raise PushRejected("git could not push to GitHub.", stderr=result.stderr[-2000:])
    raise Unavailable("The push did not finish.", stderr=result.stderr[-2000:])


# -- agents --------------------------------------------------------------------------


class AgentInput(Place):
    """Which agent process, in which directory."""

    server_id: str
    agent: str
    work_dir: str
    agent_session_id: str = ""


class AgentOpened(Value):
    """An agent session exists."""

    agent_session_id: str
    modes: dict[str, Any] | None = None
    models: dict[str, Any] | None = None


@step("open-agent-session", timeout=timedelta(minutes=2), retry=PATIENT)
async def open_agent_session(
    tools: SandboxTools, input: AgentInput, context: StepContext
) -> AgentOpened:
    """Start the agent and open a session, or take up the one that it had.

    Raises:
        AgentMissing: Install the agent in the sandbox's image.
        AgentExited: The agent ended at once; context ``stderr`` has its last words.
    """
    async with inside(tools, input, context) as agent:
        loads = await agent.open_agent(input.server_id, input.agent)
        opened = None
        if input.agent_session_id and loads:
            try:
                opened = await agent.load_session(
                    input.server_id, input.agent_session_id, input.work_dir
                )
            except NotFound:
                opened = None  # the agent does not know it any more: begin a new one
        if opened is None:
            opened = await agent.new_session(input.server_id, input.work_dir)
    return AgentOpened(agent_session_id=opened.session_id, modes=opened.modes, models=opened.models)


class PromptInput(Place):
    """Which message goes to which agent session."""

    server_id: str
    agent_session_id: str
    message_id: str
    text: str


class Delivered(Value):
    """Whether the journal holds the message; if not, the agent must be opened again."""

    delivered: bool


@step("send-prompt", timeout=timedelta(minutes=1), retry=PATIENT)
async def send_prompt(tools: SandboxTools, input: PromptInput, context: StepContext) -> Delivered:
    """Give the agent the message; the shim drops one that it has journalled already."""
    try:
        async with inside(tools, input, context) as agent:
            await agent.prompt(
                input.server_id,
                input.agent_session_id,
                input.message_id,
                [{"type": "text", "text": input.text}],
            )
    except (AgentExited, SandboxStartFailed):
        return Delivered(delivered=False)
    except Unavailable:
        if context.attempt < 2:
            raise
        return Delivered(delivered=False)  # perhaps sandbox-agent is gone: start it again
    return Delivered(delivered=True)


class SessionInput(Place):
    """Which agent session."""

    server_id: str
    agent_session_id: str


@step("cancel-prompt", timeout=timedelta(seconds=20), retry=PATIENT)
async def cancel_prompt(tools: SandboxTools, input: SessionInput, context: StepContext) -> Nothing:
    """Ask the agent to end its turn; one that is gone has ended it."""
    try:
        async with inside(tools, input, context) as agent:
            await agent.cancel(input.server_id, input.agent_session_id)
    except (AgentExited, SandboxStartFailed):
        return Nothing()  # nothing runs there; the journal's reader tells how the turn ended
    return Nothing()


class AnswerInput(Place):
    """Which answer goes to which request of the agent."""

    server_id: str
    rpc_id: str | int
    option_id: str | None


@step("answer-agent", timeout=timedelta(seconds=20), retry=PATIENT)
async def answer_agent(tools: SandboxTools, input: AnswerInput, context: StepContext) -> Nothing:
    """Answer the agent's request; the shim drops a second answer."""
    outcome: dict[str, Any] = (
        {"outcome": "cancelled"}
        if input.option_id is None
        else {"outcome": "selected", "optionId": input.option_id}
    )
    try:
        async with inside(tools, input, context) as agent:
            await agent.answer(input.server_id, input.rpc_id, {"outcome": outcome})
    except (AgentExited, SandboxStartFailed):
        return Nothing()  # who asked is gone; the journal's reader tells how the turn ended
    return Nothing()


@step("stop-sandbox", timeout=timedelta(minutes=1), retry=PATIENT)
async def stop_sandbox(tools: SandboxTools, input: Place, context: StepContext) -> Nothing:
    """End the sandbox's processes; files stay."""
    await tools.providers[input.provider].stop(input.sandbox_id)
    return Nothing()


@step("delete-sandbox", timeout=timedelta(minutes=1), retry=PATIENT)
async def delete_sandbox(tools: SandboxTools, input: Place, context: StepContext) -> Nothing:
    """Destroy the sandbox; one that is gone counts as destroyed."""
    await tools.providers[input.provider].delete(input.sandbox_id)
    return Nothing()
