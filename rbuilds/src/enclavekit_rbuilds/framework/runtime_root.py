# SPDX-License-Identifier: Apache-2.0
"""The enclave's own user space: Python, the message bus and a shell, out of Debian packages.

Only what is listed here goes in: every file of a framework is trusted by every app. `/bin`, `/sbin`, `/lib`, `/lib64`
are links into `/usr`, as on an installed system.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.framework import deb
from enclavekit_rbuilds.framework.closure import IPTABLES, NFT
from enclavekit_rbuilds.framework.debian import MACHINE_TRIPLETS, Package

SERVICE_PACKAGES = frozenset({"nats-server", *NFT, *IPTABLES})  # of PACKAGES: there only if a service asks for them
# package -> patterns of the paths that are taken, after the move into /usr; {lib} is /usr/lib/<triplet>
PACKAGES: dict[str, tuple[str, ...]] = {
    "busybox-static": (r"usr/bin/busybox",),
    "iptables": (
        r"usr/sbin/xtables-legacy-multi",  # the other one speaks to nf_tables, which has nft
        r"usr/sbin/ip6?tables-legacy-(restore|save)",
        r"{lib}/xtables/libxt_(standard|tcp|udp|mark|MARK|NAT|DNAT|REDIRECT|TPROXY)\.so",
    ),
    "libbsd0": (r"{lib}/libbsd\.so.*",),
    "libbz2-1.0": (r"{lib}/libbz2\.so.*",),
    "libc6": (
        r"{lib}/(libc|libm|libdl|libpthread|librt|libutil|libresolv|libnss_files|libnss_dns)\.so\..*",
        r"{lib}/ld-linux-.*",
        r"usr/lib64/ld-linux-.*",
        r"usr/lib/ld-linux-.*",
    ),
    "libedit2": (r"{lib}/libedit\.so.*",),
    "libexpat1": (r"{lib}/libexpat\.so.*",),
    "libffi8": (r"{lib}/libffi\.so.*",),
    "libgcc-s1": (r"{lib}/libgcc_s\.so.*",),  # glibc loads it to cancel threads
    "libgmp10": (r"{lib}/libgmp\.so.*",),
    "libip4tc2": (r"{lib}/libip4tc\.so.*",),
    "libip6tc2": (r"{lib}/libip6tc\.so.*",),
    "libjansson4": (r"{lib}/libjansson\.so.*",),
    "liblzma5": (r"{lib}/liblzma\.so.*",),
    "libmd0": (r"{lib}/libmd\.so.*",),
    "libmnl0": (r"{lib}/libmnl\.so.*",),
    "libnftables1": (r"{lib}/libnftables\.so.*",),
    "libnftnl11": (r"{lib}/libnftnl\.so.*",),
    "libpython3.11-minimal": (r"usr/lib/python3\.11/.*",),
    "libpython3.11-stdlib": (r"usr/lib/python3\.11/.*",),
    "libssl3": (r"{lib}/lib(ssl|crypto)\.so.*",),
    "libtinfo6": (r"{lib}/libtinfo\.so.*",),
    "libuuid1": (r"{lib}/libuuid\.so.*",),
    "libxtables12": (r"{lib}/libxtables\.so.*",),
    "nats-server": (r"usr/s?bin/nats-server",),
    "nftables": (r"usr/sbin/nft",),
    "python3.11-minimal": (r"usr/bin/python3\.11",),
    "zlib1g": (r"{lib}/libz\.so.*",),
}

# of Python's library: what no service in an enclave uses
DROPPED = re.compile(
    r"usr/lib/python3\.11/("
    r"(ensurepip|idlelib|lib2to3|pydoc_data|test|tkinter|turtledemo|distutils|venv|curses|dbm|sqlite3|wsgiref|msilib)(/|$)"
    r"|(turtle|pydoc|doctest|antigravity|this|cgi|cgitb|imaplib|nntplib|telnetlib|poplib|mailbox|sitecustomize)\.py$"
    r"|config-3\.11.*|LICENSE\.txt|EXTERNALLY-MANAGED"
    r"|lib-dynload/(_curses|_curses_panel|_dbm|_sqlite3|_tkinter|_test[a-z]*|_ctypes_test|_xxtestfuzz|_xxsubinterpreters|xxlimited|_codecs_(cn|hk|iso2022|jp|kr|tw)"
    r"|_multibytecodec|audioop|nis|ossaudiodev|readline|_crypt|_lsprof)[._].*"
    r")|.*/__pycache__(/.*)?$"
)
USR_MERGED = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
DIRECTORIES = {
    **dict.fromkeys(("data", "dev", "log", "proc", "run", "sys", "service", "etc", "usr/lib/enclavekit"), 0o755),
    "tmp": 0o1777,
    "root": 0o755,
}
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnats:x:901:901:nats:/run/nats:/bin/false\n"
    "fs-monitor:x:902:902:fs-monitor:/:/bin/false\nra-web-srv:x:903:903:ra-web-srv:/:/bin/false\n"
    "pf-proxy:x:904:904:pf-proxy:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnats:x:901:\nfs-monitor:x:902:\nra-web-srv:x:903:\npf-proxy:x:904:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/hostname": "enclave\n",
}
APPLETS = ("sh", "cat", "echo", "env", "grep", "head", "id", "kill", "ls", "mkdir", "mount", "ps", "sleep", "tail")


def packages_for(services: Iterable[str]) -> tuple[str, ...]:
    """Return the packages of a root, `services` being those that the enclave's services need beyond the runtime."""
    return tuple(sorted((set(PACKAGES) - SERVICE_PACKAGES) | set(services)))


