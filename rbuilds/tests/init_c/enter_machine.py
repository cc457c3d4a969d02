# SPDX-License-Identifier: Apache-2.0
"""Run inside new namespaces: make a directory the root, as the kernel does with a ramdisk, and become its /init.

Arguments: an empty directory, the directory with the ramdisk's files, the socket that answers the heartbeat.
"""

import ctypes
import os
import shutil
import sys

MS_REC, MS_PRIVATE, MS_BIND, MNT_DETACH = 16384, 1 << 18, 4096, 2
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)
root, image, heartbeat = sys.argv[1:4]


def check(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(source, target, kind, flags, data=None):
    check(libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data))


mount("none", "/", "", MS_REC | MS_PRIVATE)
mount("machine", root, "tmpfs", 0, b"mode=0755")
shutil.copytree(image, root, dirs_exist_ok=True, symlinks=True)
if os.path.exists(heartbeat):
    open(f"{root}/heartbeat", "x").close()
    mount(heartbeat, f"{root}/heartbeat", "", MS_BIND)
os.mkdir(f"{root}/old")
# procfs and sysfs may be mounted in a user namespace only while a whole one can be seen
os.chdir(root)
check(libc.syscall(SYS_PIVOT_ROOT, b".", b"old"))
os.chdir("/")
os.execve("/init", ["/init"], {})
