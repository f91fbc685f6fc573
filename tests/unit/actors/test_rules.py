"""What the flats decide: pure."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_ray.actors.repository.rules import (
    TITLE_LENGTH,
    branch_for,
    collides,
    title_of,
    valid_branch,
)
from foundry_ray.actors.sandbox_instance.steps.git import PATCH_LIMIT, _files, _patches
from foundry_ray.actors.task.messages import PhaseChanged, ProvisioningView, queued_phases
from foundry_ray.actors.task.rules import advance, status_of
from foundry_ray.actors.task_session import rules as session_rules
from foundry_ray.actors.task_session.messages import Record
from foundry_ray.core.facts import PHASES, FileChange, Trouble
from tests.unit.actors.kit import NOW

# -- branches ----------------------------------------------------------------------

NAMES = [
    "", "a", "main", "HEAD", "head", "@@", "a@", "@a", "-", "-a", "a-", "--", "a b", "a\tb",
    "a\nb", "a..b", "a.b", "a.", ".a", "a/.b", "a/b.", "a./b", "a.lock", "a.lock/b", "a/b.lock",
    "a.LOCK", "lock", ".lock", "a//b", "/a", "a/", "/", "a/b/c", "a~", "a^", "a:b", "a?", "a*",
    "a[", "a]", "a\\b", "a@{b", "a{b", "a}b", "@{", "@{-1}", "a\x7f", "a\x01", "é", "分支", "🌿",
    "a;b", "a'b", 'a"b', "a$b", "a`b", "a|b", "a&b", "a<b", "a>b", "a(b)", "a#b", "a!b", "a%b",
    "a,b", "a=b", "a+b", "refs/heads/x", "refs", "FETCH_HEAD", "foundry/fix-1", "x" * 200, "..",
    ".", "...", "a/../b", "a/./b", "a/-b", "-/a", "HEAD/a", "a/HEAD", "@/a", "a/@", " a", "a ",
    "\u00a0", "a\u200bb", "a/b.lock/c", "a.lock.", "a.b.lock", "1", "0", "_", "{}", "a..", "a/..",
]  # fmt: skip


def git_accepts(name: str, folder: Path) -> bool:
    run = subprocess.run(
        ["git", "check-ref-format", "--branch", name], capture_output=True, cwd=folder, check=False
    )
    return run.returncode == 0 and run.stdout.decode().rstrip("\n") == name


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_name_is_valid_when_git_says_so(name: str, tmp_path: Path) -> None:
    assert valid_branch(name) == git_accepts(name, tmp_path)


ODD = st.text(alphabet="ab/.@{~^:?*[\\-}lock\x7f\x1f é", max_size=9)


@given(ODD.filter(lambda name: name != "@"))
@settings(derandomize=True, max_examples=300, deadline=None)
def test_git_agrees_about_any_name(name: str) -> None:
    assert valid_branch(name) == git_accepts(name, Path("/"))


def test_a_name_longer_than_file_systems_take_is_refused() -> None:
    assert valid_branch("x" * 200)
    assert not valid_branch("x" * 201)
    assert not valid_branch("é" * 101)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("a", "a", False),
        ("a", "b", True),
        ("a", "a/b", False),
        ("a/b", "a", False),
        ("a", "ab", True),
        ("a/b", "a/c", True),
        ("a-b", "a", True),
    ],
)
def test_two_branches_can_be_together_unless_one_is_a_folder_of_the_other(
    one: str, other: str, together: bool
) -> None:
    assert collides(one, other) != together
    assert collides(other, one) != together


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("Fix the build", "Fix the build"),
        ("\n\n  ## Fix the build  \nand more", "Fix the build"),
        ("- * > fix", "* > fix"),
        ("###\nSecond line", "Second line"),
        ("   \n#\n", "Untitled task"),
        ("", "Untitled task"),
    ],
)
def test_a_title_is_the_first_line_that_says_something(prompt: str, title: str) -> None:
    assert title_of(prompt) == title


def test_a_long_title_is_cut_between_words() -> None:
    title = title_of("word " * 40)

    assert len(title) <= TITLE_LENGTH + 1
    assert title.endswith("word…")
    assert len(title_of("x" * 500)) == TITLE_LENGTH + 1


TASK_ID = "01jabcdefghijklmnopqrs9xyz"


@pytest.mark.parametrize(
    ("title", "taken", "branch"),
    [
        ("Fix the Build!", set(), "foundry/fix-the-build"),
        ("Fix the Build!", {"foundry/fix-the-build"}, "foundry/fix-the-build-rs9xyz"),
        ("fix", {"foundry/fix/deeper"}, "foundry/fix-rs9xyz"),
        ("fix", {"foundry"}, "foundry-fix-rs9xyz"),
        ("!!! 分支", set(), "foundry/task"),
        ("x" * 100, set(), f"foundry/{'x' * 40}"),
    ],
)
def test_a_made_up_branch_is_free_and_valid(title: str, taken: set[str], branch: str) -> None:
    assert branch_for(title, TASK_ID, taken) == branch
    assert valid_branch(branch)
    assert not any(collides(branch, other) for other in taken)


@given(st.text(max_size=60))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_any_title_makes_a_valid_branch(title: str) -> None:
    assert valid_branch(branch_for(title, TASK_ID, set()))


# -- tasks -----------------------------------------------------------------------------


def provisioning(phase: str, error: Trouble | None = None) -> ProvisioningView:
    return ProvisioningView.model_validate(
        {"phase": phase, "phases": queued_phases(NOW), "error": error}
    )


BROKEN = Trouble(code="internal", message="It broke.")


@pytest.mark.parametrize(
    ("life", "at", "sessions", "status"),
    [
        ("killed", provisioning("ready"), ["running"], "killed"),
        ("archiving", provisioning("cloning", BROKEN), [], "archiving"),
        ("live", provisioning("queued"), [], "provisioning"),
        ("live", provisioning("cloning", BROKEN), ["running"], "error"),
        ("live", provisioning("checking_out"), ["pending"], "provisioning"),
        ("live", provisioning("ready"), [], "ready"),
        ("live", provisioning("ready"), ["idle"], "ready"),
        ("live", provisioning("ready"), ["idle", "running"], "running"),
        ("live", provisioning("ready"), ["running", "needs_you"], "needs_you"),
        ("live", provisioning("ready"), ["running", "needs_you", "error"], "error"),
        ("live", provisioning("ready"), ["closed"], "ready"),
    ],
)
def test_a_task_has_the_first_status_that_holds(
    life: str, at: ProvisioningView, sessions: list[str], status: str
) -> None:
    assert status_of(life, at, sessions) == status


def test_a_phase_ends_those_before_it_and_resets_those_after_it() -> None:
    start = ProvisioningView(phases=queued_phases(NOW))

    there = advance(start, PhaseChanged(phase="cloning", state="running", detail="10 %"), NOW)
    back = advance(there, PhaseChanged(phase="waiting_preview", state="running"), NOW)
    failed = advance(
        back, PhaseChanged(phase="waiting_preview", state="failed", attempt=3, error=BROKEN), NOW
    )
    ready = advance(failed, PhaseChanged(phase="ready", state="done"), NOW)

    assert [p.state for p in there.phases] == ["done"] * 5 + ["running"] + ["pending"] * 3
    assert there.phases[5].detail == "10 %"
    assert [p.state for p in back.phases] == ["done"] * 3 + ["running"] + ["pending"] * 5
    assert (failed.phases[3].state, failed.phases[3].attempt) == ("failed", 3)
    assert failed.error == BROKEN
    assert [p.state for p in ready.phases] == ["done"] * len(PHASES)
    assert ready.error is None
    assert all(p.started_at and p.ended_at for p in ready.phases)


def test_a_phase_that_goes_on_keeps_its_beginning() -> None:
    start = ProvisioningView(phases=queued_phases(NOW))
    there = advance(start, PhaseChanged(phase="cloning", state="running"), NOW)
    later = advance(
        there, PhaseChanged(phase="cloning", state="running"), NOW + timedelta(seconds=9)
    )

    assert later.phases[5].started_at == NOW


# -- sessions ---------------------------------------------------------------------------


def record(direction: str, payload: dict[str, object], message_id: str | None = None) -> Record:
    return Record.model_validate(
        {
            "seq": 5,
            "at_ms": 0,
            "direction": direction,
            "payload": payload,
            "message_id": message_id,
        }
    )


def test_only_an_agent_asks_for_permission() -> None:
    asked = {"id": 0, "method": "session/request_permission", "params": {"options": []}}

    assert session_rules.permission_request(record("out", asked)) == ("5", 0, {"options": []})
    assert session_rules.permission_request(record("in", asked)) is None
    assert session_rules.permission_request(record("out", {"method": "session/update"})) is None


def test_a_turn_ends_only_for_its_own_message() -> None:
    end = record("end", {"stopReason": "end_turn"}, "m1")

    assert session_rules.turn_end(end, "m1") == {"stopReason": "end_turn"}
    assert session_rules.turn_end(end, "m2") is None
    assert session_rules.turn_end(end, None) is None
    assert session_rules.turn_end(record("out", {}, "m1"), "m1") is None


def test_the_transcript_has_everything_but_the_shims_notes() -> None:
    assert session_rules.transcript_payload(record("note", {"a": 1})) is None
    assert session_rules.transcript_payload(record("in", {"a": 1})) == {"a": 1}
    ended = session_rules.transcript_payload(record("end", {"stopReason": "x"}, "m"))
    assert ended is not None
    assert ended["method"] == "_foundry/turn_ended"
    assert ended["params"] == {"message_id": "m", "stopReason": "x"}


# -- what git says of changes --------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e@x", *arguments],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return run.stdout.decode()


def compare(folder: Path) -> tuple[list[FileChange], dict[str, str]]:
    git(folder, "add", "--all")
    diff = ("diff", "--cached", "-M", "--no-ext-diff", "--no-color")
    files = _files(
        git(folder, *diff, "--name-status", "-z", "HEAD"),
        git(folder, *diff, "--numstat", "-z", "HEAD"),
    )
    return files, _patches(git(folder, *diff, "HEAD"), files)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "kept.txt").write_text("kept\n")
    (tmp_path / "old name.txt").write_text("".join(f"line {n}\n" for n in range(30)))
    (tmp_path / "gone.txt").write_text("a\nb\n")
    (tmp_path / "changed.txt").write_text("a\nb\nc\n")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "-m", "base")
    return tmp_path


def test_a_tree_without_changes_has_none(tree: Path) -> None:
    assert compare(tree) == ([], {})


def test_every_kind_of_change_is_told_with_its_patch(tree: Path) -> None:
    (tree / "changed.txt").write_text("a\nB\nc\nd\n")
    (tree / "gone.txt").unlink()
    (tree / "new").mkdir()
    (tree / "new" / "ünï \t\"q'\n.txt").write_text("diff --git a/x b/x\nnew\n")
    (tree / "old name.txt").rename(tree / "renamed.txt")
    with (tree / "renamed.txt").open("a") as file:
        file.write("more\n")
    (tree / "picture.bin").write_bytes(bytes(range(256)))
    (tree / "empty").touch()

    files, patches = compare(tree)

    told = {f.path: (f.status, f.added, f.removed, f.binary, f.old_path) for f in files}
    odd = "new/ünï \t\"q'\n.txt"
    assert told == {
        "changed.txt": ("modified", 2, 1, False, None),
        "empty": ("added", 0, 0, False, None),
        "gone.txt": ("deleted", 0, 2, False, None),
        odd: ("added", 2, 0, False, None),
        "picture.bin": ("added", 0, 0, True, None),
        "renamed.txt": ("renamed", 1, 0, False, "old name.txt"),
    }
    assert set(patches) == set(told)
    assert "+B" in patches["changed.txt"]
    assert "deleted file" in patches["gone.txt"]
    assert "+diff --git a/x b/x\n+new" in patches[odd]
    assert "rename from old name.txt" in patches["renamed.txt"]
    assert "Binary files" in patches["picture.bin"]
    assert all(patch.startswith("diff --git ") for patch in patches.values())


def test_a_mode_change_and_a_link_are_changes(tree: Path) -> None:
    (tree / "kept.txt").chmod(0o755)
    (tree / "link").symlink_to("kept.txt")

    files, patches = compare(tree)

    assert {f.path: f.status for f in files} == {"kept.txt": "modified", "link": "added"}
    assert "new mode 100755" in patches["kept.txt"]


def test_a_file_that_became_a_link_keeps_every_patch_at_its_own_file(tree: Path) -> None:
    """git prints such a change as two patches, a deletion and an addition."""
    (tree / "changed.txt").unlink()
    (tree / "changed.txt").symlink_to("kept.txt")
    (tree / "gone.txt").write_text("a\nb\nc\n")

    files, patches = compare(tree)

    assert {f.path for f in files} == {"changed.txt", "gone.txt"}
    assert "+c" in patches["gone.txt"]
    assert "120000" in patches["changed.txt"]


def test_a_long_patch_says_that_it_is_cut(tree: Path) -> None:
    (tree / "big.txt").write_text("x" * 99 + "\n" * (PATCH_LIMIT + 10))
    (tree / "small.txt").write_text("small\n")

    _, patches = compare(tree)

    assert patches["big.txt"].endswith("[patch cut here: too long]\n")
    assert "+small" in patches["small.txt"]
