# SPDX-License-Identifier: Apache-2.0
"""What a Dockerfile's image is made of: the file, its context, and the images that it starts from.

What an engine builds from these is its own affair (RUN lines may fetch what they like); a lock can hold only what goes
in. An image archive or a directory is pinned whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator

from enclavekit_core.errors import CommandError, InputError, describe_cause

from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.base.inputs import Input

DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
MAX_DOCKERFILE_BYTES = 1024 * 1024
LEFT_OUT = re.compile(r"(\.git|[^/]*\.eif|[^/]*rbuilds\.lock|pcr\.json)(/.*)?")  # at its top: what builds leave


def dockerfile_inputs(dockerfile: str, context: str, engine: str) -> list[Input]:
    """Return the inputs; the base images must be in the engine, as they are after a build. Raises InputError."""
    try:
        with open(dockerfile, "rb") as source:
            raw = source.read(MAX_DOCKERFILE_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as exc:
        raise InputError("read", dockerfile, describe_cause(exc)) from exc
    except UnicodeDecodeError as exc:
        raise InputError("read", dockerfile, "it is not UTF-8") from exc
    if len(raw) > MAX_DOCKERFILE_BYTES:
        raise InputError("read", dockerfile, f"it has more than {MAX_DOCKERFILE_BYTES} bytes")
    found = [Input("file", os.path.basename(dockerfile), "", hashlib.sha256(raw).hexdigest(), len(raw), "Dockerfile")]
    found.append(Input("file", "context", "", context_digest(context), 0, "context"))
    try:
        images = base_images(text)
    except ValueError as exc:
        raise InputError("lock", dockerfile, str(exc)) from exc
    return [*found, *(Input("app", name, "", _image_digest(name, engine), 0, "base image") for name in images)]


def base_images(text: str) -> list[str]:
    """Return the images that a Dockerfile's stages start from or copy from, each once. Pure. Raises ValueError."""
    stages: set[str] = set()
    found: dict[str, None] = {}
    for line in _instructions(text):
        words = line.split()
        keyword = words[0].upper()
        if keyword == "FROM":
            names = [word for word in words[1:] if not word.startswith("--")]
            if not names:
                raise ValueError("a FROM line has no image")
            _note(names[0], stages, found)
            if len(names) >= 3 and names[1].upper() == "AS":
                stages.add(names[2].lower())
        elif keyword in ("COPY", "ADD", "RUN"):
            for source in re.findall(r"(?:--from=|--mount=\S*?\bfrom=)([^\s,]+)", line):
                if not source.isdigit():
                    _note(source, stages, found)
    return sorted(found)


def _note(name: str, stages: set[str], found: dict[str, None]) -> None:
    if name.lower() in stages or name == "scratch":
        return
    if "$" in name:
        raise ValueError(f"the image {name} is named by a variable, so that nothing pins it")
    found[name] = None


def _instructions(text: str) -> Iterator[str]:
    """Give a Dockerfile's instructions, continued lines joined, comments and here-documents left out."""
    pending, ends = "", ""
    for line in text.splitlines():
        if ends:
            ends = "" if line.strip() == ends else ends
            continue
        if line.lstrip().startswith("#") or not (pending or line.strip()):
            continue
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        if match := re.search(r"<<-?[\"']?([A-Za-z_]\w*)", pending):
            ends = match[1]
        yield pending
        pending = ""
    if pending.strip():
        yield pending


def context_digest(context: str) -> str:
    """Return a hash over a context's names, modes, contents and link targets; what .dockerignore names stays out."""
    ignored = _ignore_rules(context)
    digest = hashlib.sha256()
    try:
        for where, names, files in os.walk(context):
            inside = os.path.relpath(where, context)
            keep = []
            for name in sorted([*names, *files]):
                relative = os.path.normpath(os.path.join(inside, name))
                path = os.path.join(where, name)
                if LEFT_OUT.fullmatch(relative) or is_ignored(relative, ignored):
                    if name in names and any(rule.startswith("!") for rule in ignored):
                        keep.append(name)  # something below may be wanted again
                    continue
                info = os.lstat(path)
                digest.update(f"{shlex.quote(relative)} {_describe(path, info)}\n".encode("utf-8", "surrogateescape"))
                if stat.S_ISDIR(info.st_mode):
                    keep.append(name)
            names[:] = sorted(name for name in keep if name in names)
    except OSError as exc:
        raise InputError("read", exc.filename or context, describe_cause(exc)) from exc
    return digest.hexdigest()


def is_ignored(path: str, rules: Iterable[str]) -> bool:
    """Return whether .dockerignore's `rules` leave `path` out; the last that matches decides. Pure."""
    ignored = False
    for rule in rules:
        wanted = rule.startswith("!")
        pattern = _pattern(rule.removeprefix("!").strip().strip("/").removeprefix("./"))
        if pattern.fullmatch(path):
            ignored = not wanted
    return ignored


def _pattern(rule: str) -> re.Pattern[str]:
    parts = []
    for piece in re.split(r"(\*\*/?|\*|\?)", rule):
        parts.append({"**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece)))
    return re.compile("".join(parts) + "(/.*)?", re.DOTALL)


def _ignore_rules(context: str) -> list[str]:
    try:
        with open(os.path.join(context, ".dockerignore"), encoding="utf-8") as source:
            return [line.strip() for line in source if line.strip() and not line.startswith("#")]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError("read", os.path.join(context, ".dockerignore"), describe_cause(exc)) from exc


def _describe(path: str, info: os.stat_result) -> str:
    if stat.S_ISLNK(info.st_mode):
        return f"link {shlex.quote(os.readlink(path))}"
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as source:
            executable = "x" if info.st_mode & stat.S_IXUSR else "-"
            return f"file {executable} {hashlib.file_digest(source, 'sha256').hexdigest()}"
    return "directory" if stat.S_ISDIR(info.st_mode) else "other"


def _image_digest(name: str, engine: str) -> str:
    if pinned := re.fullmatch(r".+@sha256:([0-9a-f]{64})", name):
        return pinned[1]
    if engine == "buildah":
        argv = ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", name]
    else:
        argv = [engine, "image", "inspect", "--format", "{{.Id}}", name]
    try:
        match = DIGEST.fullmatch(run(argv, f"identify {name}").decode("ascii", "replace").strip())
    except CommandError as exc:
        cure = f"name it by digest ({name}@sha256:...), or pull it first ({engine} pull {name})"
        raise InputError("lock", f"base image {name}", f"{engine} does not have it; {cure}") from exc
    if match is None:
        raise InputError("lock", f"base image {name}", f"{engine} gives no digest for it")
    return match[1]
