"""The order in which GitHub is asked."""

from __future__ import annotations

from typing import Any

from foundry_ray.actors.app_shell.messages import SignInFailed
from foundry_ray.actors.github_state import steps
from foundry_ray.actors.github_state.steps import (
    CodeInput,
    MintInput,
    PageInput,
    PublishInput,
    RepositoryInput,
)
from foundry_ray.actors.github_state.tables import (
    GitHubStatePullRequest,
    GitHubStateRepository,
    MirrorState,
)
from foundry_ray.actors.repository.messages import (
    PullRequestChanged,
    RefsChanged,
    RepositoryDescribed,
)
from foundry_ray.actors.sandbox_instance.messages import CredentialReady, CredentialRefused
from foundry_ray.actors.task.messages import PublishFailed
from foundry_ray.actors.user_github_data.messages import IdentityObtained
from foundry_ray.core import keys, topics
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.facts import PullRequestFacts, RepositoryFacts, Trouble
from foundry_ray.core.messages import Person, Value
from foundry_ray.core.secrets import fingerprint
from foundry_ray.runtime.turn import Turn
from foundry_ray.runtime.workflow import Done, Go, Next, Nothing, Run, Workflow


def repository_key(state: MirrorState, repository_id: str) -> str:
    """Return the key of a repository of this organization."""
    return keys.repository(keys.organization_id(state.key), repository_id)


def show(state: MirrorState, turn: Turn) -> None:
    """Keep the mirror's row, and show people how it is."""
    row = state.mirror
    turn.put(row)
    turn.publish(
        topics.organization(state.key), "github", state.key, row.revision, row.represent("")
    )


def keep_repository(state: MirrorState, facts: RepositoryFacts, turn: Turn) -> None:
    """Take over a repository's description and pass it on."""
    row = state.repositories.get(facts.id)
    generation = state.mirror.generation
    if row is None:
        row = GitHubStateRepository(
            actor_key=state.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            repository_id=facts.id,
            facts={},
        )
        state.repositories[facts.id] = row
    fresh = facts.model_dump(mode="json")
    changed = row.facts != fresh
    row.facts, row.generation = fresh, generation
    turn.put(row)
    if changed:
        turn.tell(repository_key(state, facts.id), RepositoryDescribed(facts=facts))


def keep_pull_request(
    state: MirrorState,
    facts: PullRequestFacts,
    turn: Turn,
    *,
    action: str = "",
    guid: str | None = None,
    by: Person | None = None,
) -> bool:
    """Take over a pull request unless something newer is known; return whether it was news."""
    place = (facts.repository_id, facts.number)
    row = state.pull_requests.get(place)
    if row is not None and (
        row.as_of > facts.updated_at
        # GitHub's times are of whole seconds, and what is merged stays merged.
        or (row.state == "merged" and facts.state != "merged")
    ):
        return False
    if row is None:
        row = GitHubStatePullRequest(
            actor_key=state.key,
            revision=0,
            created_at=turn.now,
            updated_at=turn.now,
            repository_id=facts.repository_id,
            number=facts.number,
            state="",
            head_ref="",
            facts={},
            as_of=facts.updated_at,
        )
        state.pull_requests[place] = row
    fresh = facts.model_dump(mode="json")
    changed = row.facts != fresh
    row.facts, row.state, row.head_ref = fresh, facts.state, facts.head_ref
    row.as_of, row.generation = facts.updated_at, state.mirror.generation
    turn.put(row)
    if changed or guid:
        turn.tell(
            repository_key(state, facts.repository_id),
            PullRequestChanged(pull_request=facts, action=action, guid=guid, by=by),
        )
        turn.publish(
            topics.organization(state.key),
            "pull_request",
            f"{facts.repository_id}/{facts.number}",
            row.revision,
            fresh,
        )
    return changed


