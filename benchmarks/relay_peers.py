# SPDX-License-Identifier: Apache-2.0
"""The proxies that are compared: each from a TCP port to a Unix socket (a front), and from one to a TCP port (a back).

All have one thread, pf-proxy's vsock is the fabric's Unix socket, and peers do the best that they can: HAProxy splices,
nginx has a buffer of 64 KiB, socat its default and 256 KiB.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from enclavekit_core import fabric
from enclavekit_core.address import CID_PARENT, Address, TcpAddress, UnixAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.streams import connect

HAPROXY = """global
    nbthread 1
    maxconn {maxconn}
    maxpipes 256
defaults
    mode tcp
    maxconn {maxconn}
    option splice-auto
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen relay
    bind {listen} backlog 1024
    server upstream {upstream}
"""
STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"  # a package of its own
NGINX = """{user}daemon off;
pid {directory}/{name}.pid;
error_log /dev/null crit;
worker_processes {workers};
load_module {module};
events {{ worker_connections 50000; }}
stream {{
    server {{
        listen {listen} backlog=1024{reuse_port};
        proxy_pass {upstream};
        proxy_buffer_size 64k;
        proxy_half_close on;
    }}
}}
"""
START_S = 10.0
BACK_PORT = 7010

Front = AbstractContextManager[tuple[TcpAddress, list[int]]]
"""Where it listens, and its processes; those below them are not named."""
Back = AbstractContextManager[tuple[str, list[int]]]


def fabric_path(port: int) -> str:
    """Return the Unix socket that the parent's vsock `port` is here."""
    return f"{fabric.ensure_runtime_dir()}/fabric/{CID_PARENT}/{port}.sock"


@contextmanager
def ours(
    path: str, directory: str, workers: int = 1, flags: Sequence[str] = ()
) -> Iterator[tuple[TcpAddress, list[int]]]:
    """`path` is that of a vsock port of the parent."""
    port = int(os.path.basename(path).removesuffix(".sock"))
    argv = ["pf-proxy", "ip-to-vsock", "-i", "127.0.0.1:0", "-v", f"parent:{port}", "--print-address"]
    with announced([*argv, "--max-connections", "20000", "--workers", str(workers), *flags]) as (line, pid):
        yield TcpAddress("127.0.0.1", int(line.rpartition(":")[2])), [pid]


@contextmanager
def ours_back(
    port: int, directory: str, workers: int = 1, flags: Sequence[str] = ()
) -> Iterator[tuple[str, list[int]]]:
    path = fabric_path(BACK_PORT)  # first: without the directory it would listen on the kernel's vsock
    argv = ["pf-proxy", "vsock-to-ip", "-v", f"any:{BACK_PORT}", "-i", f"127.0.0.1:{port}", "--print-address"]
    more = ["--max-connections", "20000", "--max-per-cid", "0", "--workers", str(workers)]
    with announced([*argv, *more, *flags]) as (_, pid):
        yield path, [pid]


@contextmanager
def socat(
    path: str, directory: str, workers: int = 1, buffer_bytes: int = 8192
) -> Iterator[tuple[TcpAddress, list[int]]]:
    """It is a process for each connection anyway."""
    port = free_port()
    argv = ["socat", "-t", "30", "-b", str(buffer_bytes)]
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,nodelay,fork,backlog=1024"
    with started([*argv, listen, f"UNIX-CONNECT:{path}"], TcpAddress("127.0.0.1", port)) as pid:
        yield TcpAddress("127.0.0.1", port), [pid]


@contextmanager
def socat_back(
    port: int, directory: str, workers: int = 1, buffer_bytes: int = 8192
) -> Iterator[tuple[str, list[int]]]:
    path = os.path.join(directory, "socat.sock")
    argv = ["socat", "-t", "30", "-b", str(buffer_bytes), f"UNIX-LISTEN:{path},unlink-early,fork,backlog=1024"]
    with started([*argv, f"TCP:127.0.0.1:{port},nodelay"], UnixAddress(path)) as pid:
        yield path, [pid]


def socat_large(path: str, directory: str, workers: int = 1) -> Front:
    return socat(path, directory, workers, 256 * 1024)


def socat_large_back(port: int, directory: str, workers: int = 1) -> Back:
    return socat_back(port, directory, workers, 256 * 1024)


