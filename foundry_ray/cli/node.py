"""The node supervisor: the process behind ``foundry up``.

It starts PostgreSQL, the local forge (demonstrations only) and Ray as children in sessions of
their own, deploys the Serve applications, restarts what dies, and on a signal ends exactly what
it started. One thread: every wait goes through `_pump`, which also reaps children, the orphans
that this process adopts as their subreaper included.
"""

from __future__ import annotations

import ctypes
import os
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

import psycopg

from foundry_ray.cli import disks, drain
from foundry_ray.cli.leftovers import Report, end_leftovers, end_sandboxes
from foundry_ray.cli.parts import Parts
from foundry_ray.cli.places import Places
from foundry_ray.cli.ports import is_free
from foundry_ray.cli.processes import (
    NodeFile,
    Phase,
    Recorded,
    boot_id,
    carrying,
    end,
    members,
    recorded,
    this_process,
)
from foundry_ray.cli.services import Forge, Launcher, Postgres, Ray, Service, ask, edge_url
from foundry_ray.core import disk
from foundry_ray.core.clock import Clock, SystemClock
from foundry_ray.core.errors import FoundryError, Unavailable, WrongState
from foundry_ray.core.processes import ProcessRecord, is_still
from foundry_ray.core.settings import Settings

DEPLOY = ("-m", "foundry_ray.cluster.deploy")
EDGE, APPLICATIONS = "edge", "Serve applications"
DEPLOY_PATIENCE = 120.0  # seconds; 10 to 20 are usual
READY_PATIENCE = 60.0
EDGE_PERIOD = 5.0  # seconds between two looks at the edge
EDGE_PATIENCE = 60.0  # seconds without one answer after which Ray is restarted
LONGEST_BACKOFF = 30.0
DRAIN_PATIENCE = 4.0  # seconds for activations to finish their turns; `down` has ten in all
STABLE_AFTER = 60.0  # seconds of life that make a service's earlier deaths forgotten
_PR_SET_CHILD_SUBREAPER = 36


class Stopped(Exception):
    """Somebody asked the supervisor to end."""