class Sync(Workflow[MirrorState]):
    """Everything of one installation, read again: readers never see an empty organization."""

    kind = "github_state.sync"
    steps = (steps.list_repositories, steps.list_branches, steps.list_pull_requests)

    def begin(self, state: MirrorState, run: Run, turn: Turn) -> Next:
        """Begin a new generation with the first page of repositories."""
        row = state.mirror
        row.generation += 1
        row.sync_status, row.sync_error = "syncing", None
        row.sync_done, row.sync_total, row.sync_label = 0, 0, "repositories"
        show(state, turn)
        return Go(steps.list_repositories, PageInput(installation_id=int(row.installation_id or 0)))

    def next(self, state: MirrorState, run: Run, result: Any, turn: Turn) -> Next:
        """Page by page, then repository by repository."""
        row = state.mirror
        installation = int(row.installation_id or 0)
        match run.step:
            case "list-repositories":
                for facts in result.repositories:
                    keep_repository(state, facts, turn)
                row.sync_total = 2 * len(self._seen(state))
                show(state, turn)
                if result.next_page is not None:
                    page = PageInput(installation_id=installation, page=result.next_page)
                    return Go(steps.list_repositories, page)
                self._drop_unseen(state, turn)
                return self._after(state, turn, "")
            case "list-branches":
                repository_id = str(run.step_input["repository_id"])
                turn.tell(
                    repository_key(state, repository_id),
                    RefsChanged(refs=result.refs, whole=True),
                )
                self._progress(state, turn, repository_id)
                return Go(steps.list_pull_requests, RepositoryInput.model_validate(run.step_input))
            case _:
                repository_id = str(run.step_input["repository_id"])
                for facts in result.pull_requests:
                    keep_pull_request(state, facts, turn)
                self._progress(state, turn, repository_id)
                return self._after(state, turn, repository_id)

    @staticmethod
    def _seen(state: MirrorState) -> list[str]:
        generation = state.mirror.generation
        return sorted(
            (key for key, row in state.repositories.items() if row.generation == generation),
            key=int,
        )

    def _drop_unseen(self, state: MirrorState, turn: Turn) -> None:
        for gone in set(state.repositories) - set(self._seen(state)):
            turn.delete(state.repositories.pop(gone))
            turn.tell(repository_key(state, gone), RepositoryDescribed(facts=None))

    def _progress(self, state: MirrorState, turn: Turn, repository_id: str) -> None:
        facts = state.repository(repository_id)
        state.mirror.sync_done += 1
        state.mirror.sync_label = facts.full_name if facts else ""
        show(state, turn)

    def _after(self, state: MirrorState, turn: Turn, repository_id: str) -> Next:
        """Go on with the repository after this one, or end."""
        rest = [r for r in self._seen(state) if not repository_id or int(r) > int(repository_id)]
        row = state.mirror
        if rest:
            return Go(
                steps.list_branches,
                RepositoryInput(
                    installation_id=int(row.installation_id or 0), repository_id=int(rest[0])
                ),
            )
        row.sync_status, row.sync_label, row.last_sync_at = "synced", "", turn.now
        row.sync_run_id = None
        if row.sync_wanted:
            row.sync_wanted = False
            row.sync_run_id = turn.start(Sync.kind, Nothing())
        show(state, turn)
        return Done()

    def on_error(self, state: MirrorState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Show it; what was read before stays, and a new sync begins from the start."""
        row = state.mirror
        row.sync_status = "error"
        row.sync_error = Trouble.of(error).model_dump(mode="json")
        row.sync_run_id = None
        show(state, turn)
        turn.cancel(run.id)


class SignIn(Workflow[MirrorState]):
    """From an OAuth code to a known person."""

    kind = "github_state.sign_in"
    input_type = CodeInput
    steps = (steps.exchange_code, steps.read_person)

    def begin(self, state: MirrorState, run: Run, turn: Turn) -> Next:
        """Exchange the code."""
        return Go(steps.exchange_code, run.input)

    def next(self, state: MirrorState, run: Run, result: Any, turn: Turn) -> Next:
        """Read who it is, then tell the user's own data, which tell the application."""
        if run.step == "exchange-code":
            turn.keep_secret(f"oauth/{run.id}", result.sealed_token, result.expires_at)
            return Go(steps.read_person, Nothing())
        person = result.person
        secret_id = steps.user_secret(person.id)
        turn.drop_secret(f"oauth/{run.id}")
        turn.keep_secret(secret_id, result.sealed_token)
        turn.tell(
            keys.user(person.id),
            IdentityObtained(
                state_hash=fingerprint(run.input.state),
                person=person,
                avatar_url=result.avatar_url,
                token_secret_id=secret_id,
                token_expires_at=None,
                scopes=[],
                accounts=result.accounts,
            ),
        )
        return Done()

    def on_error(self, state: MirrorState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Tell the application; the person begins again."""
        turn.drop_secret(f"oauth/{run.id}")
        turn.tell(
            keys.APP,
            SignInFailed(
                state_hash=fingerprint(run.input.state), code=error.code, message=error.message
            ),
        )
        turn.cancel(run.id)


class Minting(Value):
    """Who wants which credential, and where it goes."""

    repository_id: str
    access: str
    person: Person
    reply_to: str
    purpose: str


class Mint(Workflow[MirrorState]):
    """A git credential for one repository, after the person's rights were checked."""

    kind = "github_state.mint"
    input_type = Minting
    steps = (steps.mint_credential,)

    def begin(self, state: MirrorState, run: Run, turn: Turn) -> Next:
        """Check and mint."""
        return Go(
            steps.mint_credential,
            MintInput(
                installation_id=int(state.mirror.installation_id or 0),
                repository_id=int(run.input.repository_id),
                login=run.input.person.login,
                access="write" if run.input.access == "write" else "read",
            ),
        )

    def next(self, state: MirrorState, run: Run, result: Any, turn: Turn) -> Next:
        """Keep it sealed; the asker gets its id."""
        secret_id = f"credential/{run.id}"
        turn.keep_secret(secret_id, result.sealed_token, result.expires_at)
        turn.tell(
            run.input.reply_to, CredentialReady(purpose=run.input.purpose, secret_id=secret_id)
        )
        return Done()

    def on_error(self, state: MirrorState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Tell the asker, whose work fails visibly."""
        turn.tell(
            run.input.reply_to,
            CredentialRefused(purpose=run.input.purpose, error=Trouble.of(error)),
        )
        turn.cancel(run.id)


class Publishing(PublishInput):
    """What to publish, for which task."""

    task_key: str
    person: Person


class PublishPull(Workflow[MirrorState]):
    """The one pull request of a branch."""

    kind = "github_state.publish"
    input_type = Publishing
    steps = (steps.publish_pull_request,)

    def begin(self, state: MirrorState, run: Run, turn: Turn) -> Next:
        """Look for it, then create or update it."""
        given = run.input.model_dump(exclude={"task_key", "person"})
        return Go(steps.publish_pull_request, PublishInput(**given))

    def next(self, state: MirrorState, run: Run, result: Any, turn: Turn) -> Next:
        """Keep it; the repository tells the task."""
        facts = result.pull_request
        if not keep_pull_request(state, facts, turn, action="published", by=run.input.person):
            turn.tell(
                repository_key(state, facts.repository_id),
                PullRequestChanged(pull_request=facts, action="updated", by=run.input.person),
            )
        return Done()

    def on_error(self, state: MirrorState, run: Run, error: FoundryError, turn: Turn) -> None:
        """Tell the task; a pull request is asked for again by people."""
        turn.tell(run.input.task_key, PublishFailed(error=Trouble.of(error)))
        turn.cancel(run.id)


class Recover(Workflow[MirrorState]):
    """Deliveries that failed while Foundry was away, asked for again."""

    kind = "github_state.recover"
    steps = (steps.recover_deliveries,)

    def begin(self, state: MirrorState, run: Run, turn: Turn) -> Next:
        """Look through GitHub's log."""
        return Go(steps.recover_deliveries, Nothing())

    def next(self, state: MirrorState, run: Run, result: Any, turn: Turn) -> Next:
        """They come by webhook now."""
        return Done()

    def on_error(self, state: MirrorState, run: Run, error: FoundryError, turn: Turn) -> None:
        """The issue says that news may be missing; the next start looks again."""
        turn.cancel(run.id)
