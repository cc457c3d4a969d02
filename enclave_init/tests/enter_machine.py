# SPDX-License-Identifier: Apache-2.0
"""Run inside new namespaces by the `machine` fixture: builds a root like the process machine's and becomes its /init.

Arguments: the directory to use as root, the directory with what the test put into the image, the test's `out`
directory, the runtime directory with the fabric, and `bare` to leave /proc and all else for init to mount.
"""

import os
import shutil
import sys

import enclavekit_core
import enclavekit_enclave_init
from enclavekit_enclave_init import syscalls

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
os.execve("/init", ["/init", "quiet"], {"HOME": "/", "TERM": "linux"})
