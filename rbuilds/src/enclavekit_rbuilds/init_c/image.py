# SPDX-License-Identifier: Apache-2.0
"""The two ramdisks of an image with the C init, laid out as nitro-cli lays out its own.

ramdisk 0   /init, /dev and, for a kernel without the driver, /nsm.ko
ramdisk 1   /rootfs, /cmd and /env; /user and /workdir where they say something
"""

from __future__ import annotations

import os
import shutil
import tempfile

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.app.accounts import Account
from enclavekit_rbuilds.app.image_config import DEFAULT_PATH, ImageConfig
from enclavekit_rbuilds.app.tree import AppTree
from enclavekit_rbuilds.app.unit import find_program
from enclavekit_rbuilds.image.app_archive import AppFile
from enclavekit_rbuilds.image.ramdisk import RamdiskFile, pack_directory
from enclavekit_rbuilds.kernel.model import NSM_MODULE, Kernel, module_names

MAX_LINES_BYTES = (1 << 20) - 1  # of /cmd and of /env: MAX_FILE in init.c


def pack_init(kernel: Kernel, init: str, target: str, compression: str) -> RamdiskFile:
    """Write ramdisk 0 with the compiled `init` to `target`. Raises InputError for a kernel that it cannot serve."""
    others = [path for path in kernel.modules if module_names((path,)) != {NSM_MODULE}]
    if others:
        names = ", ".join(os.path.basename(path) for path in others)
        reason = f"it needs modules ({names}), and the C init loads none but nsm.ko: use a made kernel or AWS's blobs"
        raise InputError("use kernel", kernel.name, reason)
    with tempfile.TemporaryDirectory(prefix="enclavekit-init-") as root:
        os.chmod(root, 0o755)  # noqa: S103 - a root directory
        os.mkdir(os.path.join(root, "dev"), 0o755)
        _copy(init, os.path.join(root, "init"), 0o755)
        for module in kernel.modules:
            _copy(module, os.path.join(root, "nsm.ko"), 0o755)
        return pack_directory(root, target, compression)


def init_files(tree: AppTree, config: ImageConfig, account: Account) -> list[AppFile]:
    """Return what ramdisk 1 holds beside the app's root. Raises InputError for what could not start, or not be said."""
    if not config.argv or not config.argv[0]:
        raise InputError("build", "the app", "it has no ENTRYPOINT and no CMD: give --entrypoint or --cmd")
    environment = {"PATH": DEFAULT_PATH, "HOME": account.home, **config.environment}
    program = find_program(tree, config, environment["PATH"])
    files = {
        "cmd": [program, *config.argv[1:]],
        "env": [f"{name}={value}" for name, value in environment.items()],
    }
    if config.working_directory != "/":
        files["workdir"] = [config.working_directory]
    ids = (account.uid, account.gid, *account.groups)
    if any(ids):
        files["user"] = [" ".join(map(str, ids))]
    return [AppFile(name.encode(), _lines(name, lines)) for name, lines in files.items()]


def _lines(name: str, lines: list[str]) -> bytes:
    """Return a file of lines; the format has no quotes, so a line break inside one cannot be written."""
    for line in lines:
        if "\n" in line or "\0" in line:
            reason = "it has a line break or a NUL, and the C init reads one per line: use the default init"
            raise InputError("write", f"/{name} with {line[:40]!r}", reason)
    raw = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    if len(raw) > MAX_LINES_BYTES:
        raise InputError("write", f"/{name}", f"it has {len(raw)} bytes, more than {MAX_LINES_BYTES}")
    return raw


def _copy(source: str, target: str, mode: int) -> None:
    shutil.copyfile(source, target)
    os.chmod(target, mode)
