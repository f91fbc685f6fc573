"""What may come in."""

from __future__ import annotations

import pytest

from foundry_ray.core.errors import InvalidInput
from foundry_ray.serve.shapes import page_cursor, read_page_cursor
from foundry_ray.serve.streams.topics import parse


def test_a_page_cursor_is_read_as_it_was_written() -> None:
    assert read_page_cursor(page_cursor("01abc")) == "01abc"
    assert read_page_cursor(None) is None


@pytest.mark.parametrize("text", ["", "x", "é", "W10", "WzFd", "WyJcdTAwMDAiXQ"])
def test_a_page_cursor_that_nobody_wrote_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        read_page_cursor(text)


def test_topics_are_read_once_each() -> None:
    asked = parse("organization:1, task:1/t ,session:1/t/s,organization:1")

    assert [one.name for one in asked] == ["organization:1", "task:1/t", "session:1/t/s"]
    assert [one.organization_id for one in asked] == ["1", "1", "1"]


@pytest.mark.parametrize(
    "text", ["", ",", "app", "repository:1/2", "processes:1/2", "task:1", "session:1/t", "task:1/T"]
)
def test_other_topics_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse(text)