class Node:
    """One run of everything on this machine; the caller holds the node lock.

    Args:
        settings: As loaded in this process; children load them again by themselves.
        environment: Of this process, with what the command line said.
        demo: Run the local forge.
        deploy: Arguments of the Python program that deploys the Serve applications.
        report: Is told, line by line, what a person wants to know.
    """

    def __init__(
        self,
        settings: Settings,
        environment: dict[str, str],
        report: Report,
        *,
        demo: bool = False,
        deploy: Sequence[str] = DEPLOY,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._report = report
        self._clock = clock or SystemClock()
        self._places = Places(settings.data_dir)
        child = environment | {
            "FOUNDRY_DATA_DIR": str(settings.data_dir),
            "FOUNDRY_INSTANCE_ID": settings.instance_id,
            "FOUNDRY_PORT": str(settings.port),
        }
        embedded = settings.database_url is None
        if embedded:
            child["FOUNDRY_DATABASE_URL_FILE"] = str(self._places.database_url)
        self._launcher = Launcher(child, self._places.logs)
        self._ray = Ray(settings, self._launcher)
        self._postgres = (
            Postgres(settings, self._launcher, self._places.database_url) if embedded else None
        )
        # A data directory that was begun as a demonstration needs its forge to go on.
        wants_forge = demo or self._places.forge.exists()
        self._forge = Forge(settings, self._launcher) if wants_forge else None
        self._services: list[Service] = [
            one for one in (self._postgres, self._forge, self._ray) if one is not None
        ]
        self._deaths = {one.name: 0 for one in self._services}
        self._born = {one.name: 0.0 for one in self._services}
        self._deploy_arguments = list(deploy)
        self._supervisor = this_process()
        self._phase: Phase = "starting"
        self._others: tuple[Recorded, ...] = ()
        self._exits: dict[int, int] = {}
        self._stop_asked = False
        self._exported = ""
        self._parts = Parts(self._clock)
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self, on_ready: Callable[[NodeFile], None]) -> None:
        """Bring everything up, watch it until a signal comes, then end it.

        Raises:
            FoundryError: The start failed; what had been started is ended.
        """
        settings = self._settings
        end_leftovers(settings, self._report)
        if not is_free(settings.host, settings.port):
            raise WrongState(
                f"port {settings.port} on {settings.host} is in use",
                hint="choose another one with --port",
            )
        self._take_signals()
        _become_subreaper()
        self._places.pid_file.write_text(f"{os.getpid()}\n")
        try:
            self._bring_up()
            on_ready(self._write("up"))
            self._watch()
        except Stopped:
            self._report("ending")
        except BaseException:
            self._drain("failed")
            raise
        self._drain("down")

    # -- up --------------------------------------------------------------------

    def _bring_up(self) -> None:
        self._write("starting")
        began = time.monotonic()
        self._begin(self._ray)  # the slowest: it warms up while the others start
        if self._postgres is not None:
            self._begin(self._postgres)
            self._await(self._postgres, began)
        self._step("database schema", "migrate", ["-m", "foundry_ray.cli", "db", "upgrade"])
        if (url := self._database_url()) is not None:
            drain.resume(url)
        if self._forge is not None:
            self._begin(self._forge)
            self._await(self._forge, time.monotonic())
        self._await(self._ray, began)
        self._deploy()

    def _begin(self, service: Service) -> None:
        service.start()
        self._parts.mark(service.name, "starting")
        self._born[service.name] = time.monotonic()
        self._write()

    def _await(self, service: Service, began: float) -> None:
        """Wait until *service* is of use.

        Raises:
            Unavailable: It ended before, or took too long.
        """
        deadline = time.monotonic() + service.patience
        while not service.ready():
            assert service.leader is not None, "only a started service is waited for"
            if not is_still(service.leader) or time.monotonic() > deadline:
                ended = not is_still(service.leader)
                raise Unavailable(
                    f"{service.name} {'ended while it started' if ended else 'did not start'}",
                    hint=f"read {service.log}",
                    log_tail=service.said(),
                )
            self._pump(0.05)
        self._parts.mark(service.name, "running")
        self._report(_line(service.name, "ready", time.monotonic() - began))

    def _step(self, name: str, log: str, arguments: list[str]) -> None:
        """Run one of our own programs to its end.

        Raises:
            Unavailable: It failed or took too long.
        """
        began = time.monotonic()
        environment = self._launcher.environment
        if self._ray.plan is not None:
            environment = environment | self._ray.plan.client
        leader = self._launcher.spawn(log, [sys.executable, *arguments], env=environment)
        while leader.pid not in self._exits:
            if time.monotonic() - began > DEPLOY_PATIENCE:
                end(members(leader, self._settings.instance_id), grace=1.0)
                raise Unavailable(f"{name}: no end after {DEPLOY_PATIENCE:.0f} s")
            self._pump(0.5)
        if self._exits.pop(leader.pid) != 0:
            path = self._launcher.log(log)
            raise Unavailable(
                f"{name} failed", hint=f"read {path}", log_tail=self._launcher.said(log)
            )
        self._report(_line(name, "done", time.monotonic() - began))

    def _deploy(self) -> None:
        for name in (EDGE, APPLICATIONS):
            self._parts.mark(name, "starting")
        self._step(APPLICATIONS, "deploy", self._deploy_arguments)
        began = time.monotonic()
        while (said := self._ask_edge("/readyz")) != 200:
            if time.monotonic() - began > READY_PATIENCE:
                raise Unavailable(
                    f"the edge is not ready: /readyz says {said or 'nothing'}",
                    hint=f"read {self._places.logs} and {self._settings.run_dir / 'ray'}",
                )
            self._pump(0.1)
        for name in (EDGE, APPLICATIONS):
            self._parts.mark(name, "running")
        self._report(_line(EDGE, "ready", time.monotonic() - began))

    def _ask_edge(self, path: str) -> int:
        """Return the status that the edge answers; 0 if it does not."""
        return ask(edge_url(self._settings) + path)

    # -- watching --------------------------------------------------------------

    def _watch(self) -> None:
        answered = looked = time.monotonic()
        while True:
            self._pump(1.0)
            for service in self._services:
                if trouble := service.trouble():
                    self._revive(service, trouble)
                    answered = time.monotonic()
            now = time.monotonic()
            if now - looked < EDGE_PERIOD:
                continue
            looked = now
            if self._look_at_edge():
                answered = time.monotonic()
            elif now - answered > EDGE_PATIENCE:
                self._revive(self._ray, "the edge does not answer")
                answered = time.monotonic()
            self._write()

    def _look_at_edge(self) -> bool:
        """Ask the edge and, through it, the applications; return whether the edge answers."""
        alive, said = self._ask_edge("/healthz") != 0, self._ask_edge("/readyz")
        if alive:
            self._parts.mark(EDGE, "running")
        else:
            self._parts.mark(EDGE, "away", "it does not answer")
        if said == 200:
            self._parts.mark(APPLICATIONS, "running")
        else:
            self._parts.mark(APPLICATIONS, "away", f"/readyz says {said or 'nothing'}")
        return alive

    def _revive(self, service: Service, trouble: str) -> None:
        """Start a dead service anew until it stays, pausing longer each time."""
        while True:
            self._parts.mark(service.name, "away", trouble)
            if service is self._ray:
                for name in (EDGE, APPLICATIONS):
                    self._parts.mark(name, "away", f"{service.name}: {trouble}")
            self._write()
            if time.monotonic() - self._born[service.name] > STABLE_AFTER:
                self._deaths[service.name] = 0
            pause = min(LONGEST_BACKOFF, 0.5 * 2 ** self._deaths[service.name] - 0.5)
            self._deaths[service.name] += 1
            self._report(f"{service.name}: {trouble}; starting it again in {pause:.1f} s")
            self._report_full_disks()
            self._end_rest(service)
            self._pause(pause)
            try:
                began = time.monotonic()
                self._begin(service)
                self._await(service, began)
                if service is self._ray:
                    self._deploy()
                self._write()
            except FoundryError as error:
                trouble = error.message
            except OSError as error:
                if not disk.is_full(error):
                    raise
                trouble = str(error)
            else:
                return

    def _report_full_disks(self) -> None:
        for one in disks.look(self._settings):
            if one.hint:
                self._report(f"{one.free_mib} MiB are free at {one.path}. {one.hint}")

    def _end_rest(self, service: Service) -> None:
        for left in service.stop():
            self._report(f"{service.name}: process {left.pid} does not end")

    # -- down ------------------------------------------------------------------

    def _drain(self, last: Phase) -> None:
        """End everything, dependants first, within 10 s; write down what was there."""
        began = time.monotonic()
        self._remember()
        self._write("draining")
        self._let_go()
        self._end_rest(self._ray)  # nobody starts sandboxes or writes any more
        end_sandboxes(self._places.sandboxes, self._report)
        for service in (self._forge, self._postgres):
            if service is not None:
                self._end_rest(service)
        left = end(carrying(self._settings.instance_id), grace=0.5)
        self._reap()
        self._write(last)
        for file in (self._places.database_url, self._places.pid_file):
            file.unlink(missing_ok=True)
        for record in left:
            self._report(f"process {record.pid} does not end")
        self._report(f"everything ended after {time.monotonic() - began:.1f} s")

    def _let_go(self) -> None:
        """Let activations finish their turns and release their entities, within a bound."""
        if (url := self._database_url()) is None:
            return
        deadline = time.monotonic() + DRAIN_PATIENCE
        try:
            before = left = drain.live(url)
            if before:
                drain.begin(url)
            while left and time.monotonic() < deadline:
                self._reap()
                time.sleep(0.1)
                left = drain.live(url)
        except psycopg.Error as trouble:
            self._report(f"PostgreSQL cannot be asked to drain: {trouble}")
            return
        if before:
            self._report(f"{before - left} of {before} activations let go")

    def _database_url(self) -> str | None:
        """Return where PostgreSQL is, if it can be asked."""
        if self._settings.database_url is not None:
            return self._settings.database_url.get_secret_value()
        if self._postgres is None or self._postgres.leader is None:
            return None
        return self._postgres.url if is_still(self._postgres.leader) else None

    def _remember(self) -> None:
        """Write down every process of ours, so that their end can be checked afterwards."""
        seen = [("", one) for service in self._services for one in self._session(service)]
        seen += [("", record) for record in carrying(self._settings.instance_id)]
        self._others = recorded(seen, besides=self._leaders())

    # -- what is written -------------------------------------------------------

    def _session(self, service: Service) -> list[ProcessRecord]:
        if service.leader is None:
            return []
        return members(service.leader, self._settings.instance_id)

    def _leaders(self) -> tuple[Recorded, ...]:
        return recorded(
            (service.name, service.leader)
            for service in self._services
            if service.leader is not None
        )

    def _write(self, phase: Phase | None = None) -> NodeFile:
        self._phase = phase or self._phase
        base = self._settings.public_url
        urls = {"foundry": base, "sign_in": f"{base}/api/auth/github/login"}
        if self._forge is not None and self._forge.url:
            urls["forge"] = self._forge.url
        plan = self._ray.plan
        if plan is not None:
            urls["ray_dashboard"] = plan.dashboard
        written = NodeFile(
            instance_id=self._settings.instance_id,
            boot_id=boot_id(),
            phase=self._phase,
            written_at=self._clock.now(),
            supervisor=Recorded.of("supervisor", self._supervisor),
            services=self._leaders(),
            others=self._others,
            urls=urls,
            ports={} if plan is None else plan.ports,
            edge=(self._settings.host, self._settings.port),
            ray_environment={} if plan is None else plan.client,
            parts=self._parts.all(),
        )
        exports = "".join(
            f"export {k}={shlex.quote(v)}\n" for k, v in written.ray_environment.items()
        )
        try:
            written.write(self._places.node_file)
            if exports != self._exported:
                self._places.ray_environment.write_text(exports)
                self._exported = exports
        except OSError as trouble:
            # What was written before stays; everything is still found by its instance.
            if not disk.is_full(trouble):
                raise
        return written

    # -- signals and children --------------------------------------------------

    def _take_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._asked)

    def _asked(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_asked = True

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (rest := deadline - time.monotonic()) > 0:
            self._pump(rest)

    def _pump(self, seconds: float) -> None:
        """Wait for a signal, at most *seconds*; reap what ended.

        Raises:
            Stopped: We are asked to end.
        """
        if select.select([self._wake_out], [], [], seconds)[0]:
            os.read(self._wake_out, 4096)
        self._reap()
        if self._stop_asked:
            self._stop_asked = False
            raise Stopped

    def _reap(self) -> None:
        """Take the exit codes of ended children; of a leader, end the session first.

        Until its leader is reaped, nobody else can get the number of a session.
        """
        while True:
            try:
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if seen is None:
                return
            for service in self._services:
                if service.leader is not None and service.leader.pid == seen.si_pid:
                    self._end_rest(service)
            _, status = os.waitpid(seen.si_pid, 0)
            self._exits[seen.si_pid] = os.waitstatus_to_exitcode(status)


def _become_subreaper() -> None:
    """Let orphans of our children become our children: then their end is seen."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise Unavailable(f"cannot adopt orphans: {os.strerror(number)}")


def _line(name: str, word: str, seconds: float) -> str:
    return f"  {name:<20} {word:<6} {seconds:5.1f} s"
