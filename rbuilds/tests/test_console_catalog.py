# SPDX-License-Identifier: Apache-2.0
"""Every command of the Rust framework's script is known by its name, and runs what rbuilds really has."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import pytest
from enclavekit_core.errors import InputError
from enclavekit_eif.cli import build_parser as build_eif_parser
from enclavekit_rbuilds.cli import COMMANDS as SUBCOMMANDS
from enclavekit_rbuilds.cli import build_parser
from enclavekit_rbuilds.console import catalog
from enclavekit_rbuilds.console.plan import Context, name_of_source
from enclavekit_rbuilds.console.settings import Settings
from enclavekit_rbuilds.console.texts import SampleSurroundings, shown_steps

# the script's own names, copied from its documentation
UPSTREAM = """
help help_cli help_ext help_ext_man man info
install_nitro_enclaves make_nitro make_kernel make_apps make_init make_eif make_all make_enclave make_clear
docker_kcontainer_clear docker_kimage_clear docker_kimage_build docker_prepare_kbuildenv docker_kernel_build
docker_apps_rs_container_clear docker_apps_rs_image_clear docker_apps_rs_image_build docker_prepare_apps_rs_buildenv
docker_apps_rs_build docker_init_apps_container_clear docker_init_apps_image_clear docker_init_apps_image_build
docker_prepare_init_apps_buildenv docker_init_apps_build docker_init_nix_container_clear docker_init_nix_image_clear
docker_init_nix_build make_init_nix docker_eif_build_container_clear docker_eif_build_image_clear
docker_container_apps_image_build init_and_rootfs_base_images_build docker_to_rootfs_fs_image_build
ramdisk_image_build eif_build_with_initc eif_build_with_initgo
run_eif_image run_eif_image_debugmode run_eif_image_debugmode_cli attach_console_to_enclave
attach_console_to_recent_enclave list_enclaves drop_enclave drop_recent_enclave drop_enclaves_all
network forward_network reverse_network q debug tty lsh break exit
"""
SPACED = {
    "make nitro": "make_nitro",
    "make kernel": "make_kernel",
    "make apps": "make_apps",
    "make init": "make_init",
    "make enclave": "make_enclave",
    "make eif": "make_eif",
    "make eif web.dockerfile": "make_eif web.dockerfile",
    "make": "make_all",
    "make all": "make_all",
    "make all web.dockerfile": "make_all web.dockerfile",
    "make = web.dockerfile": "make_all web.dockerfile",
    "make := web.dockerfile": "make_all web.dockerfile",
    "make clear": "make_clear",
    "make clear web.dockerfile": "make_clear web.dockerfile",
}


OFFERED = {*SUBCOMMANDS, "kernel"}


class Files(SampleSurroundings):
    def __init__(self, *files: str, directories: tuple[str, ...] = (), images: tuple[str, ...] = ()) -> None:
        self.files, self.directories, self.images_ = files, directories, images

    def is_file(self, path):
        return path in self.files

    def is_directory(self, path):
        return path in self.directories

    def images(self):
        return list(self.images_)

    def directory_name(self):
        return "my shop"


def plan(line: str, settings: Settings | None = None, around: Files | None = None, **more: object):
    context = Context("", settings or Settings(source="web.dockerfile"), around or Files(), **more)
    return catalog.plan_command(catalog.context_of(catalog.split_line(line), context), OFFERED)


def argvs(line: str, *words: object, **more: object) -> list[str]:
    return [" ".join(step.argv) for step in plan(line, *words, **more)]


@pytest.mark.parametrize("name", UPSTREAM.split())
def test_name_is_known(name) -> None:
    assert name in catalog.known_names()


@pytest.mark.parametrize("command", catalog.COMMANDS, ids=lambda command: command.name)
def test_command_runs_what_rbuilds_takes(command) -> None:
    """The argument lists are those of the real parsers: a flag that changes its name there fails here."""
    settings = Settings(
        source="web.dockerfile",
        memory_mib=512,
        cpus=2,
        cid=127,
        kernel_version="6.12.38",
        kernel_user="a",
        kernel_host="b",
        network="forward",
    )
    for init in ("python", "c"):
        steps = plan(command.name, replace(settings, init=init), made_kernel=True)
        assert steps
        for step in steps:
            if step.argv:
                parser = build_parser() if step.argv[0] == "rbuilds" else build_eif_parser()
                with contextlib.redirect_stderr(io.StringIO()) as complaint:
                    try:
                        parser.parse_args(step.argv[1:])
                    except SystemExit:
                        pytest.fail(f"{' '.join(step.argv)}: {complaint.getvalue()}")


@pytest.mark.parametrize("step", catalog.REPLACED, ids=lambda step: step.name)
def test_replaced_step_says_what_does_it(step) -> None:
    if step.fails:
        with pytest.raises(InputError, match="make_"):
            plan(step.name)
    else:
        (note,) = plan(step.name)
        assert not note.argv and note.note


@pytest.mark.parametrize(("line", "same"), SPACED.items())
def test_spaced_macro_is_its_command(line, same) -> None:
    assert catalog.split_line(line) == same.split()


@pytest.mark.parametrize("line", ["make kernl", "mak_kernel", "list_enclave", "rnu_eif_image", "MAKE_ALL"])
def test_unknown_command_fails_with_a_suggestion(line) -> None:
    if line == "MAKE_ALL":
        with pytest.raises(InputError):
            plan(line)
        return
    with pytest.raises(InputError, match="did you mean"):
        plan(line)


@pytest.mark.parametrize("line", ["make_kernel now", "list_enclaves x", "make_eif a b", "make_eif 'a", "make all --x"])
def test_line_that_does_not_fit_is_refused(line) -> None:
    with pytest.raises(InputError):
        plan(line)


def test_make_all_runs_in_production_mode_and_with_the_kernel_it_made() -> None:
    lines = argvs("make_all")
    assert [line.split()[1] for line in lines] == ["kernel", "framework", "build", "describe", "run"]
    assert not any("--debug" in line or "--attach" in line for line in lines)
    assert "--kernel-source made" in lines[2]


def test_kernel_flags_without_a_made_kernel_are_not_silent() -> None:
    with_flag = Settings(source="web.dockerfile", kernel_version="6.12.38")
    assert "--kernel-source" not in argvs("make_eif", with_flag)[0]
    assert plan("make_eif", with_flag)[0].note and not plan("make_eif")[0].note


def test_command_without_its_subcommand_fails_before_anything_runs() -> None:
    context = Context("make_all", Settings(source="web.dockerfile"), Files())
    with pytest.raises(InputError, match="kernel"):
        catalog.plan_command(context, OFFERED - {"kernel"})


def test_make_enclave_does_not_offer_to_end_everything() -> None:
    assert "drop_enclaves_all" not in catalog.CHOICES
    assert set(catalog.CHOICES) <= set(catalog.BY_NAME)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("web.dockerfile", "web"),
        ("apps/web.dockerfile", "web"),
        ("Dockerfile", "my-shop"),
        ("./Dockerfile", "my-shop"),
        ("apps/web/Dockerfile", "web"),
        ("Dockerfile.web", "web"),
        ("web.tar", "web"),
        ("web.tar.gz", "web"),
        ("notes.rootfs/", "notes.rootfs"),
        ("apps/web/enclave.yaml", "web"),
        ("web.yaml", "web"),
        (".", "my-shop"),
        ("a b;c.dockerfile", "a-b-c"),
        ("--.dockerfile", "app"),
    ],
)
def test_image_is_called_after_its_app(source, name) -> None:
    assert name_of_source(source, Files()) == name


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("make_eif", "--dockerfile web.dockerfile --name web --output eif/web.eif"),
        ("make_eif other.dockerfile", "--dockerfile other.dockerfile --name other --output eif/other.eif"),
        ("make_eif root", "--rootfs root --name root --output eif/root.eif"),
        ("make_eif image.tar", "--archive image.tar --name image --output eif/image.eif"),
        ("make_eif web.yaml", "--config web.yaml --name web --output eif/web.eif"),
        ("make_eif x --env A=1", "--dockerfile x --name x --output eif/x.eif --env A=1"),
    ],
)
def test_app_is_what_is_named(line, flags) -> None:
    assert argvs(line, around=Files(directories=("root",)))[0] == f"rbuilds build {flags}"


def test_manifest_here_is_used_and_none_is_an_error() -> None:
    (build, _) = argvs("make_eif", Settings(), Files("enclave.yaml"))
    assert build == "rbuilds build --config enclave.yaml --name my-shop --output eif/my-shop.eif"
    with pytest.raises(InputError, match="--dockerfile"):
        plan("make_eif", Settings())


def test_image_to_run_is_never_guessed() -> None:
    some = Files(images=("eif/a.eif", "eif/b.eif"))
    assert argvs("run_eif_image", Settings(), Files(images=("eif/a.eif",))) == ["rbuilds run eif/a.eif --name a"]
    assert argvs("run_eif_image", Settings(), some, image="eif/b.eif") == ["rbuilds run eif/b.eif --name b"]
    assert argvs("run_eif_image b", Settings(), some) == ["rbuilds run eif/b.eif --name b"]
    assert argvs("run_eif_image x/c.eif", Settings(), some) == ["rbuilds run x/c.eif --name c"]
    assert argvs("run_eif_image") == ["rbuilds run eif/web.eif --name web"]
    for around in (some, Files()):
        with pytest.raises(InputError, match="eif"):
            plan("run_eif_image", Settings(), around)


def test_clear_takes_only_what_the_commands_made() -> None:
    around = Files("eif/a.eif.pcr", "eif/a.eif.desc", images=("eif/a.eif", "eif/foreign.eif"))
    (step,) = plan("make_clear", around=around)
    assert set(step.removes) == {
        "eif/a.eif",
        "eif/a.eif.pcr",
        "eif/a.eif.desc",
        "kernel/bzImage",
        "kernel/bzImage.config",
        "kernel/kernel.json",
    }
    (step,) = plan("make_clear b.dockerfile", around=around)
    assert set(step.removes) == {"eif/b.eif", "eif/b.eif.pcr", "eif/b.eif.desc"}


def test_every_command_is_shown_by_the_manual() -> None:
    assert all(shown_steps(command) for command in catalog.COMMANDS)
