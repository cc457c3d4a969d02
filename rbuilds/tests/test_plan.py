# SPDX-License-Identifier: Apache-2.0
"""Plans: order and keys, what is reused, what is left when a build fails or is killed, and the cache behind them."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError
from enclavekit_core.runtime_config import Setting
from enclavekit_eif.reader import read_eif
from enclavekit_rbuilds.app.image_config import Overrides
from enclavekit_rbuilds.base import cache
from enclavekit_rbuilds.base.cache import cached, hold, key_of, remove_entry, sweep
from enclavekit_rbuilds.base.cache_store import clear, evict, list_entries
from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.build import BuildRequest, plan_build
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.framework.origin import Origin
from enclavekit_rbuilds.kernel.model import Kernel
from enclavekit_rbuilds.manifest.clients import Client
from enclavekit_rbuilds.manifest.control import ControlGrant
from enclavekit_rbuilds.manifest.model import IngressRule, KernelChoice, Network, Resources
from enclavekit_rbuilds.plan.run import forecast_plan, run_plan
from enclavekit_rbuilds.plan.source import fingerprint
from enclavekit_rbuilds.plan.steps import Job, Product, Step, key_of_step, order_steps

from .test_app_engines import containers, docker, engine, every_engine, workshop  # noqa: F401 - fixtures

QUIET = Progress(quiet=True)


def nothing(_: Job) -> Product:
    return Product(None)


def step(name: str, *inputs: str, facts: tuple[str, ...] = (), make=nothing) -> Step:
    return Step(name, f"the step {name}", inputs, facts, make)


def test_inputs_come_first_and_the_given_order_otherwise() -> None:
    steps = [step("image", "kernel", "app"), step("app", "source"), step("kernel"), step("source")]
    assert [one.name for one in order_steps(steps)] == ["kernel", "source", "app", "image"]


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([step("a", "b"), step("b", "a")], "wait for each other: a, b"),
        ([step("a", "gone")], "a takes what no step makes: gone"),
        ([step("a"), step("a")], "one name"),
    ],
)
def test_wrong_plans_are_refused(steps: list[Step], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        order_steps(steps)


def test_a_key_tells_name_facts_and_inputs_apart() -> None:
    keys = [
        key_of_step(step("a"), []),
        key_of_step(step("b"), []),
        key_of_step(step("a", facts=("x",)), []),
        key_of_step(step("a"), ["x"]),
        key_of_step(step("a", facts=("x", "y")), []),
        key_of_step(step("a", facts=("xy",)), []),
        key_of_step(step("a", facts=("x",)), ["y"]),
    ]
    assert len(set(keys)) == len(keys)


def storing(root: Path, text: str, calls: list[str]):
    """Return a step's make that keeps `text` in the cache and says when it had to."""

    def make(job: Job) -> Product:
        def fill(work: str) -> None:
            calls.append(text)
            Path(work, "file").write_text(text)

        return Product(Path(cached("app", job.key, fill, root=str(root)), "file").read_text())

    return make


def test_a_plan_makes_once_and_reuses_until_a_fact_changes(tmp_path: Path) -> None:
    calls: list[str] = []

    def plan(fact: str) -> list[Step]:
        last = step("b", "a", make=lambda job: Product(job.inputs["a"] + "!", state="checked"))
        return [step("a", facts=(fact,), make=storing(tmp_path, fact, calls)), last]

    states = []
    for fact in ("one", "one", "two"):
        result = run_plan(plan(fact), QUIET)
        assert result.products["b"].value == f"{fact}!"
        states.append([record.state for record in result.records])
    assert states == [["made", "checked"], ["reused", "checked"], ["made", "checked"]]
    assert calls == ["one", "two"]


def test_what_a_step_is_by_content_replaces_its_key(tmp_path: Path) -> None:
    calls: list[str] = []

    def plan(fact: str) -> list[Step]:
        first = step("a", facts=(fact,), make=lambda _: Product(None, key="same content"))
        return [first, step("b", "a", make=storing(tmp_path, "b", calls))]

    run_plan(plan("one"), QUIET)
    assert run_plan(plan("two"), QUIET).records[1].state == "reused"
    assert calls == ["b"]


