"""Real git on bare repositories, by argument vectors and with an environment of our own."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ZERO = "0" * 40

# No configuration but the repository's own: the forge behaves the same on every machine.
CLEAN_ENVIRONMENT: Mapping[str, str] = {
    "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
}


class GitFailed(Exception):
    """git ended with an error; the text is its last words."""

    def __init__(self, arguments: Sequence[str], status: int, words: str) -> None:
        self.status = status
        self.words = words
        super().__init__(f"git {arguments[0]} ended with {status}: {words.strip()[-500:]}")


class Conflict(Exception):
    """The two sides cannot be merged without a person."""


@dataclass(frozen=True)
class Person:
    """An author or a committer."""

    name: str
    email: str
    at: str = ""  # ISO 8601 with the zone; empty: now


@dataclass(frozen=True)
class Commit:
    """One commit as git tells it."""

    sha: str
    tree: str
    parents: tuple[str, ...]
    author: Person
    committer: Person
    message: str


@dataclass(frozen=True)
class FileChange:
    """One file of a difference; the line counts of a binary file are zero."""

    path: str
    status: str  # added, removed or modified
    sha: str
    additions: int
    deletions: int


_FORMAT = "%x00".join(("%H", "%T", "%P", "%an", "%ae", "%aI", "%cn", "%ce", "%cI", "%B"))
_STATUS = {"A": "added", "D": "removed"}


class Git:
    """One bare repository."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def run(
        self, *arguments: str, given: bytes = b"", environment: Mapping[str, str] | None = None
    ) -> bytes:
        """Run one git command here and return what it printed.

        Raises:
            GitFailed: git ended with another status than 0.
        """
        process = await asyncio.create_subprocess_exec(
            "git",
            *arguments,
            cwd=self.path,
            env={**CLEAN_ENVIRONMENT, **(environment or {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(given)
        if process.returncode:
            raise GitFailed(arguments, process.returncode, err.decode(errors="replace"))
        return out

    async def text(self, *arguments: str) -> str:
        """Run one git command and return its output as text without the line's end."""
        return (await self.run(*arguments)).decode(errors="replace").strip()

    async def create(self, default_branch: str) -> None:
        """Make the bare repository, ready for pushes over HTTP."""
        self.path.mkdir(parents=True, exist_ok=True)
        await self.run("init", "--quiet", "--bare", f"--initial-branch={default_branch}", ".")
        await self.run("config", "http.receivepack", "true")
        # Pull requests' own refs are ours to write.
        await self.run("config", "receive.hideRefs", "refs/pull")
        await self.run("config", "uploadpack.allowAnySHA1InWant", "true")
        await self.run("config", "gc.auto", "0")

    async def refs(self) -> dict[str, str]:
        """Return every branch and tag by its full name, with the object it names."""
        out = await self.text(
            "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags"
        )
        pairs = (line.split(" ", 1) for line in out.splitlines())
        return {name: sha for sha, name in pairs}

    async def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch, tag or sha names, or none."""
        if revision.startswith("-"):
            return None
        for candidate in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            try:
                return await self.text(
                    "rev-parse",
                    "--verify",
                    "--quiet",
                    "--end-of-options",
                    f"{candidate}^{{commit}}",
                )
            except GitFailed:
                continue
        return None

    async def update_ref(self, name: str, new: str, old: str | None) -> None:
        """Move *name* to *new* only if it still is at *old* (`ZERO`: does not exist).

        Raises:
            GitFailed: Somebody else moved it, or the name is not a valid one.
        """
        await self.run("update-ref", name, new, *([] if old is None else [old]))

    async def delete_ref(self, name: str, old: str) -> None:
        """Remove *name* if it still is at *old*."""
        await self.run("update-ref", "-d", name, old)

    async def is_ancestor(self, older: str, newer: str) -> bool:
        """Tell whether *newer* contains *older*."""
        try:
            await self.run("merge-base", "--is-ancestor", older, newer)
        except GitFailed as trouble:
            if trouble.status == 1:
                return False
            raise
        return True

    async def merge_base(self, one: str, other: str) -> str | None:
        """Return the best common ancestor, or none if the histories are unrelated."""
        try:
            return await self.text("merge-base", one, other)
        except GitFailed as trouble:
            if trouble.status == 1:
                return None
            raise

    async def log(self, *arguments: str) -> list[Commit]:
        """Return the commits that ``git log`` lists for *arguments*."""
        out = await self.run("log", "-z", f"--format={_FORMAT}", *arguments, "--")
        fields = out.decode(errors="replace").split("\0")
        commits = []
        for at in range(0, len(fields) - 9, 10):
            sha, tree, parents, name, email, date, by, by_email, by_date, message = fields[
                at : at + 10
            ]
            commits.append(
                Commit(
                    sha=sha,
                    tree=tree,
                    parents=tuple(parents.split()),
                    author=Person(name, email, date),
                    committer=Person(by, by_email, by_date),
                    message=message.rstrip("\n"),
                )
            )
        return commits

    async def commit(self, sha: str) -> Commit:
        """Return one commit."""
        return (await self.log("-1", sha))[0]

    async def count(self, revisions: str) -> int:
        """Return how many commits a range has."""
        return int(await self.text("rev-list", "--count", revisions))

    async def diff(self, old: str, new: str) -> list[FileChange]:
        """Return the files that differ between two trees, a rename as removal and addition."""
        arguments = ("diff-tree", "-r", "--no-renames", "-z", "--root")
        raw = (await self.run(*arguments, "--raw", "--no-abbrev", old, new)).decode(
            errors="replace"
        )
        numbers = (await self.run(*arguments, "--numstat", old, new)).decode(errors="replace")
        counts: dict[str, tuple[int, int]] = {}
        for line in filter(None, numbers.split("\0")):
            added, removed, path = line.split("\t", 2)
            counts[path] = (
                (0, 0) if added == "-" else (int(added), int(removed))  # "-": a binary file
            )
        parts = raw.split("\0")
        changes = []
        for head, path in zip(parts[0:-1:2], parts[1::2], strict=False):
            _, _, old_blob, new_blob, letter = head.split(" ")
            additions, deletions = counts.get(path, (0, 0))
            blob = old_blob if letter == "D" else new_blob
            changes.append(
                FileChange(path, _STATUS.get(letter, "modified"), blob, additions, deletions)
            )
        return changes

    async def touched(self, shas: Sequence[str]) -> dict[str, dict[str, list[str]]]:
        """Return for each commit the paths that it added, modified and removed."""
        found: dict[str, dict[str, list[str]]] = {
            sha: {"added": [], "removed": [], "modified": []} for sha in shas
        }
        out = await self.run(
            *("diff-tree", "--stdin", "-r", "--root", "--no-renames", "--name-status", "-z"),
            given="".join(f"{sha}\n" for sha in shas).encode(),
        )
        parts = iter(out.decode(errors="replace").split("\0"))
        current = ""
        for part in parts:
            if part in found:
                current = part
            elif part:
                found[current][_STATUS.get(part, "modified")].append(next(parts))
        return found

    async def merge_tree(self, base: str, head: str) -> str:
        """Merge two commits without a work tree and return the resulting tree.

        Raises:
            Conflict: They do not merge cleanly, or share no history.
        """
        try:
            out = await self.text("merge-tree", "--write-tree", "--no-messages", base, head)
        except GitFailed as trouble:
            if trouble.status == 1 or "unrelated histories" in trouble.words:
                raise Conflict from trouble
            raise
        return out.splitlines()[0]

    async def commit_tree(
        self, tree: str, parents: Sequence[str], message: str, author: Person, committer: Person
    ) -> str:
        """Write a commit object and return its sha."""
        flags = [flag for parent in parents for flag in ("-p", parent)]
        out = await self.run(
            *("commit-tree", tree, *flags, "-F", "-"),
            given=message.encode(),
            environment=identity(author, committer),
        )
        return out.decode().strip()

    async def replay(self, base: str, head: str, committer: Person, workroom: Path) -> str:
        """Put the commits of *head* that *base* lacks on top of *base*; return the new tip.

        Raises:
            Conflict: One of them does not apply.
        """
        workroom.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="rebase-", dir=workroom))
        try:
            await self.run("worktree", "add", "--quiet", "--detach", str(place / "tree"), base)
            tree = Git(place / "tree")
            wanted = await self.text("rev-list", "--reverse", "--no-merges", f"{base}..{head}")
            if wanted:
                try:
                    await tree.run(
                        *("cherry-pick", "--allow-empty", *wanted.split()),
                        environment=identity(None, committer),
                    )
                except GitFailed as trouble:
                    raise Conflict from trouble
            return await tree.text("rev-parse", "HEAD")
        finally:
            shutil.rmtree(place, ignore_errors=True)
            await self.run("worktree", "prune")


def identity(author: Person | None, committer: Person) -> dict[str, str]:
    """Return the environment in which git writes as these people."""
    found = {"GIT_COMMITTER_NAME": committer.name, "GIT_COMMITTER_EMAIL": committer.email}
    if author is not None:
        found |= {"GIT_AUTHOR_NAME": author.name, "GIT_AUTHOR_EMAIL": author.email}
        if author.at:
            found["GIT_AUTHOR_DATE"] = author.at
    return found
