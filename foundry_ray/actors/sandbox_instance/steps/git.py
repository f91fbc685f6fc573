"""git inside the sandbox: clone, check out, compare, push."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from foundry_ray.actors.sandbox_instance.steps.place import PATIENT, Place, SandboxTools, inside
from foundry_ray.core.errors import (
    BranchTaken,
    CloneFailed,
    NotFound,
    PushRejected,
    SetupFailed,
    Unavailable,
)
from foundry_ray.core.facts import Changes, FileChange
from foundry_ray.core.messages import Value
from foundry_ray.integrations.sandbox_agent.base import SandboxAgent
from foundry_ray.runtime.workflow import Nothing, StepContext, step

# git asks this helper; the token is only in the environment of that one process.
_HELPER = '!f() { echo username=x-access-token; echo "password=$FOUNDRY_GIT_TOKEN"; }; f'
GIT = ("git", "-c", "credential.helper=", "-c", f"credential.helper={_HELPER}")
# Over the files of a checkout that was broken off; nobody has worked in the tree yet.
CHECKOUT = ("checkout", "--quiet", "--force")
LOCK_ATTEMPTS = 4  # in the three seconds that they take, a git that lives has gone on
WATCH_FOR = timedelta(seconds=2)
LOOK_EVERY = 0.05  # seconds; sandbox-agent has no event for the end of a process
PATCH_LIMIT = 256 * 1024  # characters of one file's patch that are kept
PATCHES_LIMIT = 4 * 1024 * 1024  # characters of all patches of a branch


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
        Unavailable: Another git has a lock: of a step whose process died and left it at work.
        SetupFailed: It ended with an error; context ``stderr`` has its words.
    """
    result = await agent.run(
        (*GIT, *arguments),
        cwd=cwd,
        environment={"GIT_TERMINAL_PROMPT": "0", **environment},
        timeout=timedelta(seconds=120),
        max_output=16 * 1024 * 1024,
    )
    if result.exit_code != 0 and ".lock': File exists" in result.stderr:
        raise Unavailable("Another git works in this tree.", stderr=result.stderr[-2000:])
    if result.exit_code != 0:
        raise SetupFailed(
            f"git {arguments[0]} failed.",
            stderr=result.stderr[-2000:],
            exit_code=result.exit_code,
        )
    return result.stdout


async def _unlock(agent: SandboxAgent, work_dir: str, context: StepContext) -> None:
    """Remove locks that are there after so many attempts: a git that was killed left them.

    Only while nobody but Foundry works in the tree.
    """
    if context.attempt > LOCK_ATTEMPTS:
        await agent.run(("find", ".git", "-name", "*.lock", "-delete"), cwd=work_dir)


@step("start-clone", timeout=timedelta(minutes=1), retry=PATIENT)
async def start_clone(tools: SandboxTools, input: CloneInput, context: StepContext) -> Started:
    """Begin to fetch the repository, as a process that outlives this step."""
    token = await context.secret(input.secret_id)
    async with inside(tools, input, context) as agent:
        await agent.make_directory(input.work_dir)
        await _git(agent, input.work_dir, "init", "--quiet")
        await _unlock(agent, input.work_dir, context)
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
    """What a process came to, or where it is; *lost* with the sandbox-agent that ran it."""

    finished: bool
    tail: str
    lost: bool = False


@step("watch-clone", timeout=timedelta(seconds=30), retry=PATIENT)
async def watch_clone(tools: SandboxTools, input: WatchInput, context: StepContext) -> Watched:
    """Look after the fetch for a while; its last words show in the phase.

    Raises:
        CloneFailed: git ended with an error; context ``log_tail`` has its words.
    """
    async with inside(tools, input, context) as agent:
        until = tools.clock.now() + WATCH_FOR
        while True:
            try:
                process = await agent.process(input.process_id)
            except NotFound:
                return Watched(finished=False, tail="", lost=True)
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
        await _unlock(agent, input.work_dir, context)
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
            await _git(agent, input.work_dir, *CHECKOUT, input.branch, "--")
        elif f"refs/remotes/origin/{input.branch}" in refs:
            raise BranchTaken(
                f"GitHub already has a branch {input.branch}.",
                hint="Retry the task with another branch name.",
            )
        else:
            base = f"refs/remotes/origin/{input.base_branch}"
            if base not in refs:
                raise SetupFailed(f"The branch {input.base_branch} does not exist on GitHub.")
            await _git(agent, input.work_dir, *CHECKOUT, "--no-track", "-b", input.branch, base)
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
    # One of its own for each attempt: what a killed one left must not be in the way.
    index = f"{input.home}/.foundry/changes-{context.run_id}-{context.attempt}.index"
    own = {"GIT_INDEX_FILE": index}
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
        await agent.run(("rm", "-f", index), cwd=input.work_dir)
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