def test_a_forecast_makes_nothing_and_says_what_it_cannot_know(tmp_path: Path) -> None:
    calls: list[str] = []
    plan = [
        step("known", make=lambda _: Product("x", state="checked")),
        step("a", "known", make=storing(tmp_path, "a", calls)),
        step("b", "a", make=storing(tmp_path, "b", calls)),
    ]
    assert [one.state for one in forecast_plan(plan)] == ["check", "make", "depends"]
    assert calls == [] and os.listdir(tmp_path) == []
    run_plan(plan, QUIET)
    assert [one.state for one in forecast_plan(plan)] == ["check", "reuse", "reuse"]
    assert calls == ["a", "b"]


def test_a_failing_step_names_itself_and_keeps_its_exit_code(tmp_path: Path) -> None:
    def fail(_: Job) -> Product:
        raise InputError("read", "the app", "it is gone")

    calls: list[str] = []
    plan = [step("first", make=storing(tmp_path, "a", calls)), step("second", "first", make=fail)]
    with pytest.raises(InputError, match=r"^cannot read the app: it is gone \(step second\)$") as caught:
        run_plan(plan, QUIET)
    assert caught.value.exit_code == 2
    with pytest.raises(InputError):
        run_plan(plan, QUIET)
    assert calls == ["a"]  # what was finished is there


def test_eviction_takes_what_was_not_used_for_longest_and_leaves_what_is_held(tmp_path: Path) -> None:
    def entry(name: str, used: int) -> str:
        path = cached(name, key_of([name, str(used)]), lambda w: Path(w, "x").write_bytes(b"x" * 100) and None,
                      root=str(tmp_path))  # fmt: skip
        os.utime(path, (used, used))
        return path

    oldest, old, new, kernel = entry("app", 1), entry("ramdisk", 2), entry("app", 3), entry("kernel", 0)
    with hold(oldest) as there:
        assert there
        assert [one.path for one in evict(str(tmp_path), max_bytes=150)] == [old, new]
    assert os.path.isdir(oldest) and os.path.isdir(kernel)
    assert [one.path for one in evict(str(tmp_path), max_bytes=99)] == [oldest]
    assert [one.path for one in list_entries(str(tmp_path))] == [kernel]
    with hold(oldest) as there:
        assert not there


def test_only_the_newest_records_of_images_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclavekit_rbuilds.base.cache_store.MAX_RECORDS", 2)
    for age in range(4):
        path = tmp_path / f"image-{key_of([str(age)])}.json"
        path.write_text("{}")
        os.utime(path, (age, age))
    evict(str(tmp_path))
    assert sorted(path.stat().st_mtime for path in tmp_path.iterdir()) == [2, 3]


def test_use_makes_an_entry_young(tmp_path: Path) -> None:
    def make(name: str) -> str:
        return cached("app", key_of([name]), lambda work: Path(work, "x").write_bytes(b"x" * 10) and None,
                      root=str(tmp_path))  # fmt: skip

    first, second = make("first"), make("second")
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    make("first")
    assert [one.path for one in evict(str(tmp_path), max_bytes=10)] == [second]


def test_a_cache_that_may_only_be_read_is_used(tmp_path: Path) -> None:
    """As an ordinary user, with what root has made; no other way is there to be refused as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    path = cached("app", key_of(["x"]), lambda work: None, root=str(tmp_path))
    os.unlink(f"{path}.lock")
    tmp_path.chmod(0o755)
    script = """
import os, sys
from enclavekit_rbuilds.base.cache import cached, hold
path, key = sys.argv[1:]
os.chdir(os.path.dirname(path))
os.setgid(65534); os.setuid(65534)
with hold(cached("app", key, sys.exit, root=".")) as there:
    assert there
