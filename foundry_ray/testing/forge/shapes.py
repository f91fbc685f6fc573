"""How accounts, repositories and Apps look in JSON: the fields that GitHub's schemas ask for."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from foundry_ray.testing.forge.records import Account, App, Delivery, Installation, Repository

Json = dict[str, Any]


def node_id(kind: str, number: int | str) -> str:
    """Return the opaque id that GitHub's GraphQL would use."""
    return base64.b64encode(f"{len(kind):02d}:{kind}{number}".encode()).decode()


@dataclass(frozen=True)
class Addresses:
    """The URLs of one forge: web, REST and git below one base."""

    base: str

    @property
    def api(self) -> str:
        """The base of the REST API."""
        return f"{self.base}/api/v3"

    def html(self, *parts: object) -> str:
        """Return the address of a page."""
        return "/".join([self.base, *(quote(str(part)) for part in parts)])

    def rest(self, *parts: object) -> str:
        """Return the address of a REST resource."""
        return "/".join([self.api, *(quote(str(part)) for part in parts)])


_USER_LINKS = {
    "followers_url": "/followers",
    "following_url": "/following{/other_user}",
    "gists_url": "/gists{/gist_id}",
    "starred_url": "/starred{/owner}{/repo}",
    "subscriptions_url": "/subscriptions",
    "organizations_url": "/orgs",
    "repos_url": "/repos",
    "events_url": "/events{/privacy}",
    "received_events_url": "/received_events",
}

_REPOSITORY_LINKS = {
    "forks_url": "/forks",
    "keys_url": "/keys{/key_id}",
    "collaborators_url": "/collaborators{/collaborator}",
    "teams_url": "/teams",
    "hooks_url": "/hooks",
    "issue_events_url": "/issues/events{/number}",
    "events_url": "/events",
    "assignees_url": "/assignees{/user}",
    "branches_url": "/branches{/branch}",
    "tags_url": "/tags",
    "blobs_url": "/git/blobs{/sha}",
    "git_tags_url": "/git/tags{/sha}",
    "git_refs_url": "/git/refs{/sha}",
    "trees_url": "/git/trees{/sha}",
    "statuses_url": "/statuses/{sha}",
    "languages_url": "/languages",
    "stargazers_url": "/stargazers",
    "contributors_url": "/contributors",
    "subscribers_url": "/subscribers",
    "subscription_url": "/subscription",
    "commits_url": "/commits{/sha}",
    "git_commits_url": "/git/commits{/sha}",
    "comments_url": "/comments{/number}",
    "issue_comment_url": "/issues/comments{/number}",
    "contents_url": "/contents/{+path}",
    "compare_url": "/compare/{base}...{head}",
    "merges_url": "/merges",
    "archive_url": "/{archive_format}{/ref}",
    "downloads_url": "/downloads",
    "issues_url": "/issues{/number}",
    "pulls_url": "/pulls{/number}",
    "milestones_url": "/milestones{/number}",
    "notifications_url": "/notifications{?since,all,participating}",
    "labels_url": "/labels{/name}",
    "releases_url": "/releases{/id}",
    "deployments_url": "/deployments",
}


def account(at: Addresses, who: Account) -> Json:
    """Return the short form of an account, as it stands inside other objects."""
    url = at.rest("users", who.login)
    page = ("apps", who.login.removesuffix("[bot]")) if who.kind == "Bot" else (who.login,)
    return {
        "login": who.login,
        "id": who.id,
        "node_id": node_id(who.kind, who.id),
        "avatar_url": at.html("avatars", "u", who.id),
        "gravatar_id": "",
        "url": url,
        "html_url": at.html(*page),
        **{name: url + tail for name, tail in _USER_LINKS.items()},
        "type": who.kind,
        "site_admin": False,
    }


