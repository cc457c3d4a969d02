# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
from pathlib import Path

import enclavekit_core
import enclavekit_enclave_init
import pytest
from enclavekit_enclave_init.cli import main
from enclavekit_enclave_init.runtime.spawn import find_group, find_user

COMMAND = [sys.executable, "-c", "from enclavekit_enclave_init.cli import main; raise SystemExit(main())"]
MODULE_ROOTS = [str(Path(m.__file__).parents[1]) for m in (enclavekit_core, enclavekit_enclave_init)]


def run_units(tmp_path, **units):
    (tmp_path / "s").mkdir()
    for name, text in units.items():
        (tmp_path / "s" / f"{name}.service").write_text(text)
    options = ["--insecure-not-pid1", "--service-dir", str(tmp_path / "s"), "--log-dir", str(tmp_path / "l")]
    return subprocess.Popen([*COMMAND, *options], stderr=subprocess.PIPE, text=True)


def test_refuses_to_be_anything_but_pid1(capsys):
    assert main([]) == 2
    assert "not 1" in capsys.readouterr().err


def test_stub_refuses_too():
    stub = Path(enclavekit_enclave_init.__file__).with_name("init_stub").read_text()
    path = f"sys.path[:0] = {MODULE_ROOTS!r}"
    text = stub.replace('sys.path.insert(0, "/usr/lib/enclavekit")', path)
    assert text != stub
    done = subprocess.run([sys.executable, "-IS", "-c", text], capture_output=True, text=True)
    assert done.returncode == 2 and "not 1" in done.stderr


def test_check_units_prints_the_order(tmp_path, capsys):
    (tmp_path / "a.service").write_text("ExecStart = 'a'\nAfter = ['b', 'ghost']\n")
    (tmp_path / "b.service").write_text("ExecStart = 'b'\n")
    (tmp_path / "c.service").write_text("ExecStart = 'c'\nServiceEnable = false\n")
    (tmp_path / "d.service.disabled").write_text("nonsense")
    assert main(["--check-units", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1:] == ["b: after nothing", "a: after b", "c: disabled"] and "ghost" in out[0]


@pytest.mark.parametrize("text", ["ExecStart = 'a'\nNope = 1\n", "\xff", "x" * 70000])
def test_check_units_refuses(tmp_path, capsys, text):
    (tmp_path / "a.service").write_bytes(text.encode("latin-1"))
    assert main(["--check-units", str(tmp_path)]) == 2
    assert "a.service" in capsys.readouterr().err


def test_check_units_names_a_missing_directory(tmp_path, capsys):
    assert main(["--check-units", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_not_pid1_exits_with_the_status_of_the_unit(tmp_path):
    with run_units(
        tmp_path, app="ExecStart = 'sh -c \"echo $A; exit 7\"'\nEnvironment=['A=1']\nOnExit='poweroff'\n"
    ) as init:
        _, err = init.communicate(timeout=60)
    assert init.returncode == 7
    assert "app: 1" in err
    assert (tmp_path / "l" / "app.log").read_text().endswith("] 1\n")
    assert (tmp_path / "l" / "enclave-init.log").exists()


def test_not_pid1_makes_no_mounts(tmp_path):
    with run_units(tmp_path, app="ExecStart = 'true'\nBindPaths=['/usr']\nOnExit='poweroff'\n") as init:
        _, err = init.communicate(timeout=60)
    assert init.returncode == 126 and "needs PID 1" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_not_pid1_stops_on_signals(tmp_path, number):
    with run_units(tmp_path, app="ExecStart = 'sh -c \"echo ready; exec sleep 1000\"'\nOnExit='poweroff'\n") as init:
        while init.stderr.readline().strip() != "app: ready":
            pass
        os.kill(init.pid, number)
        init.communicate(timeout=60)
    assert init.returncode == 128 + signal.SIGTERM


def test_pid1_imports_nothing_heavy():
    """What costs memory or is not in the image's Python must not come in by the way."""
    code = (
        f"import sys; sys.path[:0] = {MODULE_ROOTS!r}\n"
        "import enclavekit_enclave_init.lifecycle\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"asyncio", "msgspec", "cryptography", "structlog", "yaml", "argparse", "ssl", "subprocess"}


PASSWD = "root:x:0:0::/root:/bin/sh\nbad\nweb:x:33:44::/:/bin/sh\n"


@pytest.mark.parametrize(
    ("user", "ids"), [("web", (33, 44)), ("33", (33, 44)), ("1000", (1000, 0)), ("root", (0, 0)), ("0", (0, 0))]
)
def test_find_user(user, ids):
    assert find_user(user, PASSWD) == ids


def test_find_user_and_group_name_who_is_missing():
    with pytest.raises(LookupError, match="nobody"):
        find_user("nobody", PASSWD)
    with pytest.raises(LookupError, match="staff"):
        find_group("staff", "root:x:0:\n")
    assert find_group("www", "root:x:0:\nwww:x:5:a,b\n") == 5
    assert find_group("77", "") == 77
