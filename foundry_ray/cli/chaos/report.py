"""What a run did and found: for programs as JSON, for people as lines and tables."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import AwareDatetime, BaseModel

from foundry_ray.cli.chaos.plan import MOMENTS, PHASES, ROLES, WANTED, Phase, Role


class Kill(BaseModel):
    """One SIGKILL.

    Attributes:
        at: Seconds since the load began.
        processes: How many processes died by it; *pid* is the first.
        what: What the process was, as it called itself.
        key: The entity at whose moment it was sent; empty if it was everybody's.
        sandbox: The sandbox whose sandbox-agent it was.
        seen: What was seen right before: proof of the phase.
        back_after: Seconds until the part was of use again; None if nobody has needed it since.
    """

    time: AwareDatetime
    at: float
    role: Role
    phase: Phase
    pid: int
    start_ticks: int
    processes: int = 1
    what: str
    key: str
    sandbox: str = ""
    seen: dict[str, Any]
    back_after: float | None = None

    def line(self) -> str:
        """Return it as a line for people."""
        seen = ", ".join(f"{name} {value}" for name, value in self.seen.items())
        more = f" and {self.processes - 1} more" if self.processes > 1 else ""
        return (
            f"{self.at:7.2f} s  kill -9 {self.role:<13} {self.phase:<18}"
            f" pid {self.pid}{more} ({self.what})  {self.key}  [{seen}]"
        )


class Finding(BaseModel):
    """One invariant: how much was looked at, and what contradicts it."""

    name: str
    looked_at: dict[str, int] = {}
    broken: list[str] = []


class Report(BaseModel):
    """A whole run."""

    ok: bool = False
    seed: int
    minutes: float
    tasks: int
    command: str
    data_dir: str
    seconds: float = 0.0
    kills: list[Kill] = []
    findings: list[Finding] = []
    load: dict[str, int] = {}
    open_issues: list[dict[str, Any]] = []

    def conclude(self) -> None:
        """Decide: something was killed, and nothing broke."""
        self.ok = bool(self.kills and self.findings) and not any(f.broken for f in self.findings)


def lines(report: Report) -> list[str]:
    """Return the end of a report for people."""
    said = ["", *_table(report), ""]
    for name in MOMENTS:
        said.append(f"  {name}: {sum(kill.phase == name for kill in report.kills)} kills")
    back = sorted(kill.back_after for kill in report.kills if kill.back_after is not None)
    if back:
        middle, last = back[len(back) // 2], back[-1]
        said.append(f"  back after {middle:.1f} s (median), {last:.1f} s (longest)")
    said.append("  " + ", ".join(f"{value} {name}" for name, value in report.load.items()))
    said += [f"  open issue: {one}" for one in report.open_issues]
    said.append("")
    for finding in report.findings:
        looked = ", ".join(f"{value} {name}" for name, value in finding.looked_at.items())
        said.append(f"{'FAIL' if finding.broken else 'ok  '}  {finding.name}: {looked}")
        said += [f"      {one}" for one in finding.broken]
    verdict = "nothing was lost" if report.ok else "FAILED"
    said += [
        "",
        f"{len(report.kills)} kills in {report.seconds:.0f} s, seed {report.seed}: {verdict}",
    ]
    if not report.ok:
        said += [f"repeat it with: {report.command}", f"everything of it lies in {report.data_dir}"]
    return said


def _table(report: Report) -> list[str]:
    struck = Counter((kill.role, kill.phase) for kill in report.kills)
    widths = [max(len(role), 6) for role in ROLES]
    head = "  ".join(role.rjust(width) for role, width in zip(ROLES, widths, strict=True))
    rows = [f"  {'kills':<14}{head}"]
    for phase in PHASES:
        cells = "  ".join(
            str(struck[role, phase]).rjust(width) for role, width in zip(ROLES, widths, strict=True)
        )
        rows.append(f"  {phase:<14}{cells}")
    lacking = [(r, p) for p in PHASES for r in ROLES if struck[r, p] < WANTED]
    if lacking:
        rows.append(
            f"  {len(lacking)} of {len(ROLES) * len(PHASES)} cells have fewer than {WANTED}"
        )
    return rows