def profile(at: Addresses, who: Account, *, repositories: int, private: bool = False) -> Json:
    """Return the full form of an account; *private* adds what only the person sees."""
    shape = account(at, who) | {
        "name": who.name,
        "company": None,
        "blog": "",
        "location": None,
        "email": who.email,
        "hireable": None,
        "bio": None,
        "twitter_username": None,
        "public_repos": repositories,
        "public_gists": 0,
        "followers": 0,
        "following": 0,
        "created_at": who.created_at,
        "updated_at": who.updated_at,
    }
    if private:
        shape |= {
            "private_gists": 0,
            "total_private_repos": 0,
            "owned_private_repos": 0,
            "disk_usage": 0,
            "collaborators": 0,
            "two_factor_authentication": True,
            "plan": {
                "name": "free",
                "space": 976562499,
                "collaborators": 0,
                "private_repos": 10000,
            },
        }
    return shape


def organization(at: Addresses, who: Account) -> Json:
    """Return the short form of an organization."""
    url = at.rest("orgs", who.login)
    return {
        "login": who.login,
        "id": who.id,
        "node_id": node_id("Organization", who.id),
        "url": url,
        "repos_url": f"{url}/repos",
        "events_url": f"{url}/events",
        "hooks_url": f"{url}/hooks",
        "issues_url": f"{url}/issues",
        "members_url": url + "/members{/member}",
        "public_members_url": url + "/public_members{/member}",
        "avatar_url": at.html("avatars", "u", who.id),
        "description": "",
    }


def organization_profile(at: Addresses, who: Account, *, repositories: int) -> Json:
    """Return the full form of an organization."""
    return organization(at, who) | {
        "name": who.name,
        "company": "",
        "blog": "",
        "location": "",
        "email": who.email,
        "twitter_username": None,
        "is_verified": False,
        "has_organization_projects": True,
        "has_repository_projects": True,
        "public_repos": repositories,
        "public_gists": 0,
        "followers": 0,
        "following": 0,
        "html_url": at.html(who.login),
        "created_at": who.created_at,
        "updated_at": who.updated_at,
        "archived_at": None,
        "type": "Organization",
    }


def membership(at: Addresses, org: Account, user: Account, role: str) -> Json:
    """Return a person's membership of an organization as REST tells it."""
    url = at.rest("orgs", org.login)
    return {
        "url": f"{url}/memberships/{quote(user.login)}",
        "state": "active",
        "role": role,
        "organization_url": url,
        "organization": organization(at, org),
        "user": account(at, user),
    }


def repository_name(what: Repository, owner: Account) -> Json:
    """Return the handful of fields that installation events carry."""
    return {
        "id": what.id,
        "node_id": node_id("Repository", what.id),
        "name": what.name,
        "full_name": f"{owner.login}/{what.name}",
        "private": bool(what.private),
    }


def repository(at: Addresses, what: Repository, owner: Account, *, open_pulls: int = 0) -> Json:
    """Return a repository as webhooks and pull requests carry it."""
    url = at.rest("repos", owner.login, what.name)
    page = at.html(owner.login, what.name)
    host = at.base.split("://", 1)[1]
    return repository_name(what, owner) | {
        "owner": account(at, owner),
        "html_url": page,
        "description": what.description,
        "fork": what.fork_of is not None,
        "url": url,
        **{name: url + tail for name, tail in _REPOSITORY_LINKS.items()},
        "created_at": what.created_at,
        "updated_at": what.updated_at,
        "pushed_at": what.pushed_at,
        "git_url": f"git://{host}/{owner.login}/{what.name}.git",
        "ssh_url": f"git@{host.split(':')[0]}:{owner.login}/{what.name}.git",
        "clone_url": f"{page}.git",
        "svn_url": page,
        "homepage": None,
        "size": 0,
        "stargazers_count": 0,
        "watchers_count": 0,
        "language": None,
        "has_issues": True,
        "has_projects": True,
        "has_downloads": True,
        "has_wiki": False,
        "has_pages": False,
        "has_discussions": False,
        "forks_count": 0,
        "mirror_url": None,
        "archived": bool(what.archived),
        "disabled": False,
        "open_issues_count": open_pulls,
        "license": None,
        "allow_forking": True,
        "is_template": False,
        "web_commit_signoff_required": False,
        "topics": [],
        "visibility": "private" if what.private else "public",
        "forks": 0,
        "open_issues": open_pulls,
        "watchers": 0,
        "default_branch": what.default_branch,
        "custom_properties": {},
    }


