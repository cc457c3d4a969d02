# SPDX-License-Identifier: Apache-2.0
"""Single steps of the Rust framework's script that are no step here: what does their work instead. Pure data.

One whose work is done by another step succeeds and says so, since scripts call them in a row. One that promised a
result which nothing makes here fails: going on without it would mislead.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Replaced:
    name: str
    by: str
    """What does it instead, or what to use."""
    fails: bool = False


NOTHING_LEFT = "nothing: builds leave no {0} behind; make_clear removes what is kept"
CONTAINER, IMAGE = NOTHING_LEFT.format("container"), NOTHING_LEFT.format("build image")
KERNEL = "docker_kernel_build (make_kernel), which brings its own build environment"
FRAMEWORK = "docker_apps_rs_build (make_apps), which brings its own build environment"
INIT = "docker_init_apps_build (make_init), which brings its own build environment"
EIF = "eif_build_with_initc (make_eif), which builds the app, the ramdisks and the image in one go"
NO_NIX = "make_init; there is no Nix build, and none is needed: rbuilds reproduce shows that two builds are equal"
NO_GO = "make_eif for the default init (Python), or eif_build_with_initc for the small static one; there is none in Go"

REPLACED: tuple[Replaced, ...] = (
    Replaced("docker_kcontainer_clear", CONTAINER),
    Replaced("docker_kimage_clear", IMAGE),
    Replaced("docker_kimage_build", KERNEL),
    Replaced("docker_prepare_kbuildenv", KERNEL),
    Replaced("docker_apps_rs_container_clear", CONTAINER),
    Replaced("docker_apps_rs_image_clear", IMAGE),
    Replaced("docker_apps_rs_image_build", FRAMEWORK),
    Replaced("docker_prepare_apps_rs_buildenv", FRAMEWORK),
    Replaced("docker_init_apps_container_clear", CONTAINER),
    Replaced("docker_init_apps_image_clear", IMAGE),
    Replaced("docker_init_apps_image_build", INIT),
    Replaced("docker_prepare_init_apps_buildenv", INIT),
    Replaced("docker_init_nix_container_clear", CONTAINER),
    Replaced("docker_init_nix_image_clear", IMAGE),
    Replaced("docker_init_nix_build", NO_NIX, fails=True),
    Replaced("make_init_nix", NO_NIX, fails=True),
    Replaced("docker_eif_build_container_clear", CONTAINER),
    Replaced("docker_eif_build_image_clear", IMAGE),
    Replaced("docker_container_apps_image_build", EIF),
    Replaced("docker_to_rootfs_fs_image_build", EIF),
    Replaced("ramdisk_image_build", EIF),
    Replaced("eif_build_with_initgo", NO_GO, fails=True),
)
