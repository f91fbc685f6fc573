"""Ends what nobody looks after any more; the caller holds the node lock."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from foundry_ray.cli.places import Places
from foundry_ray.cli.processes import NodeFile, carrying, end, members, recorded
from foundry_ray.cli.services import Postgres
from foundry_ray.core.errors import FoundryError
from foundry_ray.core.settings import Settings

Report = Callable[[str], None]


def end_leftovers(settings: Settings, report: Report) -> None:
    """End the services that a supervisor left behind when it died; sandboxes go on."""
    written = NodeFile.read(Places(settings.data_dir).node_file)
    if written is None or not written.of_this_boot:
        return
    for service in reversed(written.services):
        rest = members(service.record, written.instance_id)
        if rest:
            report(f"ending {service.name}, which an earlier run left behind")
            first = signal.SIGINT if service.name == Postgres.name else signal.SIGKILL
            end(rest, grace=4.0, first=first)


def end_sandboxes(root: Path, report: Report) -> None:
    """End the processes of every local sandbox; what the sandboxes hold stays.

    Trouble is reported, not raised: the rest of a drain must still happen.
    """
    if not root.is_dir():
        return
    from foundry_ray.providers.local import end_all  # costs 0.3 s, and most ends need it not

    try:
        for sandbox in asyncio.run(end_all(root)):
            report(f"sandbox {sandbox.sandbox_id} ended")
    except FoundryError as error:
        # The drain goes on: whatever still carries our instance id is ended last.
        report(f"sandboxes: {error.message}")


def end_rest(settings: Settings, places: Places, report: Report) -> tuple[int, int]:
    """End what no supervisor looks after; return how many ended and how many would not."""
    written = NodeFile.read(places.node_file)
    if written is None or not written.of_this_boot:
        return 0, 0
    sessions = [
        (service, members(service.record, settings.instance_id)) for service in written.services
    ]
    found = {("", one) for _, session in sessions for one in session}
    found |= {("", one) for one in carrying(settings.instance_id)}
    if not found:
        if written.phase not in ("down", "failed"):
            written.model_copy(update={"phase": "down"}).write(places.node_file)
        return 0, 0
    others = recorded(found, besides=written.services)
    written = written.model_copy(update={"others": (*written.others, *others)})
    written.write(places.node_file)
    for service, session in reversed(sessions):
        if service.name != Postgres.name:
            end(session, grace=0, first=signal.SIGKILL)
    end_sandboxes(places.sandboxes, report)
    for service, session in sessions:
        if service.name == Postgres.name:
            end(session, grace=4.0, first=signal.SIGINT)
    left = end(carrying(settings.instance_id), grace=1.0)
    report("the supervisor was gone already; what it had left behind was ended")
    written.model_copy(update={"phase": "down"}).write(places.node_file)
    return len(found) - len(left), len(left)