"""
    done = subprocess.run([sys.executable, "-c", script, path, key_of(["x"])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_sweep_removes_what_nobody_makes_any_more(tmp_path: Path) -> None:
    dead, living = (f".tmp-app-{key_of([name])}-abc" for name in ("dead", "living"))
    for name in (dead, living):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("made")
    with open(tmp_path / f"app-{key_of(['living'])}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(str(tmp_path))
    assert not (tmp_path / dead).exists() and (tmp_path / living / "half").exists()


def test_a_lock_that_was_removed_meanwhile_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for an entry that is being removed gets a lock on a file that has gone, and must take another."""
    path = cached("app", key_of(["x"]), lambda work: None, root=str(tmp_path))
    real, seen = fcntl.flock, []

    def flock(descriptor, how: int) -> None:
        real(descriptor, how)
        if not seen:
            seen.append(descriptor)
            os.unlink(f"{path}.lock")

    monkeypatch.setattr(cache.fcntl, "flock", flock)
    assert remove_entry(path)
    assert not os.path.exists(path)


def test_a_fingerprint_sees_every_change(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    file = root / "dir/file"
    file.write_text("one")
    seen = [fingerprint(str(root))]
    assert fingerprint(str(root)) == seen[0]

    def same_size_same_time() -> None:
        before = file.stat()
        file.write_text("two")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    changes = [
        same_size_same_time,
        lambda: file.chmod(0o600),
        lambda: file.rename(root / "dir/other"),
        lambda: (root / "link").symlink_to("dir"),
        lambda: (root / "dir/other").unlink(),
    ]
    for change in changes:
        change()
        seen.append(fingerprint(str(root)))
    assert len(set(seen)) == len(seen)


@pytest.fixture
def words(app: Path, framework: Path, kernel: Path, tmp_path: Path) -> list[str]:
    common = ["--rootfs", app, "--framework-rootfs", framework, "--kernel", kernel, "--cmd", "serve"]
    return ["build", "--quiet", *map(str, common), "--output", str(tmp_path / "app.eif"), "--json"]


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return {one["name"]: one["state"] for one in json.loads(capsys.readouterr().out)["steps"]}


def test_a_second_build_reuses_everything(words: list[str], tmp_path: Path, capsys) -> None:
    made = {"app-source": "checked", "app": "made", "kernel": "checked", "framework": "made", "image": "made"}
    assert main(words) == 0
    assert states(capsys) == made
    first = (tmp_path / "app.eif").stat()
    assert main(words) == 0
    assert states(capsys) == {name: state.replace("made", "reused") for name, state in made.items()}
    again = (tmp_path / "app.eif").stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)


def test_an_image_that_somebody_touched_is_made_again(words: list[str], tmp_path: Path, capsys) -> None:
    assert main(words) == 0
    image = tmp_path / "app.eif"
    good, before = image.read_bytes(), image.stat()
    image.write_bytes(good[:-1] + b"x")
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    capsys.readouterr()
    assert main(words) == 0
    assert states(capsys)["image"] == "made" and image.read_bytes() == good


def test_a_changed_file_changes_only_what_comes_from_it(words: list[str], app: Path, capsys) -> None:
    assert main(words) == 0
    (app / "srv/one").write_bytes(b"CONTENT")
    capsys.readouterr()
    assert main(words) == 0
    assert states(capsys) == {
        "app-source": "checked", "app": "made", "kernel": "checked", "framework": "reused", "image": "made",
    }  # fmt: skip


def test_dry_run_writes_nothing_at_all(words: list[str], tmp_path: Path, capsys) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main([*words, "--dry-run"]) == 0
    forecast = {one["name"]: one["state"] for one in json.loads(capsys.readouterr().out)["steps"]}
    assert forecast == {
        "app-source": "check", "app": "make", "kernel": "check", "framework": "make", "image": "depends",
    }  # fmt: skip
    assert sorted(tmp_path.rglob("*")) == before
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == 0
    assert {one["state"] for one in json.loads(capsys.readouterr().out)["steps"]} == {"check", "reuse"}


def test_cache_command_lists_and_clears(words: list[str], tmp_path: Path, capsys) -> None:
    assert main(words) == 0
    capsys.readouterr()
    assert main(["cache", "list", "--json"]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)["entries"]} == {"app", "ramdisk"}
    assert main(["cache", "clear", "--only", "app"]) == 0
    assert [entry.name for entry in list_entries()] == ["ramdisk"]
    assert main(["cache", "clear"]) == 0
    capsys.readouterr()
    assert os.listdir(tmp_path / "cache/enclavekit") == []
    assert main(words) == 0
    assert states(capsys)["app"] == "made"


