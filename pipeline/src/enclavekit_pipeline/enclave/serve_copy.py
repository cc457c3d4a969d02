# SPDX-License-Identifier: Apache-2.0
"""Copies in the enclave, files and trees: where a path leads, whether the caller may go there, and the records."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from enclavekit_core.errors import RemoteProtocolError

from enclavekit_pipeline.channel.file_user import reaching_files_as, without_capabilities
from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.channel.tree_directories import OPEN_DIRECTORY, copy_error
from enclavekit_pipeline.channel.tree_sink import TreeSink, WriteOptions
from enclavekit_pipeline.channel.tree_source import ReadOptions, TreeSource
from enclavekit_pipeline.channel.tree_transfer import InThread, receive_tree, send_tree
from enclavekit_pipeline.enclave.clients import Grant, check_comparison, check_path
from enclavekit_pipeline.enclave.confine import DROPPED_CAPABILITIES
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.workplace import Workplace
from enclavekit_pipeline.wire.copy_messages import CopyInRequest, CopyOutRequest, Done
from enclavekit_pipeline.wire.frames import Frame, Kind
from enclavekit_pipeline.wire.messages import Opened, encode_payload
from enclavekit_pipeline.wire.tree_filter import Selection
from enclavekit_pipeline.wire.tree_order import shown

KEPT_MODE = 0o1777  # no set-id bits: whoever may write a file may not thereby become somebody else
MAX_MADE_PARENTS = 256
Tree = TypeVar("Tree", TreeSink, TreeSource)


async def serve_copy_in(request: CopyInRequest, grant: Grant, stream: Stream, place: Workplace) -> str:
    label = shown(request.target)

    def open_sink() -> TreeSink:
        try:
            directory, name = open_target(place.root_of(request), request, grant)
        except OSError as exc:
            raise copy_error(label, b"", exc) from exc
        options = WriteOptions(
            kept_mode=KEPT_MODE,
            archive=request.archive,
            delta=request.delta,
            resume=request.resume,
            unsafe_links=request.unsafe_links,
        )
        return TreeSink(directory, os.fsencode(name), label, options)

    in_thread = files_thread(request, grant, place)
    async with opened_in_thread(open_sink, in_thread) as sink:
        await stream.send(Kind.OPENED, encode_payload(Opened()))
        return outcome(await receive_tree(stream, sink, in_thread, receive))


async def serve_copy_out(request: CopyOutRequest, grant: Grant, stream: Stream, place: Workplace) -> str:
    label = shown(request.source)

    def open_tree() -> TreeSource:
        try:
            descriptor = open_source(place.root_of(request), os.fsdecode(request.source), grant)
        except OSError as exc:
            raise copy_error(label, b"", exc) from exc
        options = ReadOptions(
            archive=request.archive,
            unsafe_links=request.unsafe_links,
            delta=request.delta,
            resume=request.resume,
            selection=Selection(request.include, request.exclude),
        )
        return TreeSource(descriptor, label, options)

    in_thread = files_thread(request, grant, place)
    async with opened_in_thread(open_tree, in_thread) as source:
        size = await in_thread(source.measure) if request.measure else 0
        await stream.send(Kind.OPENED, encode_payload(Opened(size=size)))
        return outcome(await send_tree(stream, source, in_thread, receive))


def files_thread(request: CopyInRequest | CopyOutRequest, grant: Grant, place: Workplace) -> InThread:
    """Return what runs a function in a thread: as the user of the client's entry, if it names one, and unless it may
    act on the system, with no more privileges than a command of it has.

    Raises: InputError if there is no such user.
    """
    if grant.user is None and grant.system:
        return place.in_thread
    account = None if grant.user is None else place.root_of(request).find_user(grant.user)

    def as_client(function: Callable[..., object], *args: object) -> object:
        with contextlib.ExitStack() as stack:
            if not grant.system:
                # root without them still reads and writes every file of the app, but not /proc of the framework
                stack.enter_context(without_capabilities(DROPPED_CAPABILITIES))
            if account is not None:
                stack.enter_context(reaching_files_as(*account[:2]))
            return function(*args)

    async def in_thread(function: Callable[..., object], *args: object) -> object:
        return await place.in_thread(as_client, function, *args)

    return in_thread


@contextlib.asynccontextmanager
async def opened_in_thread(opener: Callable[[], Tree], in_thread: InThread) -> AsyncIterator[Tree]:
    """Yield what `opener` returns, and close it; also if we are cancelled while it is opened."""
    opened: list[Tree] = []
    try:
        await in_thread(lambda: opened.append(opener()))
        yield opened[0]
    finally:
        for tree in opened:
            await in_thread(tree.close)


def outcome(done: Done) -> str:
    return f"{done.size} bytes, {done.entries} entries"


async def receive(stream: Stream, *wanted: Kind) -> Frame:
    frame = await stream.receive()
    if frame.kind not in wanted:
        raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} does not belong to cp")
    return frame


def open_target(root: Root, request: CopyInRequest, grant: Grant) -> tuple[int, str]:
    """Return (directory, name) of what is to be made; the name is empty if it is the directory itself.

    Raises: OSError, or Refused once it is known where the path leads.
    """
    path, name = os.fsdecode(request.target), os.fsdecode(request.base_name)
    with refused_before_told(grant, "cp-in", path):
        try:
            directory = root.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            parent, _, last = (path if name else path.rstrip("/")).rpartition("/")
            if not last or last in (".", ".."):
                raise
            name = last
            directory = open_parent(root, parent or "/", grant, make=request.parents)
    try:
        where = f"{root.name_of(directory).rstrip('/')}/{name}".rstrip("/") or "/"
        check_path(grant, "cp-in", where)
        if request.delta:
            check_comparison(grant, where)
        return directory, name
    except BaseException:
        os.close(directory)
        raise


def open_parent(root: Root, path: str, grant: Grant, *, make: bool) -> int:
    """Return a descriptor of a directory; with `make`, what is missing of it is made. Raises OSError or Refused."""
    missing: list[str] = []
    while True:
        try:
            directory = root.open(path or "/", os.O_RDONLY | os.O_DIRECTORY)
            break
        except FileNotFoundError:
            path, _, name = path.rstrip("/").rpartition("/")
            if not make or name in ("", ".", "..") or len(missing) >= MAX_MADE_PARENTS:
                raise
            missing.append(name)
    try:
        for name in reversed(missing):
            check_path(grant, "cp-in", f"{root.name_of(directory).rstrip('/')}/{name}")
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=directory)
            inner = os.open(name, OPEN_DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        return directory
    except BaseException:
        os.close(directory)
        raise


def open_source(root: Root, path: str, grant: Grant) -> int:
    """Return a descriptor of a file or directory. Raises OSError, or Refused once it is known where the path leads."""
    # only looked at: to open a device or a FIFO does something to it, and to who waits at its other end
    with refused_before_told(grant, "cp-out", path):
        found = root.open(path, os.O_PATH)
    try:
        check_path(grant, "cp-out", root.name_of(found))
        mode = os.fstat(found).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, "it is neither a file nor a directory", path)
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)


@contextlib.contextmanager
def refused_before_told(grant: Grant, verb: str, path: str) -> Iterator[None]:
    """Raises Refused instead of OSError where the client may not go: what is not there is not told either."""
    try:
        yield
    except OSError:
        check_path(grant, verb, posixpath.normpath(path))
        raise
