# SPDX-License-Identifier: Apache-2.0
"""App roots out of this machine's own programs: unmodified clients with the libraries that they are linked with."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

LIBRARY = re.compile(r"(?:\S+ => )?(/\S+) \(0x")
UNUSED = ("test", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "pydoc_data", "distutils", "__pycache__",
          "config-*", "dist-packages", "site-packages")  # fmt: skip


def add_program(root: Path, name: str) -> None:
    """Put the program of this machine into `root`, as /bin/NAME."""
    path = Path(shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")).resolve()
    copy(root, path, f"bin/{name}")


def add_python(root: Path) -> None:
    """Put the interpreter and its library into `root`."""
    library = Path(sysconfig.get_path("stdlib"))
    copy(root, Path(sys.executable).resolve(), "bin/python3")
    shutil.copytree(library, root / str(library).lstrip("/"), ignore=shutil.ignore_patterns(*UNUSED), symlinks=True)
    for module in (library / "lib-dynload").glob("*.so"):
        if re.match(r"_(ssl|socket|hashlib|json|struct|bz2|ctypes|posixsubprocess|uuid|zlib)", module.name):
            add_libraries(root, module)


def copy(root: Path, path: Path, where: str) -> None:
    target = root / where
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(path, target)
    target.chmod(0o755)
    add_libraries(root, path)


def add_libraries(root: Path, path: Path) -> None:
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    for library in map(Path, LIBRARY.findall(listed)):
        target = root / str(library).lstrip("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(library.resolve(), target)
            target.chmod(0o755)
