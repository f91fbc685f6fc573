"""Where a client is in the feed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_ray.runtime.feed import Cursor
from foundry_ray.serve.streams import cursor as cursors
from foundry_ray.serve.streams.cursor import Place, Sight

SIGHT = Sight(10, 15, (10, 12))


@pytest.mark.parametrize(
    ("xid", "seen"), [(9, True), (10, False), (11, True), (12, False), (14, True), (15, False)]
)
def test_a_snapshot_sees_what_was_over_when_it_was_taken(xid: int, seen: bool) -> None:
    assert SIGHT.sees(xid) is seen


def test_a_snapshot_reads_as_postgresql_writes_it() -> None:
    assert Sight.parse("10:15:10,12") == SIGHT
    assert Sight.parse("10:10:") == Sight(10, 10, ())
    assert str(SIGHT) == "10:15:10,12"


def test_after_a_snapshot_only_what_it_did_not_see_is_news() -> None:
    place = Place.after(SIGHT, 0)

    wanted = [xid for xid in range(8, 18) if place.wants(Cursor(xid, 1))]

    assert wanted == [10, 12, 15, 16, 17]


@given(st.sets(st.integers(1, 40)), st.integers(0, 40), st.lists(st.integers(0, 60), max_size=5))
def test_whoever_stops_and_goes_on_gets_everything_once(
    running: set[int], width: int, stops: list[int]
) -> None:
    """However often a client comes back with its cursor, snapshot and news make up the whole."""
    xmin = min(running, default=20)
    seen = Sight(xmin, xmin + width, tuple(sorted(x for x in running if x < xmin + width)))
    rows = [Cursor(xid, row) for xid in range(1, 61) for row in (1, 2)]
    place, got = Place.after(seen, 0), []
    for stop in [*sorted(stops), 60]:
        for row in rows:
            if row.xid <= stop and place.wants(row):
                got.append(row)
        place = place.move(Cursor(stop, 2), 0)
        place = cursors.read(cursors.write([("one", place)]))["one"]

    assert got == [row for row in rows if not seen.sees(row.xid)]


def test_a_place_never_goes_back() -> None:
    place = Place(Cursor(9, 9), None, 1).move(Cursor(5, 1), 2)

    assert place == Place(Cursor(9, 9), None, 2)


def test_a_cursor_is_read_as_it_was_written() -> None:
    places = {"one": Place.after(SIGHT, 3), "two": Place(Cursor(7, 1), None, 4)}

    assert cursors.read(cursors.write(places.items())) == places


def test_a_cursor_for_fifty_topics_fits_into_a_header() -> None:
    names = [cursors.name_of(f"session:1/{'t' * 26}/{number}") for number in range(50)]
    place = Place.after(Sight(2**40, 2**40 + 40, tuple(range(2**40, 2**40 + 20))), 2**31)

    assert len(cursors.write((name, place) for name in names)) < 4096


@given(st.text())
def test_what_nobody_wrote_names_no_topic(text: str) -> None:
    assert cursors.read(text) == {} or cursors.read(text)


@pytest.mark.parametrize(
    "text", ["", "é", "W10", "e30", "WzFd", "W1sxLDIsMyw0LDVdXQ", "W1siYSIsMSwxLCIiLFsieCJdXV0"]
)
def test_garbage_names_no_topic(text: str) -> None:
    assert cursors.read(text) == {}
