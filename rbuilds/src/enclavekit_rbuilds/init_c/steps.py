# SPDX-License-Identifier: Apache-2.0
"""The step `framework` of an image with the C init: ramdisk 0 holds the init and nothing else."""

from __future__ import annotations

import hashlib
import os

import msgspec

from enclavekit_rbuilds.base.cache import cached, key_of
from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.framework.assemble import Framework
from enclavekit_rbuilds.image.ramdisk import RECIPE as PACKING
from enclavekit_rbuilds.image.ramdisk import RamdiskFile
from enclavekit_rbuilds.init_c.build import init_in_cache
from enclavekit_rbuilds.init_c.image import pack_init
from enclavekit_rbuilds.kernel.sources import Kernel, fit_compression
from enclavekit_rbuilds.plan.steps import Job, Product, Step

RECIPE = "1"  # part of the cache key: raise it when the layout of ramdisk 0 changes


def init_step(arch: str, compression: str) -> Step:
    """Return the step; its product is known by the init, the modules and how they are packed."""

    def make(job: Job) -> Product:
        kernel: Kernel = job.inputs["kernel"]
        fitting, _ = fit_compression(kernel, compression)
        init = init_in_cache(arch)
        contents = {path: _hash(path) for path in (init, *kernel.modules)}
        key = key_of([RECIPE, PACKING, arch, fitting, *contents.values()])

        def pack(work: str) -> None:
            packed = pack_init(kernel, init, os.path.join(work, "ramdisk"), fitting)
            with open(os.path.join(work, "ramdisk.json"), "wb") as out:
                out.write(msgspec.json.encode(packed))

        directory = cached("ramdisk", key, pack)
        with open(os.path.join(directory, "ramdisk.json"), "rb") as source:
            ramdisk = msgspec.json.decode(source.read(), type=RamdiskFile)
        ramdisk = msgspec.structs.replace(ramdisk, path=os.path.join(directory, "ramdisk"))
        parts = {f"init/{os.path.basename(path)}": os.stat(path).st_size for path in contents}
        return Product(Framework(ramdisk, {}, parts, _inputs(init, kernel, contents)), key)

    return Step("framework", "ramdisk 0 with the C init", ("kernel",), (RECIPE, arch, compression), make)


def _inputs(init: str, kernel: Kernel, contents: dict[str, str]) -> list[Input]:
    modules = [
        Input("file", os.path.basename(path), kernel.version, contents[path], os.stat(path).st_size, "kernel module")
        for path in kernel.modules
    ]
    return [Input("own", "init", "C, static", contents[init], os.stat(init).st_size), *modules]


def _hash(path: str) -> str:
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
