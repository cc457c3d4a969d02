# SPDX-License-Identifier: Apache-2.0
"""The flags of rbuilds.sh: a table with every alias that the Rust framework's script knows, and its parser. Pure.

All flags are read before anything runs, so that their order does not matter. A switch never takes a word after it, and
a flag with a value refuses one that looks like a Dockerfile given by position.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.console.settings import DEFAULT_CID, Settings

DOCKERFILE_SUFFIX = ".dockerfile"
MAX_SUGGESTIONS = 3
MIN_LIKENESS = 0.6  # difflib's default: nearer than that is a slip of the fingers
KERNEL_VERSION = re.compile(r"v?(\d+\.\d+(?:\.\d+)?(?:-rc\d+)?)", re.ASCII)
MACHINE_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*", re.ASCII)  # goes into the kernel's version string

Apply = Callable[[Settings, str], Settings]
"""Return the settings with one flag applied; the text is its value, empty for a switch. Raises ValueError."""


@dataclass(frozen=True, slots=True)
class Flag:
    purpose: str
    aliases: tuple[str, ...]
    help: str
    apply: Apply
    value: str = ""
    """What the value is called in help texts; empty: a switch."""
    ours: bool = False
    """Not in the Rust framework's script."""


def set_field(name: str, value: object) -> Apply:
    return lambda settings, _: replace(settings, **{name: value})  # type: ignore[arg-type]


def take_text(name: str) -> Apply:
    return lambda settings, text: replace(settings, **{name: text})  # type: ignore[arg-type]


def take_number(name: str, least: int, most: int) -> Apply:
    def apply(settings: Settings, text: str) -> Settings:
        if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
            raise ValueError(f"it is not a number from {least} to {most}")
        return replace(settings, **{name: int(text)})  # type: ignore[arg-type]

    return apply


def take_word(name: str) -> Apply:
    def apply(settings: Settings, text: str) -> Settings:
        if not MACHINE_WORD.fullmatch(text):
            raise ValueError("it is not a plain name")
        return replace(settings, **{name: text})  # type: ignore[arg-type]

    return apply


def take_kernel_version(settings: Settings, text: str) -> Settings:
    found = KERNEL_VERSION.fullmatch(text)
    if found is None:
        raise ValueError("it is not a kernel version such as 6.12.38")
    return replace(settings, kernel_version=found[1])


def take_command(settings: Settings, text: str) -> Settings:
    if not text.strip():
        raise ValueError("it is empty")
    return replace(settings, commands=(*settings.commands, text))


def take_network(direction: str) -> Apply:
    return lambda settings, _: settings.with_network(direction)


def refuse_init(language: str) -> Apply:
    def apply(_settings: Settings, _text: str) -> Settings:
        raise ValueError(
            f"there is no init in {language} here; leave the flag out for the default init (Python, with services and "
            "logs), or give --init-c for a small static one that runs the app alone"
        )

    return apply


