# SPDX-License-Identifier: Apache-2.0
"""A kernel's configuration, from a file and from inside a kernel, and what it lacks for an enclave."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.kernel.config import Config, find_ikconfig, load_config, parse_config, read_config_of
from enclavekit_rbuilds.kernel.fragment import check_survived, merge_fragments, our_fragment, render_fragment
from enclavekit_rbuilds.kernel.image import version_of
from enclavekit_rbuilds.kernel.model import compressions_of
from enclavekit_rbuilds.kernel.rules import RULES, find_lacks, is_nitro_capable
from hypothesis import given
from hypothesis import strategies as st

TITLE = "# Linux/x86 6.12.1 Kernel Configuration\n"
OURS = parse_config(our_fragment("x86_64"))
# of the .config that nitro-cli's blobs come with, as far as the rules look
AWS_4_14 = """#
# Automatically generated file; DO NOT EDIT.
# Linux/x86_64 4.14.256-209.484.amzn2.x86_64 Kernel Configuration
#
CONFIG_VIRTIO_MMIO=y
CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y
CONFIG_VSOCKETS=y
CONFIG_VIRTIO_VSOCKETS=y
CONFIG_BLK_DEV_INITRD=y
CONFIG_RD_GZIP=y
CONFIG_BINFMT_ELF=y
CONFIG_PROC_FS=y
CONFIG_TMPFS=y
CONFIG_DEVTMPFS=y
CONFIG_MODULES=y
# CONFIG_NF_TABLES is not set
"""


def bzimage(payload: bytes, version: str = "6.12.1 (a@b) #1 SMP") -> bytes:
    """A bzImage as far as its header goes: two sectors of set-up, then the payload and the size that follows it."""
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    setup[0x202:0x206] = b"HdrS"
    setup[0x206:0x208] = (0x20F).to_bytes(2, "little")
    setup[0x20E:0x210] = (0x100).to_bytes(2, "little")
    setup[0x300 : 0x300 + len(version) + 1] = version.encode() + b"\0"
    setup[0x248:0x24C] = (64).to_bytes(4, "little")
    setup[0x24C:0x250] = (len(payload) + 4).to_bytes(4, "little")
    return bytes(setup) + b"\x90" * 64 + payload + b"SIZE"


def kernel_with(config: str) -> bytes:
    """What is packed inside: code, the configuration between its marks, and the mark once more, as a string."""
    return b"\x7fELF code IKCFG_ST not this one " + b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED data"


PACKERS = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstandard.ZstdCompressor().compress, "plain": bytes}


def test_later_lines_win_and_comments_are_skipped() -> None:
    config = parse_config(
        f'{TITLE}CONFIG_A=y\n\n# a comment\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_A=n\nCONFIG_D="x y"\n'
    )
    assert config.options == {"CONFIG_A": "n", "CONFIG_B": "m", "CONFIG_C": "n", "CONFIG_D": '"x y"'}
    assert (config.arch, config.version) == ("x86", "6.12.1")
    assert not config.has("CONFIG_B") and config.has("CONFIG_B", module=True) and config.get("CONFIG_Z") == "n"


@pytest.mark.parametrize("text", [b"CONFIG_A=y\nhello\n", b"\xff\xfe", b"", b"# only a comment\n"])
def test_file_that_is_no_configuration_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "config"
    path.write_bytes(text)
    with pytest.raises(InputError, match="kernel configuration"):
        load_config(str(path))


@given(
    st.dictionaries(st.from_regex(r"CONFIG_[A-Z0-9_]{1,9}", fullmatch=True), st.sampled_from(["y", "m", "n", "128"]))
)
def test_what_is_written_is_read(options: dict[str, str]) -> None:
    assert parse_config(render_fragment(options)).options == options


@pytest.mark.parametrize("packer", PACKERS)
def test_configuration_inside_a_kernel_is_found(tmp_path: Path, packer: str) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(PACKERS[packer](kernel_with(f"{TITLE}CONFIG_NSM=y\n"))))
    (tmp_path / "bzImage.config").write_text("CONFIG_OTHER=y\n")
    config = read_config_of(str(path))
    assert config is not None and config.options == {"CONFIG_NSM": "y"}, "what is inside counts, not what lies beside"
    assert version_of(path.read_bytes()) == "6.12.1"


def test_configuration_in_an_unpacked_kernel_is_found(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(b"MZ" + kernel_with("CONFIG_NSM=y\n") + b"Linux version 6.12.1 (a@b) more")
    assert find_ikconfig(str(path)) == b"CONFIG_NSM=y\n"
    assert version_of(path.read_bytes()) == "6.12.1"


def test_kernel_without_one_takes_the_file_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(gzip.compress(b"no marks")))
    assert read_config_of(str(path)) is None
    (tmp_path / ".config").write_text("CONFIG_B=y\n")
    config = read_config_of(str(path))
    assert config is not None and config.has("CONFIG_B")
    path.rename(tmp_path / "other")
    assert read_config_of(str(tmp_path / "other")) is None, ".config is no kernel's in particular"


@pytest.mark.parametrize("packer", PACKERS)
def test_truncated_kernels_end_in_nothing_or_an_error(tmp_path: Path, packer: str) -> None:
    whole = bzimage(PACKERS[packer](kernel_with("CONFIG_NSM=y\n" * 50)))
    path = tmp_path / "bzImage"
    for size in range(1, len(whole), 7):
        path.write_bytes(whole[:size])
        try:
            found = find_ikconfig(str(path))
        except InputError:
            continue
        assert found is None or b"CONFIG_NSM=y\n".startswith(found[:13])


@given(st.binary(max_size=3000))
def test_any_bytes_have_a_version_or_none(noise: bytes) -> None:
    assert isinstance(version_of(noise), str)
    assert isinstance(version_of(bzimage(noise)), str)


def test_our_own_fragment_lacks_nothing() -> None:
    assert find_lacks(OURS) == []
    assert compressions_of(OURS) == {"gzip", "zstd", "none"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.option)
def test_each_rule_is_noticed(rule) -> None:
    changed = {option: value for option, value in OURS.options.items() if option not in (rule.option, *rule.instead)}
    if rule.wanted == "n":
        changed[rule.option] = "y"
    found = [lack for lack in find_lacks(Config(changed, "x86")) if lack.rule.option not in rule.instead]
    assert [lack.rule.option for lack in found] == [rule.option]
    assert rule.option in found[0].text and rule.cost in found[0].text
    assert is_nitro_capable(Config(changed, "x86")) == (rule.grade != "nitro")


def test_options_are_named_once() -> None:
    assert len({rule.option for rule in RULES}) == len(RULES)


def test_module_counts_only_where_it_is_loaded() -> None:
    aws = parse_config(AWS_4_14)
    assert [lack.rule.option for lack in find_lacks(aws) if lack.rule.grade == "nitro"] == ["CONFIG_NSM"]
    assert is_nitro_capable(aws, frozenset({"nsm"}))
    assert not is_nitro_capable(parse_config(AWS_4_14.replace("MMIO=y", "MMIO=m")), frozenset({"nsm", "virtio_mmio"}))
    assert compressions_of(aws) == {"gzip", "none"}


def test_rules_of_another_architecture_do_not_count() -> None:
    arm = parse_config("# Linux/arm64 6.12.1 Kernel Configuration\nCONFIG_A=y\n")
    assert all(lack.rule.arch != "x86" for lack in find_lacks(arm))
    assert "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES" in {lack.rule.option for lack in find_lacks(arm)}


def test_lost_options_are_named() -> None:
    wanted = merge_fragments(["CONFIG_A=y\nCONFIG_B=y\n", "# CONFIG_B is not set\nCONFIG_C=7\n"])
    check_survived(wanted, parse_config("CONFIG_A=y\nCONFIG_C=7\n"))
    with pytest.raises(InputError, match=r"CONFIG_C=7 \(it is n\)"):
        check_survived(wanted, parse_config("CONFIG_A=y\n"))


@pytest.mark.parametrize("words", [["kernel-check"], ["kernel", "check"]], ids=" ".join)
def test_check_says_what_is_missing(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config"
    path.write_text(AWS_4_14)
    assert main([*words, str(path)]) == 1
    assert "CONFIG_NSM" in capsys.readouterr().out
    assert main([*words, str(path), "--module", "nsm.ko", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["nitro-capable"] is True and document["version"].startswith("4.14.256")
    assert {lack["grade"] for lack in document["lacks"]} == {"service", "hardening"}
    assert {"option": "CONFIG_NF_TABLES", "wanted": "y", "value": "n"}.items() <= next(
        lack for lack in document["lacks"] if lack["option"] == "CONFIG_NF_TABLES"
    ).items()


def test_check_reads_a_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(gzip.compress(kernel_with(TITLE + render_fragment(dict(OURS.options))))))
    assert main(["kernel-check", str(path)]) == 0
    path.write_bytes(bzimage(gzip.compress(b"nothing")))
    assert main(["kernel-check", str(path)]) == 2
    assert main(["kernel-check", str(tmp_path / "nothing")]) == 2
    assert main(["kernel-check", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
