# SPDX-License-Identifier: Apache-2.0
"""Every flag of the Rust framework's script under every name that it has there."""

from __future__ import annotations

import pytest
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.console.flags import BY_ALIAS, FLAGS, parse_flags
from enclavekit_rbuilds.console.settings import Settings

# the script's own table, copied from its documentation: aliases, the value to try, the field and what it becomes
UPSTREAM = [
    ("-? -h --help", None, "text", "help"),
    ("-?? -hh -he --helpext --help-ext --help_ext", None, "text", "help_ext"),
    ("-??? -hhh --helpextman --help-ext-man --help_ext_man", None, "text", "help_ext_man"),
    ("--man", None, "text", "man"),
    ("--info", None, "text", "info"),
    ("--debug -v --verbose", None, "debug", True),
    ("--question --questions -q", None, "question", True),
    ("--local-shell --local_shell --lsh -lsh", None, "local_shell", True),
    ("--tty --tty-dev --tty_dev --terminal --term", None, "tty", True),
    ("--kernel --kernel-version --kernel_version -k", "6.12.26", "kernel_version", "6.12.26"),
    ("--user --kbuild-user --kbuild_user --kuser -u", "builder", "kernel_user", "builder"),
    ("--host --kbuild-host --kbuild_host --khost", "machine", "kernel_host", "machine"),
    (
        "--memory --mem --ram -m --enclave-memory --enclave_memory --enclave-mem --enclave_mem",
        "4096",
        "memory_mib",
        4096,
    ),
    ("--cpus --cpu --cores --cpu-cores --cpu_cores --enclave-cpus --enclave_cpus", "4", "cpus", 4),
    ("--cid --enclave-cid --enclave_cid", "128", "cid", 128),
    ("--dockerfile -d", "web.dockerfile", "source", "web.dockerfile"),
    (
        "--revnet --rev_net --rev-net --rev_network --rev-network --reverse_net --reverse-net --reverse_network "
        "--reverse-network -rn",
        None,
        "network",
        "reverse",
    ),
    (
        "--fwnet --fw_net --fw-net --fw_network --fw-network --forward_net --forward-net --forward_network "
        "--forward-network -fn",
        None,
        "network",
        "forward",
    ),
    ("--net --network --networking -n", None, "network", "both"),
    ("--init-c --init_c --clang", None, "init", "c"),
    ("--cmd --command -c", "make_eif web.dockerfile", "commands", ("make_eif web.dockerfile",)),
]
NO_SUCH_INIT = "--init-go --init_go --golang --go --init-rs --init_rs --init-rust --init_rust --rust --rs"
ALIASES = [(alias, value, field, wanted) for names, value, field, wanted in UPSTREAM for alias in names.split()]
SWITCHES = [alias for alias, value, field, _ in ALIASES if value is None and field != "text"]
VALUED = [alias for alias, value, *_ in ALIASES if value is not None]


@pytest.mark.parametrize(("alias", "value", "field", "wanted"), ALIASES, ids=[row[0] for row in ALIASES])
def test_alias_does_what_it_did(alias, value, field, wanted) -> None:
    settings = parse_flags([alias] if value is None else [alias, value])
    changed = {name for name in Settings.__slots__ if getattr(settings, name) != getattr(Settings(), name)}
    assert changed == {field} and getattr(settings, field) == wanted
    if value is not None:
        assert parse_flags([f"{alias}={value}"]) == settings


@pytest.mark.parametrize("alias", NO_SUCH_INIT.split())
def test_init_that_is_not_there_names_the_alternatives(alias) -> None:
    with pytest.raises(InputError, match="--init-c"):
        parse_flags([alias])


def test_no_other_alias_claims_to_be_of_the_script() -> None:
    known = {alias for alias, *_ in ALIASES} | set(NO_SUCH_INIT.split())
    assert {alias for flag in FLAGS if not flag.ours for alias in flag.aliases} == known
    assert len(BY_ALIAS) == sum(len(flag.aliases) for flag in FLAGS), "an alias is there twice"


@pytest.mark.parametrize("alias", SWITCHES)
def test_switch_never_eats_a_dockerfile(alias) -> None:
    settings = parse_flags([alias, "web.dockerfile"])
    assert settings.source == "web.dockerfile"
    assert parse_flags(["web.dockerfile", alias]) == settings


@pytest.mark.parametrize("alias", VALUED)
def test_flag_without_its_value_is_refused(alias) -> None:
    with pytest.raises(InputError):
        parse_flags([alias])
    with pytest.raises(InputError):
        parse_flags([alias, "--tty"])
    if BY_ALIAS[alias].purpose not in ("Dockerfile", "command"):
        with pytest.raises(InputError):
            parse_flags([alias, "web.dockerfile"])


@pytest.mark.parametrize(
    "words",
    [
        ["--netwrok"],
        ["1"],
        ["make_eif"],
        ["a.dockerfile", "b.dockerfile"],
        ["--network=1"],
        ["--kernel", "6.12'.0'"],
        ["--kernel", ""],
        ["--kernel", "latest"],
        ["--memory", "-5"],
        ["--memory", "4G"],
        ["--memory", "²"],
        ["--cpus", "0"],
        ["--cid", "3"],
        ["--cid", "4294967295"],
        ["--host", "a b"],
        ["--user", "$(id)"],
        ["--cmd", " "],
    ],
)
def test_bad_flags_are_refused(words) -> None:
    with pytest.raises(InputError) as refusal:
        parse_flags(words)
    assert "\n" not in str(refusal.value)


def test_unknown_flag_comes_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="--network"):
        parse_flags(["--netwrok"])


def test_commands_keep_their_order_and_flags_after_them_count() -> None:
    settings = parse_flags(["-c", "make_kernel", "--cmd", "make eif", "--command", "make_kernel", "--memory", "512"])
    assert settings.commands == ("make_kernel", "make eif", "make_kernel")
    assert settings.memory_mib == 512


@pytest.mark.parametrize(
    ("words", "network"),
    [
        (["-fn", "-rn"], "both"),
        (["-rn", "-fn"], "both"),
        (["-fn", "-fn"], "forward"),
        (["-n", "-fn"], "both"),
        (["-rn", "-n"], "both"),
    ],
)
def test_network_flags_add_up(words, network) -> None:
    assert parse_flags(words).network == network


@pytest.mark.parametrize(
    ("before", "word", "after"),
    [
        (None, "both", "both"),
        ("both", "both", None),
        ("both", "forward", "reverse"),
        ("forward", "forward", None),
        ("forward", "reverse", "both"),
        (None, "reverse", "reverse"),
        ("forward", "both", "both"),
    ],
)
def test_network_words_switch(before, word, after) -> None:
    assert Settings(network=before).toggle_network(word).network == after