FLAGS: tuple[Flag, ...] = (
    Flag("help", ("-?", "-h", "--help"), "the flags and commands", set_field("text", "help")),
    Flag(
        "extended help",
        ("-??", "-hh", "-he", "--helpext", "--help-ext", "--help_ext"),
        "also every single step",
        set_field("text", "help_ext"),
    ),
    Flag(
        "extended help with manual",
        ("-???", "-hhh", "--helpextman", "--help-ext-man", "--help_ext_man"),
        "also what each command runs",
        set_field("text", "help_ext_man"),
    ),
    Flag("manual", ("--man",), "the manual of the commands", set_field("text", "man")),
    Flag("everything", ("--info",), "all help texts", set_field("text", "info")),
    Flag(
        "trace",
        ("--debug", "-v", "--verbose"),
        "say on stderr how each line is understood; secrets are masked",
        set_field("debug", True),
    ),
    Flag(
        "questions",
        ("--question", "--questions", "-q"),
        "ask y/n before each step; without a terminal the answers are lines of standard input",
        set_field("question", True),
    ),
    Flag(
        "local shell",
        ("--local-shell", "--local_shell", "--lsh", "-lsh"),
        "run lines that are no command with sh -c on this host",
        set_field("local_shell", True),
    ),
    Flag(
        "terminal",
        ("--tty", "--tty-dev", "--tty_dev", "--terminal", "--term"),
        "show the steps' output on the terminal as well where standard output goes elsewhere",
        set_field("tty", True),
    ),
    Flag(
        "kernel version",
        ("--kernel", "--kernel-version", "--kernel_version", "-k"),
        "version that make_kernel must find in its source: Debian's, or that of make_kernel --source URL --sha256 HEX",
        take_kernel_version,
        "VERSION",
    ),
    Flag(
        "kernel build user",
        ("--user", "--kbuild-user", "--kbuild_user", "--kuser", "-u"),
        "user name in the kernel's version string",
        take_word("kernel_user"),
        "NAME",
    ),
    Flag(
        "kernel build host",
        ("--host", "--kbuild-host", "--kbuild_host", "--khost"),
        "host name in the kernel's version string (-h is help, as it always was)",
        take_word("kernel_host"),
        "NAME",
    ),
    Flag(
        "memory",
        ("--memory", "--mem", "--ram", "-m", "--enclave-memory", "--enclave_memory", "--enclave-mem", "--enclave_mem"),
        "memory of the enclave (default: what the image asks for)",
        take_number("memory_mib", 64, 1 << 24),
        "MIB",
    ),
    Flag(
        "CPUs",
        ("--cpus", "--cpu", "--cores", "--cpu-cores", "--cpu_cores", "--enclave-cpus", "--enclave_cpus"),
        "CPUs of the enclave (default: what the image asks for)",
        take_number("cpus", 1, 4096),
        "NUMBER",
    ),
    Flag(
        "CID",
        ("--cid", "--enclave-cid", "--enclave_cid"),
        f"vsock address of the enclave; taken means failure (default: {DEFAULT_CID} or the next free one)",
        take_number("cid", 4, 0xFFFFFFFE),
        "CID",
    ),
    Flag(
        "Dockerfile",
        ("--dockerfile", "-d"),
        f"the app; or give a word that ends in {DOCKERFILE_SUFFIX}. An image archive or a root directory do as well",
        take_text("source"),
        "FILE",
    ),
    Flag(
        "reverse proxy",
        (
            *("--revnet", "--rev_net", "--rev-net", "--rev_network", "--rev-network"),
            *("--reverse_net", "--reverse-net", "--reverse_network", "--reverse-network", "-rn"),
        ),
        "the build fails unless the manifest lists ingress rules and no egress",
        take_network("reverse"),
    ),
    Flag(
        "forward proxy",
        (
            *("--fwnet", "--fw_net", "--fw-net", "--fw_network", "--fw-network"),
            *("--forward_net", "--forward-net", "--forward_network", "--forward-network", "-fn"),
        ),
        "the build fails unless the manifest lists egress rules and no ingress",
        take_network("forward"),
    ),
    Flag(
        "both proxies",
        ("--net", "--network", "--networking", "-n"),
        "the build fails unless the manifest lists egress and ingress rules",
        take_network("both"),
    ),
    Flag("C init", ("--init-c", "--init_c", "--clang"), "build with the small static init", set_field("init", "c")),
    Flag("Go init", ("--init-go", "--init_go", "--golang", "--go"), "refused: there is none", refuse_init("Go")),
    Flag(
        "Rust init",
        ("--init-rs", "--init_rs", "--init-rust", "--init_rust", "--rust", "--rs"),
        "refused: there is none",
        refuse_init("Rust"),
    ),
    Flag(
        "command",
        ("--cmd", "--command", "-c"),
        "run a line and end; may be repeated, in order. All flags apply to it, also those after it",
        take_command,
        "LINE",
    ),
    Flag(
        "manifest",
        ("--manifest", "--config"),
        "enclave.yaml of the app; without it and without an app: the one in this directory",
        take_text("manifest"),
        "FILE",
        ours=True,
    ),
    Flag("dry run", ("--dry-run",), "print the steps, run nothing", set_field("dry_run", True), ours=True),
    Flag(
        "JSON",
        ("--json",),
        "print the steps with their results as JSON; their output goes to stderr",
        set_field("json", True),
        ours=True,
    ),
)

BY_ALIAS = {alias: flag for flag in FLAGS for alias in flag.aliases}
# where a value may be any text; all others refuse what looks like a Dockerfile or a flag
FREE_VALUES = frozenset({"Dockerfile", "command"})


def parse_flags(words: Sequence[str], base: Settings | None = None) -> Settings:
    """Return what `words` say, on top of `base`. Raises InputError at the first that cannot be used."""
    settings = base or Settings()
    positional: str | None = None
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("-"):
            if not word.endswith(DOCKERFILE_SUFFIX):
                raise InputError(
                    "use argument",
                    shlex.quote(word),
                    f"it is neither a flag nor a file ending in {DOCKERFILE_SUFFIX}; a command goes behind --cmd",
                )
            if positional is not None:
                raise InputError("use argument", shlex.quote(word), f"{positional} is there already")
            positional = word
            settings = replace(settings, source=word)
            continue
        name, equals, value = word.partition("=")
        flag = BY_ALIAS.get(name)
        if flag is None:
            raise InputError("use flag", name, f"there is no such flag{suggest(name, BY_ALIAS)}")
        if flag.value and not equals:
            if index == len(words):
                raise InputError("use flag", name, f"it needs a value: {name} {flag.value}")
            value = words[index]
            index += 1
            refuse_lost_word(flag, name, value)
        elif equals and not flag.value:
            raise InputError("use flag", name, "it is a switch and takes no value")
        try:
            settings = flag.apply(settings, value)
        except ValueError as exc:
            what = f"{name} {shlex.quote(value)}" if flag.value else name
            raise InputError("use flag", what, str(exc)) from exc
    return settings


def refuse_lost_word(flag: Flag, name: str, value: str) -> None:
    """Refuse the next word as a value if it is more likely an argument of its own."""
    if value.startswith("-"):
        raise InputError("use flag", name, f"it needs a value, but {value} follows; write {name}=VALUE if that is one")
    if flag.purpose not in FREE_VALUES and value.endswith(DOCKERFILE_SUFFIX):
        raise InputError("use flag", name, f"it needs a value, but the Dockerfile {value} follows")


def suggest(word: str, known: Sequence[str] | dict[str, Flag]) -> str:
    """Return `; did you mean ...?` with what is near to `word`, or nothing."""
    near = difflib.get_close_matches(word, list(known), MAX_SUGGESTIONS, MIN_LIKENESS)
    return f"; did you mean {' or '.join(near)}?" if near else ""