def write_runtime_root(packages: Iterable[Package], root: str, arch: str) -> dict[str, str]:
    """Unpack what is wanted of `packages` into the empty directory `root` and add the files that make it a system.

    Returns: path below `root` -> the package that it is from.
    """
    owners: dict[str, str] = {}
    lib = f"usr/lib/{MACHINE_TRIPLETS[arch]}"
    for link, target in USR_MERGED.items():
        os.makedirs(os.path.join(root, target), exist_ok=True)
        os.symlink(target, os.path.join(root, link))
    for package in packages:
        patterns = [re.compile(form.replace("{lib}", re.escape(lib))) for form in PACKAGES[package.name]]
        taken = _unpack(package, root, patterns)
        owners |= dict.fromkeys(taken, package.name)
        if not taken:
            raise InputError("unpack", package.path, "none of the files that the framework takes from it is there")
    for name, mode in DIRECTORIES.items():
        os.makedirs(os.path.join(root, name), exist_ok=True)
        os.chmod(os.path.join(root, name), mode)
    for name, text in FILES.items():
        with open(os.path.join(root, name), "w", encoding="ascii") as out:
            out.write(text)
    os.symlink("python3.11", os.path.join(root, "usr/bin/python3"))
    for applet in APPLETS:
        os.symlink("busybox", os.path.join(root, "usr/bin", applet))
    return owners


def _unpack(package: Package, root: str, patterns: list[re.Pattern[str]]) -> list[str]:
    """Write the wanted files of one .deb; return where."""
    with deb.open_data(package.path) as archive:
        return [name for member in archive if (name := _take(archive, member, root, patterns))]


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, root: str, patterns: list[re.Pattern[str]]) -> str | None:
    name = member.name.removeprefix("./").strip("/")
    first, _, rest = name.partition("/")
    if rest and first in USR_MERGED:
        name = f"{USR_MERGED[first]}/{rest}"
    wanted = (member.isfile() or member.issym()) and any(pattern.fullmatch(name) for pattern in patterns)
    if not wanted or DROPPED.match(name):
        return None
    if ".." in name.split("/"):
        raise ValueError(f"its member {member.name[:100]} would leave the root")
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.realpath(os.path.dirname(path)) != os.path.join(os.path.realpath(root), os.path.dirname(name)):
        raise ValueError(f"its member {member.name[:100]} lies behind a link")
    if os.path.lexists(path):
        raise ValueError(f"its member {member.name[:100]} is there already")
    if member.issym():
        if member.linkname.startswith("/etc/"):
            return None  # configuration that Debian keeps apart and no service reads
        target = re.sub(r"^/lib/", "/usr/lib/", member.linkname)
        if target.startswith("/"):  # relative, so that it leads nowhere else wherever the root is
            target = os.path.relpath(target, os.path.dirname(f"/{name}"))
        os.symlink(target, path)
        return name
    content = archive.extractfile(member)
    assert content is not None
    with open(path, "wb") as out:
        while chunk := content.read(1 << 20):
            out.write(chunk)
    os.chmod(path, 0o755 if member.mode & 0o111 else 0o644)
    return name
