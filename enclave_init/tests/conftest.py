# SPDX-License-Identifier: Apache-2.0
"""A machine in which enclave_init is a real PID 1: new PID, mount, network, UTS and IPC namespaces, own root."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import enclavekit_enclave_init
import pytest
from enclavekit_enclave_init.initctl.cli import main

CID = 16
PATIENCE_S = 60  # only a broken test waits that long
HERE = Path(__file__).parent
STUB = Path(enclavekit_enclave_init.__file__).with_name("init_stub")
NAMESPACES = ["--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc"]
if os.geteuid() != 0:
    NAMESPACES = ["--user", "--map-root-user", *NAMESPACES]


def _why_not():
    if shutil.which("unshare") is None:
        return "needs unshare(1) of util-linux"
    probe = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, text=True)
    return f"needs namespaces: {probe.stderr.strip()}" if probe.returncode else ""


class ParentPort:
    """A listener of the parent's; `received` is what each connection sent, whole."""

    def __init__(self, path, answer):
        self.received = []
        self._changed = threading.Condition()
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        os.chmod(path, 0o666)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                data = sock.recv(4096)
                if self._answer is not None:
                    sock.sendall(self._answer(data))
                while more := sock.recv(4096):
                    data += more
            with self._changed:
                self.received.append(data)
                self._changed.notify_all()

    def wait(self):
        """Return the first message."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.received, PATIENCE_S), "nothing was received"
            return self.received[0]

    def close(self):
        self._listener.close()


class Machine:
    """Put units and files into it, `boot()` it, watch its console, read its report."""

    def __init__(self, base):
        self.base = base
        self.image, self.out, self.runtime, self.root = (base / n for n in ("image", "out", "rt", "root"))
        for path in (self.image / "service", self.image / "etc", self.out, self.root, self.runtime / "registry"):
            path.mkdir(parents=True)
        (self.runtime / "fabric" / str(CID) / "parent").mkdir(parents=True)
        (self.runtime / "registry" / "self.json").write_text(json.dumps({"cid": CID}))
        stub = STUB.read_text().replace("/usr/lib/enclavekit", "/enclavekit")
        (self.image / "init").write_text(stub.replace("/usr/bin/python3", os.path.realpath(sys.executable)))
        (self.image / "init").chmod(0o755)
        self.heartbeat = self.report = self.process = None
        self.prefix, self.flags = [], []
        """Words before the command that starts it, and after those of enter_machine.py."""
        self._lines, self._changed = [], threading.Condition()

    def unit(self, name, text):
        (self.image / "service" / f"{name}.service").write_text(text)

    def file(self, path, text, mode=0o644):
        target = self.image / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def listen(self, answer=lambda data: data):
        ports = self.runtime / "fabric" / str(CID) / "parent"
        self.heartbeat = ParentPort(str(ports / "9000.sock"), answer)
        self.report = ParentPort(str(ports / "9002.sock"), None)

    def boot(self, console=subprocess.PIPE):
        if self.report is None:
            self.listen()
        script = [sys.executable, str(HERE / "enter_machine.py")]
        arguments = [str(path) for path in (self.root, self.image, self.out, self.runtime)]
        self.process = subprocess.Popen(
            [*self.prefix, "unshare", *NAMESPACES, *script, *arguments, *self.flags],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
        if console == subprocess.PIPE:
            # one pipe for both would be shared with the launcher; init writes to stderr only
            self.process.stdout.close()
            threading.Thread(target=self._read_console, daemon=True).start()
        return self

    def _read_console(self):
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line.decode(errors="replace").rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._lines.append(None)
            self._changed.notify_all()

    @property
    def console(self):
        return [line for line in self._lines if line is not None]

    def wait_line(self, line):
        """Wait until the console has shown exactly `line`."""
        with self._changed:
            done = self._changed.wait_for(lambda: line in self._lines or None in self._lines, PATIENCE_S)
            assert done and line in self._lines, "\n".join(self.console)

    @property
    def pid1(self):
        """PID 1's number outside."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def groups(self):
        """The directories of its cgroups on this machine."""
        try:
            name = f"enclave-{os.stat(f'/proc/{self.pid1}/ns/pid').st_ino}"
        except (FileNotFoundError, IndexError):
            return []
        with open("/proc/self/mountinfo") as source:
            points = [line.split()[4] for line in source if " - cgroup" in line]
        return [str(path) for point in points for path in Path(point).glob(f"**/{name}")]

    def wait(self):
        """Wait for the end; return the report."""
        self.process.wait(PATIENCE_S)
        return json.loads(self.report.wait())

    @property
    def control_socket(self):
        return f"/proc/{self.pid1}/root/run/init.sock"

    def initctl(self, *arguments, status=0):
        """Run initctl on it from outside; return what it printed, errors of a refusal included."""
        self.wait_for(lambda: os.path.exists(self.control_socket))
        out = io.StringIO()
        out.fileno = lambda: -1
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                code = main(["--socket", self.control_socket, *map(str, arguments)])
            except SystemExit as exc:
                code = exc.code
        assert code == status, f"exit {code}: {out.getvalue()}\n" + "\n".join(self.console)
        return out.getvalue()

    def initctl_json(self, *arguments):
        return json.loads(self.initctl("--json", *arguments))

    def wait_for(self, condition):
        """Wait for something that another process does."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if condition():
                    return
            except (FileNotFoundError, IndexError):
                pass  # PID 1 is not there yet
            assert time.monotonic() < deadline, "\n".join(self.console)
            time.sleep(0.01)

    def log(self, name):
        """The lines of a unit's log, without their times."""
        return [line[22:] for line in (self.out / f"{name}.log").read_text().splitlines()]

    def close(self):
        for port in (self.heartbeat, self.report):
            if port is not None:
                port.close()
        if self.process is not None:
            if self.process.poll() is None:
                groups = self.groups()
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
                for group in groups:  # of a PID 1 that was killed; the emulator does the same
                    for directory, _, _ in os.walk(group, topdown=False):
                        self.wait_for(lambda at=directory: not Path(at, "cgroup.procs").read_text())
                        os.rmdir(directory)
            if self.process.stderr is not None:
                with self._changed:
                    self._changed.wait_for(lambda: None in self._lines, PATIENCE_S)
                self.process.stderr.close()


@pytest.fixture(scope="session")
def _namespaces():
    if reason := _why_not():
        pytest.skip(reason)


@pytest.fixture
def machine(_namespaces, tmp_path_factory):
    # not tmp_path: with a test's long name in it, socket paths would be too long
    made = Machine(tmp_path_factory.mktemp("m"))
    yield made
    made.close()
