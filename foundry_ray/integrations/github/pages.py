"""GitHub's lists, page by page, through PyGithub's requester (blocking).

PyGithub's own lists hide whether there is a next page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from github import Github
from requests.utils import parse_header_links

from foundry_ray.integrations.github.app_auth import PAGE_SIZE
from foundry_ray.integrations.github.errors import Malformed


def get(github: Github, path: str, **parameters: Any) -> tuple[Mapping[str, Any], Any]:
    """Return the headers (lower-case names) and the JSON of an answer."""
    return github.requester.requestJsonAndCheck("GET", path, parameters=parameters)


def get_page(
    github: Github, path: str, page: int, **parameters: Any
) -> tuple[Mapping[str, Any], Any]:
    """Return the headers and the JSON of one page of a list."""
    return get(github, path, per_page=PAGE_SIZE, page=page, **parameters)


def items_of(data: Any, key: str | None) -> list[Any]:
    """Return the list in a page, which for some lists stands under *key*."""
    items = data.get(key) if key is not None and isinstance(data, dict) else data
    if not isinstance(items, list):
        raise Malformed(f"a list was expected, {key or 'at the top'}")
    return items


def every(github: Github, path: str, key: str | None = None, **parameters: Any) -> list[Any]:
    """Read every page of a list that is short by nature (one person's, one App's)."""
    found: list[Any] = []
    page: int | None = 1
    while page is not None:
        headers, data = get_page(github, path, page, **parameters)
        found += items_of(data, key)
        page = next_page(headers)
    return found


def next_value(headers: Mapping[str, Any], parameter: str) -> str | None:
    """Return *parameter* of the next page's address, from the Link header."""
    for link in parse_header_links(str(headers.get("link") or "")):
        if link.get("rel") == "next":
            values = parse_qs(urlsplit(link["url"]).query).get(parameter)
            return values[0] if values else None
    return None


def next_page(headers: Mapping[str, Any]) -> int | None:
    """Return the number of the next page."""
    page = next_value(headers, "page")
    return int(page) if page is not None and page.isdigit() else None
