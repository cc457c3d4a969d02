# SPDX-License-Identifier: Apache-2.0
"""Every command of rbuilds.sh by its name, and how a line is understood. Pure.

The names are those of the Rust framework's script; each has what it runs here, or what replaced it.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass, replace

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.console.flags import suggest
from enclavekit_rbuilds.console.masking import mask_line
from enclavekit_rbuilds.console.plan import Context, Step, split_words
from enclavekit_rbuilds.console.planners import (
    Planner,
    plan_all,
    plan_clear,
    plan_doctor,
    plan_eif,
    plan_eif_with_c,
    plan_enclave,
    plan_framework,
    plan_init,
    plan_kernel,
    plan_run,
    plan_words,
)
from enclavekit_rbuilds.console.replaced import REPLACED


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    summary: str
    plan: Planner
    argument: str = ""
    single: bool = False
    """A single step under a macro: in the extended help only."""


COMMANDS: tuple[Command, ...] = (
    Command("make_nitro", "check that this host can run enclaves; changes nothing", plan_doctor),
    Command("install_nitro_enclaves", "as make_nitro", plan_doctor, single=True),
    Command("make_kernel", "build the kernel into ./kernel", plan_kernel),
    Command("docker_kernel_build", "as make_kernel", plan_kernel, single=True),
    Command("make_apps", "build the framework: services, their runtime and the default init", plan_framework),
    Command("docker_apps_rs_build", "as make_apps", plan_framework, single=True),
    Command("init_and_rootfs_base_images_build", "as make_apps", plan_framework, single=True),
    Command("make_init", "build the init; the default one is a part of the framework", plan_init),
    Command("docker_init_apps_build", "as make_init", plan_init, single=True),
    Command("make_eif", "build the image of an app into ./eif, with its records", plan_eif, "[APP]"),
    Command(
        "eif_build_with_initc",
        "as make_eif --init-c: with the small static init",
        plan_eif_with_c,
        "[APP]",
        single=True,
    ),
    Command("make_all", "kernel, framework, init and image, then run it in production mode", plan_all, "[APP]"),
    Command("make_clear", "remove the images in ./eif (or one), the made kernel and the cache", plan_clear, "[APP]"),
    Command("run_eif_image", "run an image in production mode", plan_run(), "[IMAGE]"),
    Command(
        "run_eif_image_debugmode", "run it in debug mode: zero PCRs, with a console", plan_run("--debug"), "[IMAGE]"
    ),
    Command(
        "run_eif_image_debugmode_cli",
        "run it in debug mode and show the console until it ends",
        plan_run("--debug", "--attach"),
        "[IMAGE]",
    ),
    Command(
        "attach_console_to_enclave", "show the console of an enclave in debug mode", plan_enclave("attach"), "[NAME]"
    ),
    Command(
        "attach_console_to_recent_enclave",
        "show that of the one started last",
        plan_words("attach", "attach", "--recent"),
    ),
    Command("list_enclaves", "list the running enclaves", plan_words("list", "list")),
    Command("drop_enclave", "end an enclave and its proxies", plan_enclave("drop"), "[NAME]"),
    Command("drop_recent_enclave", "end the one started last", plan_words("drop", "drop", "--recent")),
    Command("drop_enclaves_all", "end all enclaves of this user", plan_words("drop", "drop", "--all")),
)
BY_NAME = {command.name: command for command in COMMANDS}
REPLACED_BY_NAME = {step.name: step for step in REPLACED}

TEXT_NAMES = {
    "help": "the flags and commands",
    "help_cli": "the flags",
    "help_ext": "also every single step",
    "help_ext_man": "also what each command runs",
    "man": "the manual of the commands",
    "info": "all of it",
}
TOGGLES = {
    "network": "both directions of the network",
    "forward_network": "egress",
    "reverse_network": "ingress",
    "q": "questions before each step",
    "debug": "the trace",
    "tty": "output on the terminal as well",
    "lsh": "local shell lines; only with the flag --lsh",
}
ENDS = ("exit", "break")
CHOICE = "make_enclave"
CHOICES = (
    "run_eif_image",
    "run_eif_image_debugmode",
    "run_eif_image_debugmode_cli",
    "attach_console_to_enclave",
    "attach_console_to_recent_enclave",
    "list_enclaves",
    "drop_enclave",
    "drop_recent_enclave",
)
"""What make_enclave offers by number. drop_enclaves_all ends what others may need, so it is given by name only."""

# `make WORD`: the spaced macros
SPACED = {
    "nitro": "make_nitro",
    "kernel": "make_kernel",
    "apps": "make_apps",
    "init": "make_init",
    "eif": "make_eif",
    "enclave": CHOICE,
    "all": "make_all",
    "=": "make_all",
    ":=": "make_all",
    "clear": "make_clear",
}


def known_names(subcommands: Collection[str] = ()) -> list[str]:
    """Return every word that a line may begin with."""
    spaced = [f"make {word}" for word in SPACED if word.isalpha()]
    return [*BY_NAME, CHOICE, *REPLACED_BY_NAME, *TEXT_NAMES, *TOGGLES, *ENDS, "make", *spaced, *subcommands]


def split_line(line: str) -> list[str]:
    """Return the words of a line as a shell would split them, spaced macros under their names. Raises InputError."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as exc:
        raise InputError("read line", shlex.quote(mask_line(line)), str(exc).lower()) from exc
    if words and words[0] == "make":
        if len(words) == 1:
            return ["make_all"]
        name = SPACED.get(words[1])
        if name is None:
            known = [f"make {word}" for word in SPACED]
            raise InputError("run", f"make {words[1]}", f"there is no such command{suggest(f'make {words[1]}', known)}")
        return [name, *words[2:]]
    return words


def plan_command(context: Context, subcommands: Collection[str] = ()) -> list[Step]:
    """Return the steps of one command with its arguments. Raises InputError if it is unknown or cannot be planned.

    Args:
        subcommands: those of rbuilds; each can be given with its own arguments.
    """
    name = context.name
    if name in BY_NAME:
        steps = BY_NAME[name].plan(context)
        for step in steps:  # before the first of them runs
            if step.argv[:1] == ("rbuilds",) and step.argv[1] not in subcommands:
                raise InputError("run", name, f"this rbuilds has no subcommand {step.argv[1]}")
        return steps
    if name in REPLACED_BY_NAME:
        replaced = REPLACED_BY_NAME[name]
        if replaced.fails:
            raise InputError("run", name, f"it is no step here; use {replaced.by}")
        return [Step(name, note=f"no step here; instead: {replaced.by}")]
    if name in subcommands:
        return [Step(name, ("rbuilds", name, *context.words, *context.flags))]
    raise InputError("run", name, f"there is no such command{suggest(name, known_names(subcommands))}")


def context_of(words: list[str], base: Context) -> Context:
    """Return the context for a split line."""
    arguments, flags = split_words(words[1:])
    return replace(base, name=words[0], words=arguments, flags=flags)