def test_clear_leaves_what_a_build_holds(tmp_path: Path) -> None:
    path = cached("app", key_of(["x"]), lambda work: None, root=str(tmp_path))
    with hold(path):
        gone, busy = clear(str(tmp_path))
        assert gone == [] and [one.path for one in busy] == [path]
    assert clear(str(tmp_path)) == ([busy[0]], [])


KILLED = """
import os, signal, sys
count = 0
def trace(frame, event, arg):
    global count
    if "enclavekit" not in frame.f_code.co_filename:
        return None
    if event == "line":
        count += 1
        if count == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
    return trace
from enclavekit_rbuilds import cli
from enclavekit_rbuilds.framework import bytecode
bytecode.compile_modules = lambda *_: None
if "KILL_AT" in os.environ:
    import enclavekit_rbuilds.build, enclavekit_rbuilds.manifest.merge, enclavekit_eif.writer  # not their import
    sys.settrace(trace)
sys.exit(cli.main(sys.argv[1:]))
"""


def run_build(words: list[str], cache_home: Path, kill_at: int | None = None) -> int:
    env = {**os.environ, "XDG_CACHE_HOME": str(cache_home)}
    if kill_at is not None:
        env["KILL_AT"] = str(kill_at)
    argv = [sys.executable, "-c", KILLED, *words]
    return subprocess.run(argv, env=env, capture_output=True, timeout=120).returncode


def test_a_build_killed_anywhere_is_finished_by_the_next(words: list[str], tmp_path: Path) -> None:
    """SIGKILL after a number of lines of our own code, from the first to the last: nothing half-made is ever taken."""
    output = tmp_path / "app.eif"
    assert run_build(words, tmp_path / "reference") == 0
    expected = output.read_bytes()
    output.unlink()
    chance = random.Random(7)  # fixed: a failure must come back
    lines, killed, attempt = 40_000, 0, 0
    while killed < 5:
        home = tmp_path / f"cache-{(attempt := attempt + 1)}"
        at = chance.randrange(1, lines)
        if (status := run_build(words, home, at)) == 0:
            assert output.read_bytes() == expected
            lines = at  # a build has fewer than that
            output.unlink()
            continue
        assert status == -signal.SIGKILL
        killed += 1
        assert not output.exists() or output.read_bytes() == expected
        assert run_build(words, home) == 0
        assert output.read_bytes() == expected
        leftovers = [name for name in os.listdir(home / "enclavekit") if name.startswith(".tmp-")]
        assert leftovers == [] and not [name for name in os.listdir(tmp_path) if name.startswith(".app.eif")]
        output.unlink()


def test_builds_at_once_share_a_cache(words: list[str], tmp_path: Path) -> None:
    outputs = [tmp_path / f"{number}.eif" for number in range(3)]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "shared")}
    builds = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, *words, "--output", str(path), "--name", "app"],
            env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for path in outputs
    ]  # fmt: skip
    for build in builds:
        _, complaint = build.communicate(timeout=120)
        assert build.returncode == 0, complaint
    assert len({path.read_bytes() for path in outputs}) == 1
    entries = list_entries(str(tmp_path / "shared/enclavekit"))
    assert sorted(entry.name for entry in entries) == ["app", "ramdisk"]


@every_engine
def test_an_image_that_an_engine_builds_again_is_reused(
    engine: str,  # noqa: F811 - a fixture
    words: list[str],
    tmp_path: Path,
    capsys,
) -> None:
    (tmp_path / "Dockerfile").write_text('FROM scratch\nCOPY app/ /\nENTRYPOINT ["/bin/serve"]\n')
    rootfs = words.index("--rootfs")
    words = [*words[:rootfs], "--dockerfile", str(tmp_path / "Dockerfile"), "--engine", engine, *words[rootfs + 2 :]]
    assert main([*words, "--dry-run"]) == 0
    forecast = {one["name"]: one["state"] for one in json.loads(capsys.readouterr().out)["steps"]}
    assert (forecast["app-source"], forecast["app"]) == ("make", "depends")
    for state in ("made", "reused"):
        assert main(words) == 0
        assert states(capsys)["app"] == state
    (tmp_path / "app/srv/one").write_bytes(b"other")
    assert main(words) == 0
    assert states(capsys)["app"] == "made"


