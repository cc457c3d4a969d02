# SPDX-License-Identifier: Apache-2.0
"""What a command line of the console comes to: steps to run, and what planning has to know. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.console.settings import Settings

IMAGE_DIRECTORY = "eif"
IMAGE_SUFFIX = ".eif"
RECORD_SUFFIXES = (".pcr", ".desc")  # after the image's whole name: NAME.eif.pcr, NAME.eif.desc
MANIFEST_NAME = "enclave.yaml"
ARCHIVE_SUFFIXES = (".tar", ".oci")
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done: a program run, or, with an empty argv, a note alone."""

    name: str
    argv: tuple[str, ...] = ()
    """Program (rbuilds, eif or sh) and its arguments."""
    output: str = ""
    """The file it makes, if it makes one that users look for."""
    records: str = ""
    """Image whose description the program prints; it goes into the files beside it."""
    removes: tuple[str, ...] = ()
    """Files to remove after the program has succeeded."""
    note: str = ""
    """Said before it runs."""
    belongs: bool = False
    """Part of the step before it: no question of its own, skipped if that is."""


class Surroundings(Protocol):
    """What planning may ask about the world."""

    def is_file(self, path: str) -> bool: ...

    def is_directory(self, path: str) -> bool: ...

    def images(self) -> list[str]:
        """Return the images in ./eif, sorted."""

    def manifest_name(self, path: str) -> str | None:
        """Return what a manifest calls its image. Raises EnclavekitError."""

    def directory_name(self) -> str:
        """Return the name of the current directory."""


@dataclass(frozen=True, slots=True)
class Context:
    """One command to plan."""

    name: str
    settings: Settings
    around: Surroundings
    words: tuple[str, ...] = ()
    """Arguments before the first flag."""
    flags: tuple[str, ...] = ()
    """The first flag and what follows: for the rbuilds subcommand behind the command."""
    image: str | None = None
    """The image that an earlier command of this session made."""
    made_kernel: bool = False
    """Whether there is a kernel by make_kernel, to be used."""

    def argument(self, what: str) -> str | None:
        """Return the only argument, or None. Raises InputError if there are more."""
        if len(self.words) > 1:
            raise InputError("run", self.name, f"it takes one argument, {what}")
        return self.words[0] if self.words else None

    def no_arguments(self) -> None:
        if self.words:
            raise InputError("run", self.name, f"it takes no argument, but {self.words[0]} is there")


def split_words(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the arguments and the flags of a command."""
    first = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    return tuple(words[:first]), tuple(words[first:])


def name_of_source(path: str, around: Surroundings) -> str:
    """Return what the image of an app is called: after its Dockerfile, archive, directory or manifest."""
    folder, _, base = path.rstrip("/").rpartition("/")
    if base in ("Dockerfile", "Containerfile", MANIFEST_NAME) or base in ("", ".", ".."):
        name = folder.rpartition("/")[2]
        name = around.directory_name() if name in ("", ".", "..") else name
    elif base.startswith(("Dockerfile.", "Containerfile.")):
        name = base.partition(".")[2]
    else:
        name = base.removesuffix(".gz")
        for suffix in (".dockerfile", ".yaml", ".yml", *ARCHIVE_SUFFIXES):
            name = name.removesuffix(suffix)
    return NOT_IN_NAMES.sub("-", name).strip("-.") or "app"


def image_path(name: str) -> str:
    return f"{IMAGE_DIRECTORY}/{name}{IMAGE_SUFFIX}"


def name_of_image(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(IMAGE_SUFFIX)


def source_of(context: Context, argument: str | None) -> tuple[tuple[str, ...], str]:
    """Return the flags of `rbuilds build` that name the app, and the image's name. Raises InputError."""
    settings, around = context.settings, context.around
    source, manifest = argument or settings.source, settings.manifest
    if source is not None and source.endswith((".yaml", ".yml")) and not around.is_directory(source):
        if manifest is not None and argument is None:
            raise InputError("use", source, f"{manifest} is the manifest already")
        source, manifest = None, source
    if source is None and manifest is None and around.is_file(MANIFEST_NAME):
        manifest = MANIFEST_NAME
    flags: tuple[str, ...] = () if manifest is None else ("--config", manifest)
    if source is None:
        if manifest is None:
            raise InputError(
                "choose the app",
                f"for {context.name}",
                f"nobody names it; give --dockerfile FILE, an argument, or have {MANIFEST_NAME} here",
            )
        return flags, clean_name(around.manifest_name(manifest)) or name_of_source(manifest, around)
    if around.is_directory(source):
        kind = "--rootfs"
    elif source.removesuffix(".gz").endswith(ARCHIVE_SUFFIXES):
        kind = "--archive"
    else:
        kind = "--dockerfile"
    return (kind, source, *flags), name_of_source(source, around)


def clean_name(name: str | None) -> str:
    return NOT_IN_NAMES.sub("-", name or "").strip("-.")


def choose_image(context: Context, argument: str | None) -> str:
    """Return the image to run: named, made in this session, the app's, or the only one there. Raises InputError."""
    settings, around = context.settings, context.around
    if argument is not None:
        if argument.endswith(IMAGE_SUFFIX):
            return argument
        return image_path(name_of_source(argument, around))
    if context.image is not None:
        return context.image
    if settings.source is not None or settings.manifest is not None:
        return image_path(source_of(context, None)[1])
    images = around.images()
    if len(images) == 1:
        return images[0]
    cause = f"there are {len(images)}: {', '.join(images)}; name one" if images else "there is none; make_eif makes one"
    raise InputError("choose an image", f"in ./{IMAGE_DIRECTORY} for {context.name}", cause)