@contextmanager
def haproxy(path: str, directory: str, workers: int = 1) -> Iterator[tuple[TcpAddress, list[int]]]:
    """It has threads and no workers, so it is a process each; they share the port."""
    port = free_port()
    config = write_haproxy(directory, "front", f"127.0.0.1:{port}", f"unix@{path}")
    with ExitStack() as stack:
        argv, address = ["haproxy", "-q", "-db", "-f", config], TcpAddress("127.0.0.1", port)
        yield address, [stack.enter_context(started(argv, address)) for _ in range(workers)]


@contextmanager
def haproxy_back(port: int, directory: str, workers: int = 1) -> Iterator[tuple[str, list[int]]]:
    path = os.path.join(directory, "haproxy.sock")
    config = write_haproxy(directory, "back", f"unix@{path}", f"127.0.0.1:{port}")
    with started(["haproxy", "-q", "-db", "-f", config], UnixAddress(path)) as pid:
        yield path, [pid]


def write_haproxy(directory: str, name: str, listen: str, upstream: str) -> str:
    config = os.path.join(directory, f"haproxy-{name}.cfg")
    with open(config, "w", encoding="utf-8") as out:
        out.write(HAPROXY.format(listen=listen, upstream=upstream, maxconn=max_connections()))
    return config


@contextmanager
def nginx(path: str, directory: str, workers: int = 1) -> Iterator[tuple[TcpAddress, list[int]]]:
    port = free_port()
    config = write_nginx(directory, "front", f"127.0.0.1:{port}", f"unix:{path}", workers)
    with started(["nginx", "-p", directory, "-c", config], TcpAddress("127.0.0.1", port)) as pid:
        yield TcpAddress("127.0.0.1", port), [pid]


@contextmanager
def nginx_back(port: int, directory: str, workers: int = 1) -> Iterator[tuple[str, list[int]]]:
    path = os.path.join(directory, "nginx.sock")
    config = write_nginx(directory, "back", f"unix:{path}", f"127.0.0.1:{port}", 1)
    with started(["nginx", "-p", directory, "-c", config], UnixAddress(path)) as pid:
        yield path, [pid]


def write_nginx(directory: str, name: str, listen: str, upstream: str, workers: int) -> str:
    config = os.path.join(directory, f"nginx-{name}.conf")
    # as root its workers would become another user, who cannot reach the socket
    user = "" if os.geteuid() else "user root;\n"
    values = {"directory": directory, "name": name, "listen": listen, "upstream": upstream, "workers": workers}
    with open(config, "w", encoding="utf-8") as out:
        out.write(NGINX.format(**values, user=user, module=STREAM_MODULE, reuse_port=" reuseport" * (workers > 1)))
    return config


FRONTS: dict[str, Callable[..., Front]] = {
    "pf-proxy": ours,
    "socat": socat,
    "socat 256 KiB": socat_large,
    "HAProxy": haproxy,
    "nginx stream": nginx,
}
BACKS: dict[str, Callable[..., Back]] = {
    "pf-proxy": ours_back,
    "socat": socat_back,
    "socat 256 KiB": socat_large_back,
    "HAProxy": haproxy_back,
    "nginx stream": nginx_back,
}
PROGRAMS = {
    "pf-proxy": "pf-proxy",
    "socat": "socat",
    "socat 256 KiB": "socat",
    "HAProxy": "haproxy",
    "nginx stream": "nginx",
}


def installed() -> list[str]:
    """Return the names of the proxies that this machine has."""
    found = [name for name in FRONTS if shutil.which(PROGRAMS[name])]
    return [name for name in found if PROGRAMS[name] != "nginx" or os.path.exists(STREAM_MODULE)]


@contextmanager
def both_hops(name: str, port: int, directory: str, workers: int = 1) -> Iterator[tuple[TcpAddress, list[int]]]:
    """TCP, a Unix socket, TCP: as from a client through the host and an enclave to what listens there on `port`."""
    with (
        BACKS[name](port, directory, workers) as (path, behind),
        FRONTS[name](path, directory, workers) as (address, before),
    ):
        yield address, before + behind


# processes


@contextmanager
def announced(argv: list[str]) -> Iterator[tuple[str, int]]:
    """Run a program that prints a line when it is ready."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{argv[0]} did not start")
            yield line.strip(), process.pid
        finally:
            process.terminate()


@contextmanager
def started(argv: list[str], address: Address) -> Iterator[int]:
    """Run a program that can be connected to once it is ready."""
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_S
            while True:
                try:
                    connect(address).close()
                    break
                except TransportError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise
                    time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def max_connections() -> int:
    """Return how many the descriptors allow: HAProxy does not start with more."""
    return min(20_000, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1500) // 2)