def test_leftovers_beside_the_output_go_unless_somebody_writes_them(words: list[str], tmp_path: Path) -> None:
    dead, living, other = (tmp_path / name for name in (".app.eif." + "0" * 12, ".app.eif." + "1" * 12, ".app.eif.bak"))
    for path in (dead, living, other):
        path.write_bytes(b"half")
    with open(living) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(words) == 0
    assert not dead.exists() and living.exists() and other.exists()


CHANGES = {
    "dockerfile": "Dockerfile",
    "context": ".",
    "archive": "image.tar",
    "rootfs": "other",
    "keep_owners": True,
    "engine": "podman",
    "build_args": ("A=1",),
    "target": "stage",
    "output": "other.eif",
    "kernel": KernelChoice(source="file", path="bzImage"),
    "cmdline": "quiet",
    "framework_rootfs": "root",
    "pins": {"zlib1g": Input("debian", "zlib1g", "1", "00")},
    "origin": Origin("archive", "base.tar", "00"),
    "clients": (Client("alice", "PEM", ["exec"]),),
    "attestation": (("etc/enclavekit/ra-web-srv.yaml", b"{}"),),
    "proxied_port": None,  # stands in the files of "attestation"
    "control": (ControlGrant("web", ["status"]),),
    "logs": b"[logs]\nformat = 'json'\n",
    "name": "shop",
    "version": "2",
    "overrides": (Overrides(user="web"),),
    "services": frozenset({"pipeline"}),
    "network": Network(ingress=[IngressRule(port=80)]),
    "resources": Resources(cpus=4),
    "runtime_config": {"REGION": Setting(type="string")},
    "signing": None,  # needs a file: see the tests of signatures
    "arch": "aarch64",
    "compression": "gzip",
    "init": "c",
    "source": None,  # only what complaints name
    "evidence": None,  # lies beside the image
    "lock": None,  # becomes pins; what else it says ends a build or does not
    "no_engine_cache": None,  # the engine's image is known by its content
}


def facts_of_build(**changes: object) -> list[tuple[str, tuple[str, ...]]]:
    request = BuildRequest(**{"output": "app.eif", "rootfs": "root", **changes})
    with ExitStack() as scope:
        return [(one.name, one.facts) for one in plan_build(request, QUIET, scope)]


def test_every_setting_is_a_fact_of_some_step() -> None:
    """Else a build would reuse what was made for another setting."""
    assert {field.name for field in dataclasses.fields(BuildRequest)} == set(CHANGES)
    plain = facts_of_build()
    assert facts_of_build() == plain
    for name, value in CHANGES.items():
        if value is not None:
            other = {"rootfs": None} if name in ("dockerfile", "archive") else {}
            assert facts_of_build(**{**other, name: value}) != plain, name


def test_a_kernel_that_reads_gzip_only_decides_the_ramdisks(
    words: list[str], kernel: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words) == 0
    old = Kernel(str(kernel), "old", "4.14", True, cmdline="from the kernel", compressions=frozenset({"gzip", "none"}))
    monkeypatch.setattr("enclavekit_rbuilds.plan.framework.find_kernel", lambda *_, **__: old)
    capsys.readouterr()
    assert main(words) == 0
    assert states(capsys)["app"] == "made"
    with read_eif(tmp_path / "app.eif") as eif:
        assert eif.cmdline() == b"from the kernel"
        assert [eif.open_section(ramdisk).read(2) for ramdisk in eif.ramdisks] == [b"\x1f\x8b"] * 2
    kernel.write_bytes(b"another build of it")
    assert main(words) == 0
    assert states(capsys) == {
        "app-source": "checked", "kernel": "checked", "app": "reused", "framework": "reused", "image": "made",
    }  # fmt: skip
