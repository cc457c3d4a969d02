# SPDX-License-Identifier: Apache-2.0
"""What planning asks about the current directory."""

from __future__ import annotations

import os

from enclavekit_rbuilds.console.plan import IMAGE_DIRECTORY, IMAGE_SUFFIX


class CurrentDirectory:
    def is_file(self, path: str) -> bool:
        return os.path.isfile(path)

    def is_directory(self, path: str) -> bool:
        return os.path.isdir(path)

    def images(self) -> list[str]:
        try:
            names = sorted(os.listdir(IMAGE_DIRECTORY))
        except OSError:
            return []
        return [f"{IMAGE_DIRECTORY}/{name}" for name in names if name.endswith(IMAGE_SUFFIX)]

    def manifest_name(self, path: str) -> str | None:
        from enclavekit_rbuilds.manifest.model import load_manifest

        return load_manifest(path).name

    def directory_name(self) -> str:
        return os.path.basename(os.getcwd())
