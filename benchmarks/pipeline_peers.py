# SPDX-License-Identifier: Apache-2.0
"""What bench_pipeline is measured beside: OpenSSL's own client and server over a Unix socket, and scp on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from enclavekit_attestation.binding import TlsIdentity

START_TIMEOUT_S = 10.0
CIPHER = "aes256-gcm@openssh.com"  # TLS 1.3 takes AES-256-GCM here, too
SSH_PROGRAMS = ("sshd", "scp", "ssh-keygen")


def missing_ssh() -> str | None:
    """Return the program that scp on loopback would need and that is not here; None if all are."""
    return next((name for name in SSH_PROGRAMS if _find(name) is None), None)


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


def openssl_seconds(directory: Path, source: Path) -> float:
    """Send a file through `openssl s_client` to `openssl s_server`, TLS 1.3, into a file; return the time of that."""
    identity = TlsIdentity.generate("bench")
    (directory / "tls.pem").write_bytes(identity.certificate_pem + identity.key_pem)
    name, received = "tls.sock", directory / "received"  # a bare name: s_server takes no path of over 31 bytes
    (directory / name).unlink(missing_ok=True)
    serve = ["openssl", "s_server", "-quiet", "-tls1_3", "-naccept", "1", "-unix", name, "-cert", "tls.pem"]
    send = ["openssl", "s_client", "-quiet", "-nocommands", "-tls1_3", "-no_ign_eof", "-unix", name]
    with open(received, "wb") as out:  # its standard input is a pipe, since the end of that would end it
        server = subprocess.Popen(serve, cwd=directory, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.DEVNULL)
    try:
        wanted, deadline = source.stat().st_size, time.monotonic() + START_TIMEOUT_S
        while True:
            begun = time.perf_counter()
            with open(source, "rb") as data:
                subprocess.run(send, cwd=directory, stdin=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if received.stat().st_size or server.poll() is not None or time.monotonic() > deadline:
                break  # otherwise it came before the server listened
        while received.stat().st_size < wanted and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        took = time.perf_counter() - begun
        if received.stat().st_size != wanted:
            raise RuntimeError(f"openssl s_server got {received.stat().st_size} of {wanted} bytes")
        return took
    finally:
        server.kill()
        server.communicate()
        received.unlink()


@contextlib.contextmanager
def ssh_server(directory: Path) -> Iterator[list[str | Path]]:
    """Run a server on loopback; yield the words of `scp` up to the source."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ssh = directory / "ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh / key], check=True)
    with contextlib.suppress(PermissionError):
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # Debian's refuses to start without
    settings = ("UsePAM=no", "StrictModes=no", f"AuthorizedKeysFile={ssh}/user.pub", f"PidFile={ssh}/pid")
    settings += (f"Port={port}", "ListenAddress=127.0.0.1", f"HostKey={ssh}/host", "Subsystem=sftp internal-sftp")
    options = [word for setting in settings for word in ("-o", setting)]
    server = subprocess.Popen([_find("sshd"), "-D", "-f", "/dev/null", *options], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if time.monotonic() > deadline or server.poll() is not None:
                raise RuntimeError("sshd does not start")
            time.sleep(0.01)
        words: list[str | Path] = ["scp", "-q", "-P", str(port), "-i", ssh / "user", "-c", CIPHER]
        for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"):
            words += ["-o", option]
        yield words
    finally:
        server.terminate()
        server.wait()
