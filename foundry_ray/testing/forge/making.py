"""Making repositories, with a history of their own from the first moment."""

from __future__ import annotations

from typing import Any

from foundry_ray.testing.forge import pushes, shapes
from foundry_ray.testing.forge.context import Forge
from foundry_ray.testing.forge.git import Git, Person
from foundry_ray.testing.forge.records import Account, Repository
from foundry_ray.testing.forge.web import invalid


async def build(
    forge: Forge,
    owner: Account,
    name: str,
    *,
    description: str | None,
    private: bool,
    history: list[tuple[str, Account, dict[str, str]]],
    default_branch: str = "main",
) -> Repository:
    """Make a repository with a history of ``(message, author, files)``; tells nobody.

    Raises:
        ApiError: 422 if the name is taken or not one.
    """
    if (
        not name
        or not all(letter.isalnum() or letter in "-_." for letter in name)
        or name
        in (
            ".",
            "..",
        )
    ):
        invalid({"resource": "Repository", "field": "name", "code": "invalid"})
    if forge.directory.repository(owner.login, name) is not None:
        invalid(
            {
                "resource": "Repository",
                "code": "custom",
                "field": "name",
                "message": "name already exists on this account",
            }
        )
    git_dir = _free_place(forge, owner, name)
    git = Git(forge.repositories / git_dir)
    await git.create(default_branch)
    tip = await _write(forge, git, history)
    if tip is not None:
        await git.update_ref(f"refs/heads/{default_branch}", tip, None)
    refs = {} if tip is None else {f"refs/heads/{default_branch}": tip}
    return _record(
        forge,
        refs,
        owner_id=owner.id,
        name=name,
        description=description,
        private=int(private),
        default_branch=default_branch,
        git_dir=git_dir,
    )


async def fork(forge: Forge, source: Repository, owner: Account) -> Repository:
    """Copy *source* with its branches to another account; one that is there stays as it is."""
    for existing in forge.directory.repositories_of(owner.id):
        if existing.fork_of == source.id:
            return existing
    if owner.id == source.owner_id:
        invalid({"resource": "Repository", "field": "organization", "code": "invalid"})
    taken = forge.directory.repository(owner.login, source.name) is not None
    name = f"{source.name}-1" if taken else source.name
    git_dir = _free_place(forge, owner, name)
    git = Git(forge.repositories / git_dir)
    await git.create(source.default_branch)
    origin = str(forge.git(source).path)
    await git.run("fetch", "--quiet", origin, "+refs/heads/*:refs/heads/*")
    return _record(
        forge,
        await git.refs(),
        owner_id=owner.id,
        name=name,
        description=source.description,
        private=source.private,
        default_branch=source.default_branch,
        fork_of=source.id,
        git_dir=git_dir,
    )


def _free_place(forge: Forge, owner: Account, name: str) -> str:
    """Return a directory that nothing has, not even what a start that died left behind."""
    plain = f"{owner.login}/{name}"
    return next(
        place
        for place in (f"{plain}{suffix}.git" for suffix in ("", *(f"~{n}" for n in range(1, 99))))
        if not (forge.repositories / place).exists()
    )


def _record(forge: Forge, refs: dict[str, str], **columns: Any) -> Repository:
    now = forge.store.now()
    with forge.store.transaction():
        made = forge.store.insert(
            "repositories", **columns, created_at=now, updated_at=now, pushed_at=now
        )
        repository = forge.directory.repository_by_id(made)
        assert repository is not None, "just inserted"
        for ref, sha in refs.items():
            pushes.remember(forge, repository, ref, sha)
    return repository


async def _write(
    forge: Forge, git: Git, history: list[tuple[str, Account, dict[str, str]]]
) -> str | None:
    """Write commits of whole trees, each on the one before; return the last one's sha."""
    tip: str | None = None
    index = {"GIT_INDEX_FILE": str(git.path / "foundry-index")}
    for message, author, files in history:
        lines = []
        for path, text in files.items():
            blob = (await git.run("hash-object", "-w", "--stdin", given=text.encode())).decode()
            lines.append(f"100644 {blob.strip()}\t{path}\n")
        await git.run(
            "update-index", "--index-info", given="".join(lines).encode(), environment=index
        )
        tree = (await git.run("write-tree", environment=index)).decode().strip()
        who = Person(author.name or author.login, author.email or "")
        tip = await git.commit_tree(tree, [tip] if tip else [], message, who, who)
    (git.path / "foundry-index").unlink(missing_ok=True)
    return tip


def tell_created(forge: Forge, repository: Repository, sender: Account) -> None:
    """Record the events of a new repository: its own, and those of installations on all."""
    owner = forge.directory.known(repository.owner_id)
    forge.webhooks.emit(
        "repository", "created", {}, owner=owner, sender=sender, repository=repository
    )
    for installation in forge.directory.installations_on(owner.id):
        if forge.directory.covers(installation, repository):
            forge.webhooks.emit_installation(
                "installation_repositories",
                "added",
                installation,
                {
                    "repository_selection": installation.selection,
                    "repositories_added": [shapes.repository_name(repository, owner)],
                    "repositories_removed": [],
                    "requester": None,
                },
                sender,
            )
