"""Open ports are read from the kernel's tables; what is not loopback needs a reason."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from foundry_ray.cli.ports import (
    EDGE_ELSEWHERE,
    SANDBOX_ELSEWHERE,
    Listener,
    Ours,
    choose_free,
    is_free,
    is_loopback,
    listening,
)


@pytest.fixture
def opened() -> Iterator[dict[str, int]]:
    """Open one port of each sort in this process and return their numbers."""
    with ExitStack() as stack:
        ports = {}
        for name, family, kind, address in (
            ("loopback", socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
            ("open", socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0"),
            ("open6", socket.AF_INET6, socket.SOCK_STREAM, "::"),
            ("mapped", socket.AF_INET6, socket.SOCK_STREAM, "::ffff:127.0.0.1"),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
        ):
            one = stack.enter_context(socket.socket(family, kind))
            one.bind((address, 0))
            if kind == socket.SOCK_STREAM:
                one.listen()
            ports[name] = one.getsockname()[1]
        yield ports


def _by_port(found: list[Listener]) -> dict[int, Listener]:
    return {one.port: one for one in found}


def test_every_open_port_of_a_process_is_seen(opened: dict[str, int]) -> None:
    found = _by_port(listening([Ours(os.getpid(), False)], edge=None))
    assert found[opened["loopback"]].address == "127.0.0.1"
    assert found[opened["open"]].address == "0.0.0.0"
    assert found[opened["open6"]].address == "::"
    assert found[opened["mapped"]].address == "127.0.0.1"
    assert found[opened["udp"]].protocol == "udp"
    loopback = {name for name, port in opened.items() if found[port].loopback}
    assert loopback == {"loopback", "mapped", "udp"}
    assert all(found[port].reason is None for port in opened.values())


def test_only_the_edge_and_sandboxes_have_a_reason_to_be_open(opened: dict[str, int]) -> None:
    edge = _by_port(listening([Ours(os.getpid(), False)], edge=("0.0.0.0", opened["open"])))
    assert edge[opened["open"]].reason == EDGE_ELSEWHERE
    assert edge[opened["open6"]].reason is None
    own = _by_port(listening([Ours(os.getpid(), False)], edge=("127.0.0.1", opened["open"])))
    assert own[opened["open"]].reason is None
    sandboxed = _by_port(listening([Ours(os.getpid(), True)], edge=None))
    assert sandboxed[opened["open"]].reason == SANDBOX_ELSEWHERE
    assert sandboxed[opened["loopback"]].reason is None


def test_chosen_ports_are_free_and_below_the_kernels_own_range(opened: dict[str, int]) -> None:
    chosen = choose_free(10)
    assert len(set(chosen)) == 10
    assert all(is_free("127.0.0.1", port) for port in chosen)
    assert not is_free("127.0.0.1", opened["loopback"])


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.0.9", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False)],
)
def test_loopback_is_told_from_the_rest(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
