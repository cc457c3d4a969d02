# SPDX-License-Identifier: Apache-2.0
"""What each command of the console runs: Context in, steps out. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.console.plan import (
    IMAGE_DIRECTORY,
    IMAGE_SUFFIX,
    RECORD_SUFFIXES,
    Context,
    Step,
    Surroundings,
    choose_image,
    image_path,
    name_of_image,
    name_of_source,
    source_of,
)

KERNEL_DIRECTORY = "kernel"
KERNEL_FILES = tuple(f"{KERNEL_DIRECTORY}/{name}" for name in ("bzImage", "bzImage.config", "kernel.json"))

Planner = Callable[[Context], list[Step]]


def plan_doctor(context: Context) -> list[Step]:
    context.no_arguments()
    note = "nothing is installed or changed on this host: doctor says what is missing, each with its cure"
    return [Step("doctor", ("rbuilds", "doctor", *context.flags), note=note)]


def plan_kernel(context: Context) -> list[Step]:
    context.no_arguments()
    settings = context.settings
    argv = ["rbuilds", "kernel", "make", "--output", KERNEL_DIRECTORY]
    for flag, value in (
        ("--version", settings.kernel_version),
        ("--user", settings.kernel_user),
        ("--host", settings.kernel_host),
    ):
        if value is not None:
            argv += [flag, value]
    return [Step("kernel", (*argv, *context.flags), output=KERNEL_FILES[0])]


def plan_framework(context: Context) -> list[Step]:
    context.no_arguments()
    return [Step("framework", ("rbuilds", "framework", "build", *context.flags))]


def plan_init(context: Context) -> list[Step]:
    """The Python init is a part of the framework; the C init is compiled by the build that packs it."""
    if context.settings.init == "c":
        context.no_arguments()
        return [Step("init", note="the C init is compiled by make_eif --init-c; nothing to do before it")]
    return [replace(step, name="init") for step in plan_framework(context)]


def plan_eif(context: Context) -> list[Step]:
    """The image, then its measurements and description beside it."""
    source, name = source_of(context, context.argument("the Dockerfile, image archive or root directory"))
    settings, output = context.settings, image_path(name)
    argv = ["rbuilds", "build", *source, "--name", name, "--output", output]
    note = ""
    if settings.init == "c":
        argv += ["--init", "c"]
    if settings.network is not None:
        argv += ["--network", settings.network]
    if context.made_kernel:
        argv += ["--kernel-source", "made", "--kernel", KERNEL_FILES[0]]
        note = f"with the kernel that make_kernel left in ./{KERNEL_DIRECTORY}"
    elif settings.kernel_version is not None:
        note = "the kernel's flags are those of make_kernel, which has made none here: this image has the default one"
    return [
        Step("image", (*argv, *context.flags), output=output, note=note),
        Step("records", ("eif", "describe", output), output=output + RECORD_SUFFIXES[0], records=output, belongs=True),
    ]


def plan_eif_with_c(context: Context) -> list[Step]:
    return plan_eif(replace(context, settings=replace(context.settings, init="c")))


def plan_run(*flags: str) -> Planner:
    def plan(context: Context) -> list[Step]:
        image = choose_image(context, context.argument("the image"))
        settings = context.settings
        argv = ["rbuilds", "run", image, "--name", name_of_image(image), *flags]
        for flag, value in (("--memory", settings.memory_mib), ("--cpus", settings.cpus), ("--cid", settings.cid)):
            if value is not None:
                argv += [flag, str(value)]
        return [Step("run", (*argv, *context.flags))]

    return plan


def plan_enclave(verb: str) -> Planner:
    """Plan `attach` or `drop` of an enclave by name; without one, that of the image."""

    def plan(context: Context) -> list[Step]:
        named = context.argument("the enclave's name")
        name = named if named is not None else name_of_image(choose_image(context, None))
        return [Step(verb, ("rbuilds", verb, name, *context.flags))]

    return plan


def plan_words(name: str, *words: str) -> Planner:
    def plan(context: Context) -> list[Step]:
        context.no_arguments()
        return [Step(name, ("rbuilds", *words, *context.flags))]

    return plan


def plan_all(context: Context) -> list[Step]:
    """Kernel, framework, init and image, then the enclave in production mode."""
    if context.flags:
        raise InputError("run", context.name, f"it takes no flags, but {context.flags[0]} is there")
    alone = replace(context, words=())
    return [
        *plan_kernel(alone),
        # the framework holds the default init; an image with the C init has no framework, and no step of its own
        *(plan_framework(alone) if context.settings.init == "python" else plan_init(alone)),
        *plan_eif(replace(context, made_kernel=True)),
        *plan_run()(replace(alone, image=image_path(source_of(context, context.argument("the app"))[1]))),
    ]


def has_records(image: str, around: Surroundings) -> bool:
    return all(around.is_file(image + suffix) for suffix in RECORD_SUFFIXES)


def plan_clear(context: Context) -> list[Step]:
    """The cache, and the files that commands here make: of all images in ./eif with their records, or of one named."""
    named = context.argument("the image")
    if named is not None:
        name = name_of_image(named) if named.endswith(IMAGE_SUFFIX) else name_of_source(named, context.around)
        images, files = [image_path(name)], []
    else:
        # an image without both records is not one that make_eif left there
        images = [image for image in context.around.images() if has_records(image, context.around)]
        files = list(KERNEL_FILES)
    for image in images:
        files += [image, *(image + suffix for suffix in RECORD_SUFFIXES)]
    note = f"removes {', '.join(files)} and what the cache keeps; nothing else in ./{IMAGE_DIRECTORY}"
    return [Step("clear", ("rbuilds", "cache", "clear", *context.flags), removes=tuple(files), note=note)]
