# SPDX-License-Identifier: Apache-2.0
"""Run inside new namespaces by the `machine` fixture: builds a root like the process machine's and becomes its /init.

Arguments: the directory to use as root, the directory with what the test put into the image, the test's `out`
directory, the runtime directory with the fabric, and `old-kernel` for a kernel that knows no call younger than 4.14.
"""

import errno
import os
import platform
import shutil
import sys

import enclavekit_core
import enclavekit_enclave_init
from enclavekit_core import seccomp
from enclavekit_enclave_init.runtime import syscalls

MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
root, image, out, runtime = sys.argv[1:5]
syscalls.mount("none", "/", "", MS_REC | MS_PRIVATE)
syscalls.mount("machine", root, "tmpfs", 0, "mode=0755,size=64m")
shutil.copytree(image, root, dirs_exist_ok=True, symlinks=True)


def bind(source, target):
    inside = root + target
    if os.path.isdir(source):
        os.makedirs(inside, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        open(inside, "x").close()
    syscalls.mount(source, inside, "", MS_BIND | MS_REC)


os.makedirs(root + "/proc")
syscalls.mount("proc", root + "/proc", "proc", 0)
os.makedirs(root + "/dev")
for name in ("null", "zero", "urandom"):
    bind(f"/dev/{name}", f"/dev/{name}")
for name in ("usr", "bin", "lib", "lib64", "sbin"):
    if os.path.islink(f"/{name}"):
        os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
    elif os.path.isdir(f"/{name}"):
        bind(f"/{name}", f"/{name}")
if not sys.base_prefix.startswith("/usr"):
    bind(sys.base_prefix, sys.base_prefix)
bind(os.path.dirname(enclavekit_core.__file__), "/enclavekit/enclavekit_core")
bind(os.path.dirname(enclavekit_enclave_init.__file__), "/enclavekit/enclavekit_enclave_init")
bind(out, "/out")
bind(out, "/log")
bind(runtime, "/run/enclavekit")
os.chroot(root)
os.chdir("/")
if "old-kernel" in sys.argv[5:]:
    # as a 4.14 answers: what it does not know is ENOSYS; PID 1 and all units inherit this
    first = {"x86_64": 333, "aarch64": 292}[platform.machine()]  # io_pgetevents, Linux 4.18
    steps = [(seccomp.LOAD, 0, 0, 0), (seccomp.JUMP_IF_NOT_LESS, 0, 1, first)]
    steps += [(seccomp.RETURN, 0, 0, seccomp.ERROR | errno.ENOSYS), (seccomp.RETURN, 0, 0, seccomp.ALLOW)]
    syscalls.filter_calls(b"".join(seccomp.INSTRUCTION.pack(*step) for step in steps))
os.execve("/init", ["/init", "quiet"], {"HOME": "/", "TERM": "linux"})
