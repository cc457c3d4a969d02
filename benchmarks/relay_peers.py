# SPDX-License-Identifier: Apache-2.0
"""The proxies that bench_relay compares: each from a TCP port to one Unix socket, one process of one thread."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from enclavekit_core import fabric
from enclavekit_core.address import CID_PARENT, TcpAddress

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
    bind 127.0.0.1:{port} backlog 1024
    server upstream unix@{path}
"""
HAPROXY_BACK = """global
    nbthread 1
    maxconn 4000
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen relay
    bind unix@{path}
    server upstream 127.0.0.1:{port}
"""
STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"  # a package of its own
NGINX = """{user}daemon off;
pid {directory}/nginx.pid;
error_log /dev/null crit;
worker_processes 1;
load_module {module};
events {{ worker_connections 50000; }}
stream {{
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        proxy_pass unix:{path};
        proxy_buffer_size 64k;
        proxy_half_close on;
    }}
}}
"""


def fabric_path(port: int) -> str:
    """Return the Unix socket that the parent's vsock `port` is here."""
    return f"{fabric.ensure_runtime_dir()}/fabric/{CID_PARENT}/{port}.sock"


@contextmanager
def ours(path: str, directory: str, port: int = 0) -> Iterator[tuple[TcpAddress, int]]:
    """`path` is that of a vsock port of the parent; or `port` is the port."""
    port = port or int(os.path.basename(path).removesuffix(".sock"))
    argv = ["pf-proxy", "ip-to-vsock", "-i", "127.0.0.1:0", "-v", f"parent:{port}", "--print-address"]
    argv += ["--max-connections", "20000"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            yield TcpAddress("127.0.0.1", int(proxy.stdout.readline().rpartition(":")[2])), proxy.pid
        finally:
            proxy.terminate()


@contextmanager
def started(argv: list[str], port: int) -> Iterator[tuple[TcpAddress, int]]:
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as proxy:
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            yield TcpAddress("127.0.0.1", port), proxy.pid
        finally:
            proxy.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def max_connections() -> int:
    """Return how many the descriptors allow: HAProxy does not start with more."""
    return min(20_000, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1500) // 2)


@contextmanager
def socat(path: str, directory: str, buffer_bytes: int = 8192) -> Iterator[tuple[TcpAddress, int]]:
    port = free_port()
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=1024"
    with started(["socat", "-t", "30", "-b", str(buffer_bytes), listen, f"UNIX-CONNECT:{path}"], port) as found:
        yield found


@contextmanager
def socat_large(path: str, directory: str) -> Iterator[tuple[TcpAddress, int]]:
    with socat(path, directory, 256 * 1024) as found:
        yield found


@contextmanager
def haproxy(path: str, directory: str) -> Iterator[tuple[TcpAddress, int]]:
    port = free_port()
    config = os.path.join(directory, "haproxy.cfg")
    with open(config, "w", encoding="utf-8") as out:
        out.write(HAPROXY.format(port=port, path=path, maxconn=max_connections()))
    with started(["haproxy", "-q", "-db", "-f", config], port) as found:
        yield found


@contextmanager
def nginx(path: str, directory: str) -> Iterator[tuple[TcpAddress, int]]:
    port = free_port()
    config = os.path.join(directory, "nginx.conf")
    with open(config, "w", encoding="utf-8") as out:
        # as root its workers would become another user, who cannot reach the socket
        user = "" if os.geteuid() else "user root;\n"
        out.write(NGINX.format(user=user, module=STREAM_MODULE, port=port, path=path, directory=directory))
    with started(["nginx", "-p", directory, "-c", config], port) as found:
        yield found


PEERS = {"socat": socat, "socat 256 KiB": socat_large, "HAProxy": haproxy, "nginx stream": nginx}
PROGRAMS = {"socat": "socat", "socat 256 KiB": "socat", "HAProxy": "haproxy", "nginx stream": "nginx"}


def installed() -> list[str]:
    """Return the names of the peers that this machine has."""
    found = [name for name in PEERS if shutil.which(PROGRAMS[name])]
    return [name for name in found if PROGRAMS[name] != "nginx" or os.path.exists(STREAM_MODULE)]
