# SPDX-License-Identifier: Apache-2.0
"""`pipeline cp` on the caller's side: files and trees, either way; each file whole or not at all."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_pipeline.channel.tree_directories import copy_error
from enclavekit_pipeline.channel.tree_sink import TreeSink, WriteOptions
from enclavekit_pipeline.channel.tree_source import ReadOptions, TreeSource
from enclavekit_pipeline.channel.tree_transfer import InThread, receive_tree, send_tree
from enclavekit_pipeline.host.client import Target, receive
from enclavekit_pipeline.host.copy_progress import Display
from enclavekit_pipeline.host.copy_streams import StdinSource, StdoutSink, in_daemon_thread
from enclavekit_pipeline.host.session import Session, open_request
from enclavekit_pipeline.wire.copy_messages import CopyInRequest, CopyOutRequest, Done, encode_name
from enclavekit_pipeline.wire.frames import Kind
from enclavekit_pipeline.wire.messages import Opened, decode_payload
from enclavekit_pipeline.wire.tree_filter import Selection

STANDARD_STREAM = "-"
KEPT_MODE = 0o777  # no set-id bits from an enclave: its files are data here
Result = TypeVar("Result")


@dataclass(frozen=True)
class CopyOptions:
    archive: bool = False
    """Owners are kept, and directories that were there before get the mode and time of the source's."""
    delta: bool = False
    """What is there and equal does not travel."""
    resume: bool = True
    """Large files go on where a copy that was cut has ended."""
    unsafe_links: bool = False
    """Links that lead out of the tree are kept."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    parents: bool = False
    """Directories that lead to the target are made."""
    system: bool = False

    def reading(self) -> ReadOptions:
        selection = Selection(self.include, self.exclude)
        return ReadOptions(self.archive, self.unsafe_links, self.delta, self.resume, selection)

    def writing(self, *, directory_only: bool = False) -> WriteOptions:
        return WriteOptions(KEPT_MODE, self.archive, self.delta, self.resume, self.unsafe_links, directory_only)


KEEP_ALL_BUT_OWNERS = CopyOptions()


async def copy_in(
    target: Target | Session,
    local: str,
    remote: str,
    options: CopyOptions = KEEP_ALL_BUT_OWNERS,
    display: Display | None = None,
) -> Done:
    """Copy a file or a tree of ours into the enclave. Raises InputError and what `open_request` raises."""
    shows = display or Display()
    is_stdin = local == STANDARD_STREAM
    source = StdinSource() if is_stdin else await in_thread(open_source, local, options)
    try:
        encoding, (path, name) = encode_name(*names_in_enclave(local, remote))
        request = CopyInRequest(
            path=path,
            name=name,
            encoding=encoding,
            archive=options.archive,
            delta=options.delta,
            resume=options.resume and not is_stdin,
            parents=options.parents,
            unsafe_links=options.unsafe_links,
            system=options.system,
        )
        async with open_request(target, request) as stream:
            await receive(stream, Kind.OPENED)
            shows.start(await in_thread(source.measure) if shows.wants_total else None)
            thread: InThread = in_daemon_thread if is_stdin else in_thread
            done = await send_tree(
                stream, source, thread, receive, lambda: report(source, source.sender.entries, shows)
            )
        report(source, done.entries, shows)
        shows.finish(done)
        return done
    except BaseException:
        shows.finish(None)
        raise
    finally:
        await in_thread(source.close)


async def copy_out(
    target: Target | Session,
    remote: str,
    local: str,
    options: CopyOptions = KEEP_ALL_BUT_OWNERS,
    display: Display | None = None,
) -> Done:
    """Copy a file or a tree out of the enclave. Raises InputError and what `open_request` raises."""
    shows = display or Display()
    is_stdout = local == STANDARD_STREAM
    encoding, (path,) = encode_name(os.fsencode(remote))
    request = CopyOutRequest(
        path=path,
        encoding=encoding,
        archive=options.archive,
        delta=options.delta and not is_stdout,
        resume=options.resume and not is_stdout,
        unsafe_links=options.unsafe_links,
        include=list(options.include),
        exclude=list(options.exclude),
        measure=shows.wants_total,
        system=options.system,
    )
    opened: list[TreeSink | StdoutSink] = []
    try:
        async with open_request(target, request) as stream:
            answer = decode_payload(Opened, (await receive(stream, Kind.OPENED)).payload)
            shows.start(answer.size or None)
            if is_stdout:
                opened.append(StdoutSink(remote))
            else:
                await in_thread(lambda: opened.append(open_destination(local, remote, options)))
            sink = opened[0]
            thread: InThread = in_daemon_thread if is_stdout else in_thread
            done = await receive_tree(stream, sink, thread, receive, lambda: report(sink, sink.receiver.entries, shows))
        report(sink, done.entries, shows)
        shows.finish(done)
        return done
    except BaseException:
        shows.finish(None)
        raise
    finally:
        for sink in opened:
            await in_thread(sink.close)


def report(end: TreeSource | StdinSource | TreeSink | StdoutSink, entries: int, display: Display) -> None:
    while end.left_out:
        display.omit(end.left_out.pop(0))
    display.show(end.moved, entries)


def open_source(path: str, options: CopyOptions) -> TreeSource:
    """Raises InputError: nothing is sent for a source that cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise InputError("copy", path, describe_cause(exc)) from exc
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        os.close(descriptor)
        raise InputError("copy", path, "it is neither a file nor a directory")
    return TreeSource(descriptor, path, options.reading())


def means_content(path: str) -> bool:
    """Return whether a path of a directory means what is in it, as with cp and docker cp."""
    return path == "." or path.endswith("/.")


def names_in_enclave(local: str, remote: str) -> tuple[bytes, bytes]:
    """Return the target, and the name that the copy gets if that is a directory; empty if it is to be that one."""
    if local == STANDARD_STREAM:
        return os.fsencode(remote), os.fsencode(os.path.basename(remote) or "stdin")
    if os.path.isdir(local):
        remote = remote.rstrip("/") or "/"  # NEW/ for a directory that is not there yet, as with cp
    return os.fsencode(remote), b"" if means_content(local) else os.fsencode(os.path.basename(os.path.abspath(local)))


def open_destination(path: str, remote: str, options: CopyOptions) -> TreeSink:
    """Raises InputError, also if `remote` has no name that a file here could get.

    In a directory the copy gets the name that the user asked for: one chosen by the enclave might be `.bashrc`.
    """
    into = os.path.isdir(path)
    if into and means_content(remote):
        directory, name = path, ""
    elif into:
        directory, name = path, os.path.basename(remote.rstrip("/"))
    else:
        directory, name = os.path.split(path.rstrip("/"))
    if name in (".", "..") or (not name and not (into and means_content(remote))):
        raise InputError("copy to", path, "it would have no name there")
    try:
        if options.parents and directory:
            os.makedirs(directory, exist_ok=True)
        descriptor = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise copy_error(path, b"", exc) from exc
    label = os.path.join(path, name) if into and name else path
    # DIR/ that is not there: a tree may become it, a file may not become DIR
    writing = options.writing(directory_only=not into and path.endswith("/"))
    return TreeSink(descriptor, os.fsencode(name), label, writing)


async def in_thread(function: Callable[..., Result], *args: object) -> Result:
    """Run what may block, to its end before a cancellation goes on: see Workplace.in_thread."""
    job = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await asyncio.wait([job])
        raise