def pushed_repository(
    at: Addresses, what: Repository, owner: Account, *, open_pulls: int = 0
) -> Json:
    """Return a repository as ``push`` events alone carry it: with seconds for two instants."""
    shape = repository(at, what, owner, open_pulls=open_pulls)
    shape["owner"] |= {"name": owner.login, "email": owner.email}
    return shape | {
        "created_at": _seconds(what.created_at),
        "pushed_at": _seconds(what.pushed_at),
        "stargazers": 0,
        "master_branch": what.default_branch,
    }


def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


_LEVELS = ("read", "triage", "write", "maintain", "admin")
_RIGHTS = ("pull", "triage", "push", "maintain", "admin")


def rights(level: str | None) -> dict[str, bool]:
    """Return the ``permissions`` object of somebody with this access."""
    reach = _LEVELS.index(level) if level in _LEVELS else -1
    return {right: at <= reach for at, right in enumerate(_RIGHTS)}


def app(at: Addresses, what: App, owner: Account, *, installations: int) -> Json:
    """Return a GitHub App as it sees itself."""
    return {
        "id": what.id,
        "slug": what.slug,
        "node_id": node_id("Integration", what.id),
        "client_id": what.client_id,
        "owner": account(at, owner),
        "name": what.name,
        "description": "",
        "external_url": at.html("apps", what.slug),
        "html_url": at.html("apps", what.slug),
        "created_at": what.created_at,
        "updated_at": what.updated_at,
        "permissions": what.permission_map,
        "events": json.loads(what.events),
        "installations_count": installations,
    }


def installation(
    at: Addresses, what: Installation, holder: Account, slug: str, suspender: Account | None
) -> Json:
    """Return one installation of an App."""
    page = at.html("settings", "installations", what.id)
    if holder.kind == "Organization":
        page = at.html("organizations", holder.login, "settings", "installations", what.id)
    return {
        "id": what.id,
        "account": account(at, holder),
        "repository_selection": what.selection,
        "access_tokens_url": at.rest("app", "installations", what.id, "access_tokens"),
        "repositories_url": at.rest("installation", "repositories"),
        "html_url": page,
        "app_id": what.app_id,
        "app_slug": slug,
        "target_id": holder.id,
        "target_type": holder.kind,
        "permissions": what.permission_map,
        "events": json.loads(what.events),
        "created_at": what.created_at,
        "updated_at": what.updated_at,
        "single_file_name": None,
        "has_multiple_single_files": False,
        "single_file_paths": [],
        "suspended_by": None if suspender is None else account(at, suspender),
        "suspended_at": what.suspended_at,
    }


def delivery(at: Addresses, what: Delivery, *, detail: bool = False) -> Json:
    """Return one webhook delivery; *detail* adds what was sent and answered."""
    shape: Json = {
        "id": what.id,
        "guid": what.guid,
        "delivered_at": what.delivered_at,
        "redelivery": bool(what.redelivery),
        "duration": what.duration,
        "status": what.status,
        "status_code": what.status_code,
        "event": what.event,
        "action": what.action,
        "installation_id": what.installation_id,
        "repository_id": what.repository_id,
        "throttled_at": None,
    }
    if detail:
        shape |= {
            "url": what.url,
            "request": {
                "headers": json.loads(what.request_headers),
                "payload": json.loads(what.payload),
            },
            "response": {
                "headers": json.loads(what.response_headers),
                "payload": what.response_payload,
            },
        }
    return shape
