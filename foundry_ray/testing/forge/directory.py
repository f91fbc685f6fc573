"""Who and what there is, and who may do what: the queries that every part asks."""

from __future__ import annotations

from foundry_ray.testing.forge.records import Account, App, Installation, Member, Repository
from foundry_ray.testing.forge.store import Store

ACCESS = {None: 0, "read": 1, "triage": 2, "write": 3, "maintain": 4, "admin": 5}


class Directory:
    """Accounts, memberships, repositories and installations of one forge."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # -- accounts ---------------------------------------------------------------

    def account(self, login: str) -> Account | None:
        """Return the account with this login, in any case."""
        return self.store.one(Account, "SELECT * FROM accounts WHERE login = ?", login)

    def account_by_id(self, account_id: int) -> Account | None:
        """Return the account with this id."""
        return self.store.one(Account, "SELECT * FROM accounts WHERE id = ?", account_id)

    def known(self, account_id: int) -> Account:
        """Return an account that another row names: it is there."""
        found = self.account_by_id(account_id)
        assert found is not None, f"account {account_id} is named by a row but missing"
        return found

    def by_email(self, email: str) -> Account | None:
        """Return the person whose commits carry this address."""
        return self.store.one(
            Account, "SELECT * FROM accounts WHERE email = ? AND kind <> 'Organization'", email
        )

    def people(self) -> list[Account]:
        """Return every person."""
        return self.store.all(Account, "SELECT * FROM accounts WHERE kind = 'User' ORDER BY id")

    def add_account(self, login: str, kind: str, name: str | None, email: str | None) -> Account:
        """Add an account; the login must be free."""
        now = self.store.now()
        made = self.store.insert(
            "accounts",
            login=login,
            kind=kind,
            name=name,
            email=email,
            created_at=now,
            updated_at=now,
        )
        return self.known(made)

    # -- organizations ----------------------------------------------------------

    def role(self, org_id: int, user_id: int) -> str | None:
        """Return a person's role in an organization, or none."""
        found: str | None = self.store.value(
            "SELECT role FROM members WHERE org_id = ? AND user_id = ?", org_id, user_id
        )
        return found

    def members(self, org_id: int) -> list[tuple[Account, str]]:
        """Return the people of an organization with their roles."""
        rows = self.store.all(
            Member, "SELECT * FROM members WHERE org_id = ? ORDER BY user_id", org_id
        )
        return [(self.known(row.user_id), row.role) for row in rows]

    def memberships(self, user_id: int) -> list[tuple[Account, str]]:
        """Return the organizations of a person with the roles there."""
        rows = self.store.all(
            Member, "SELECT * FROM members WHERE user_id = ? ORDER BY org_id", user_id
        )
        return [(self.known(row.org_id), row.role) for row in rows]

    # -- repositories -----------------------------------------------------------

    def repository(self, owner: str, name: str) -> Repository | None:
        """Return the repository ``owner/name``, in any case."""
        return self.store.one(
            Repository,
            "SELECT r.* FROM repositories r JOIN accounts a ON a.id = r.owner_id"
            " WHERE a.login = ? AND r.name = ?",
            owner,
            name,
        )

    def repository_by_id(self, repository_id: int) -> Repository | None:
        """Return the repository with this id."""
        return self.store.one(Repository, "SELECT * FROM repositories WHERE id = ?", repository_id)

    def repositories_of(self, owner_id: int) -> list[Repository]:
        """Return every repository of an account, oldest first."""
        return self.store.all(
            Repository, "SELECT * FROM repositories WHERE owner_id = ? ORDER BY id", owner_id
        )

    def all_repositories(self) -> list[Repository]:
        """Return every repository of the forge, oldest first."""
        return self.store.all(Repository, "SELECT * FROM repositories ORDER BY id")

    def open_pulls(self, repository_id: int) -> int:
        """Return how many pull requests are open."""
        return int(
            self.store.value(
                "SELECT count(*) FROM pulls WHERE repository_id = ? AND state = 'open'",
                repository_id,
            )
        )

    def access(self, user_id: int, repository: Repository) -> str | None:
        """Return what a person may do there: admin, maintain, write, triage, read or none."""
        if repository.owner_id == user_id or self.role(repository.owner_id, user_id) == "admin":
            return "admin"
        levels: list[str | None] = [
            self.store.value(
                "SELECT permission FROM collaborators WHERE repository_id = ? AND user_id = ?",
                repository.id,
                user_id,
            )
        ]
        if self.role(repository.owner_id, user_id) is not None:
            levels.append("write")
        if not repository.private:
            levels.append("read")
        return max(levels, key=lambda level: ACCESS[level])

    # -- Apps -------------------------------------------------------------------

    def app(self, app_id: int) -> App | None:
        """Return the App with this id."""
        return self.store.one(App, "SELECT * FROM apps WHERE id = ?", app_id)

    def app_by_slug(self, slug: str) -> App | None:
        """Return the App with this name in URLs."""
        return self.store.one(App, "SELECT * FROM apps WHERE slug = ?", slug)

    def app_by_client(self, client_id: str) -> App | None:
        """Return the App with this OAuth client id."""
        return self.store.one(App, "SELECT * FROM apps WHERE client_id = ?", client_id)

    def installations(self, app_id: int) -> list[Installation]:
        """Return the installations of an App."""
        return self.store.all(
            Installation, "SELECT * FROM installations WHERE app_id = ? ORDER BY id", app_id
        )

    def installation(self, installation_id: int) -> Installation | None:
        """Return the installation with this id."""
        return self.store.one(
            Installation, "SELECT * FROM installations WHERE id = ?", installation_id
        )

    def installations_on(self, account_id: int) -> list[Installation]:
        """Return the installations of all Apps on one account."""
        return self.store.all(
            Installation, "SELECT * FROM installations WHERE account_id = ? ORDER BY id", account_id
        )

    def installed_on(self, app_id: int, account_id: int) -> Installation | None:
        """Return this App's installation on this account."""
        return self.store.one(
            Installation,
            "SELECT * FROM installations WHERE app_id = ? AND account_id = ?",
            app_id,
            account_id,
        )

    def covers(self, installation: Installation, repository: Repository) -> bool:
        """Tell whether an installation reaches a repository."""
        if repository.owner_id != installation.account_id:
            return False
        return installation.selection == "all" or bool(
            self.store.value(
                "SELECT 1 FROM installation_repositories"
                " WHERE installation_id = ? AND repository_id = ?",
                installation.id,
                repository.id,
            )
        )

    def covered(self, installation: Installation) -> list[Repository]:
        """Return the repositories that an installation reaches."""
        return [
            repository
            for repository in self.repositories_of(installation.account_id)
            if self.covers(installation, repository)
        ]
