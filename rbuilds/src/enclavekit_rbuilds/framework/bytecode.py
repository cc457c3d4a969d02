# SPDX-License-Identifier: Apache-2.0
"""Compile a framework's Python modules with its own interpreter, so that nothing in the enclave compiles at start.

The interpreter is started through its own dynamic loader: no chroot, hence no root. The result depends on the sources
and the interpreter only: one process, sorted order, no hash randomisation, source hashes instead of times.
"""

from __future__ import annotations

import os

from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.framework.debian import MACHINE_TRIPLETS

LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}

# Runs inside the framework's interpreter. `dfile` is what tracebacks show: the path in the enclave, not the one here.
# A module that is not valid for this version (templates of tools, mostly) stays uncompiled, as pip leaves it.
COMPILER = """
import os, py_compile, sys
root, mode = sys.argv[1], py_compile.PycInvalidationMode.UNCHECKED_HASH
for top in sys.argv[2:]:
    for where, names, files in os.walk(os.path.join(root, top)):
        names.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                path = os.path.join(where, name)
                inside = "/" + os.path.relpath(path, root)
                cached = os.path.join(where, "__pycache__", name[:-3] + "." + sys.implementation.cache_tag + ".pyc")
                try:
                    py_compile.compile(path, cached, dfile=inside, doraise=True, invalidation_mode=mode)
                except py_compile.PyCompileError as problem:
                    print(problem.msg, file=sys.stderr)
"""


def compile_modules(root: str, arch: str, tops: tuple[str, ...]) -> None:
    """Compile every module below `root`/top of `tops`. Raises CommandError."""
    lib = os.path.join(root, "usr/lib", MACHINE_TRIPLETS[arch])
    argv = [
        *(os.path.join(lib, LOADERS[arch]), "--library-path", lib),
        *(os.path.join(root, "usr/bin/python3.11"), "-B", "-s", "-S", "-c", COMPILER, root, *tops),
    ]
    env = {"PYTHONHOME": os.path.join(root, "usr"), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    run(argv, "compile the framework's Python modules", env=env)
