# SPDX-License-Identifier: Apache-2.0
"""Golden diagnoses: hosts as users describe them when nothing works, as trees of /proc, /sys and /etc."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.run.allocator import parse_allocator
from enclavekit_rbuilds.run.diagnosis import diagnose_host
from enclavekit_rbuilds.run.findings import Wanted, worst
from enclavekit_rbuilds.run.host_facts import Program, Service, parse_cpu_list, parse_meminfo, read_host_facts
from enclavekit_rbuilds.run.image import parse_image
from enclavekit_rbuilds.run.image_diagnosis import check_bytes, diagnose_image, open_image

from .conftest import BZIMAGE, sized

# a c6i.2xlarge, say: one node, 8 CPUs in 4 cores, 2 cores for enclaves, 2 GiB in pages of 2 MiB
NITRO_HOST = {
    "dev/nitro_enclaves": "",
    "dev/vsock": "",
    "dev/vhost-vsock": "",
    "run/nitro_enclaves/.keep": "",
    "var/log/nitro_enclaves/.keep": "",
    "sys/module/nitro_enclaves/parameters/ne_cpus": "1-2,5-6",
    "sys/module/vsock/.keep": "",
    "sys/devices/virtual/dmi/id/board_asset_tag": "i-0123456789abcdef0",
    "sys/devices/virtual/dmi/id/product_name": "c6i.2xlarge",
    "sys/devices/system/cpu/online": "0,3-4,7",
    "sys/devices/system/cpu/offline": "1-2,5-6",
    "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0,4",
    "sys/devices/system/cpu/cpu3/topology/thread_siblings_list": "3,7",
    "sys/devices/system/node/node0/cpulist": "0-7",
    "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages": "1024",
    "sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages": "1024",
    "sys/fs/cgroup/cgroup.controllers": "cpu memory",
    "proc/meminfo": "MemTotal:       16000000 kB\nMemAvailable:   12000000 kB\n",
    "proc/sys/user/max_user_namespaces": "60000",
    "etc/nitro_enclaves/allocator.yaml": "---\nmemory_mib: 2048\ncpu_count: 4\n",
    "etc/subuid": "dev:100000:65536\n61234:100000:65536\n",
    "etc/subgid": "dev:100000:65536\n61234:100000:65536\n",
}
LAPTOP = {
    name: text
    for name, text in NITRO_HOST.items()
    if "nitro" not in name and "hugepages" not in name and "dmi" not in name
}
PROGRAMS = {"nitro-cli": "Nitro CLI 1.4.2", "nitro-emu": "", "pf-proxy": "", "docker": "25.0", "newuidmap": ""}
PAGES = "sys/devices/system/node/node{node}/hugepages/hugepages-{size}kB/{kind}_hugepages"
ACTIVE = Service("active", "success")
USER = 61234  # nobody's
WANTED = Wanted(memory_mib=1024, cpus=2, cid=127)


def pages(node, size, count, free=None):
    names = {kind: PAGES.format(node=node, size=size, kind=kind) for kind in ("nr", "free")}
    return {names["nr"]: str(count), names["free"]: str(count if free is None else free)}


@pytest.fixture
def make_host(tmp_path):
    """Return make(files, programs, service, uid) -> HostFacts of a host with these files."""

    def make(files, *, programs=PROGRAMS, service=ACTIVE, uid=0):
        root = tmp_path / "host"
        shutil.rmtree(root, ignore_errors=True)
        for name, text in files.items():
            if text is None:
                continue
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        found = {
            name: answer if isinstance(answer, Program) else Program(f"/usr/bin/{name}", answer)
            for name, answer in programs.items()
        }
        facts = read_host_facts(str(root), programs=found.get, service=lambda _: service, uid=uid)
        return replace(facts, arch="x86_64")

    return make


def judged(findings):
    """Everything that is not fine, worst first."""
    return {finding.id: finding.severity for finding in findings if finding.severity != "ok"}


def test_good_nitro_host_has_nothing_to_complain_about(make_host):
    findings = diagnose_host(make_host(NITRO_HOST), "nitro-cli", WANTED)
    assert judged(findings) == {} and worst(findings) == "ok"
    assert {"nitro-device", "allocator", "huge-pages", "memory-available", "cpu-pool"} <= {each.id for each in findings}


# situation -> (what is otherwise than on the good host, what is to run, what is found)
NITRO_SITUATIONS = {
    "module not loaded, so no device": (
        {"dev/nitro_enclaves": None, "sys/module/nitro_enclaves/parameters/ne_cpus": None},
        WANTED,
        {"nitro-device-missing": "error"},
    ),
    "module loaded, enclaves not enabled for the instance": (
        {"dev/nitro_enclaves": None},
        WANTED,
        {"nitro-device-missing": "error"},
    ),
    "allocator never configured": (
        {"etc/nitro_enclaves/allocator.yaml": None},
        WANTED,
        {"allocator-missing": "warning"},
    ),
    "allocator without its first line": (
        {"etc/nitro_enclaves/allocator.yaml": "memory_mib: 2048\ncpu_count: 4"},
        WANTED,
        {"allocator-config": "error"},
    ),
    "allocator succeeded with less than it was told": (
        {"etc/nitro_enclaves/allocator.yaml": "---\nmemory_mib: 4096\ncpu_count: 4"},
        WANTED,
        {"huge-pages-short": "warning"},
    ),
    "allocator succeeded with nothing": (
        pages(0, 2048, 0),
        WANTED,
        {"huge-pages-none": "error"},
    ),
    "memory taken by another enclave": (
        pages(0, 2048, 1024, 256),
        WANTED,
        {"memory-not-available": "error"},
    ),
    "half of the memory on another node": (
        {
            **pages(0, 2048, 400),
            **pages(1, 2048, 400),
            "etc/nitro_enclaves/allocator.yaml": "---\nmemory_mib: 1600\ncpu_count: 4",
        },
        WANTED,
        {"memory-across-nodes": "error"},
    ),
    "all of the memory on the other node": (
        {**pages(0, 2048, 0), **pages(1, 2048, 1024)},
        WANTED,
        {"memory-on-other-node": "error"},
    ),
    "pages of 1 GiB for an enclave of 1.5": (
        {**pages(0, 2048, 0), **pages(0, 1 << 20, 2)},
        Wanted(memory_mib=1536),
        {"page-size-waste": "warning"},
    ),
    "no CPUs set aside": (
        {"sys/module/nitro_enclaves/parameters/ne_cpus": ""},
        WANTED,
        {"cpu-pool-empty": "error"},
    ),
    "more CPUs wanted than set aside": ({}, Wanted(cpus=6), {"cpu-pool-small": "error"}),
    "fewer CPUs set aside than configured": (
        {"etc/nitro_enclaves/allocator.yaml": "---\nmemory_mib: 2048\ncpu_count: 6"},
        WANTED,
        {"cpu-pool-short": "warning"},
    ),
    "CPUs of the pool brought back online": (
        {"sys/devices/system/cpu/online": "0-4,7", "sys/devices/system/cpu/offline": "5-6"},
        WANTED,
        {"cpu-pool-online": "warning"},
    ),
    "an odd number of CPUs with two threads a core (E29)": ({}, Wanted(cpus=3), {"cpus-half-core": "error"}),
    "an image for the other architecture (E36)": ({}, replace(WANTED, arch="aarch64"), {"image-arch": "error"}),
    "no vsock": ({"dev/vsock": None}, WANTED, {"vsock-missing": "error"}),
    "no sockets directory (E07)": ({"run/nitro_enclaves/.keep": None}, WANTED, {"nitro-sockets-missing": "error"}),
}


@pytest.mark.parametrize("situation", NITRO_SITUATIONS)
def test_nitro_situation(make_host, situation):
    changes, wanted, expected = NITRO_SITUATIONS[situation]
    findings = diagnose_host(make_host({**NITRO_HOST, **changes}), "nitro-cli", wanted)
    assert judged(findings) == expected
    assert all(finding.cause and finding.cure for finding in findings if finding.severity != "ok")


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        (Service("failed", "exit-code"), {"allocator-service-failed": "error"}),
        (Service("inactive", "success"), {"allocator-service-inactive": "error"}),
        (None, {"allocator-service-missing": "warning"}),
    ],
)
def test_allocator_service(make_host, service, expected):
    assert judged(diagnose_host(make_host(NITRO_HOST, service=service), "nitro-cli", WANTED)) == expected


@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        ({"nitro-cli": None}, {"nitro-cli-missing": "error"}),
        ({"nitro-cli": Program("/usr/bin/nitro-cli", fault="no libssl")}, {"nitro-cli-broken": "error"}),
        ({"docker": None}, {"container-engine-none": "note"}),
        ({"docker": Program("/usr/bin/docker", fault="daemon not running")}, {"container-engine-none": "note"}),
        ({"pf-proxy": None}, {"pf-proxy-missing": "error"}),
    ],
)
def test_programs(make_host, programs, expected):
    present = {name: answer for name, answer in {**PROGRAMS, **programs}.items() if answer is not None}
    wanted = replace(WANTED, has_network=True)
    assert judged(diagnose_host(make_host(NITRO_HOST, programs=present), "nitro-cli", wanted)) == expected


def test_user_without_the_group(make_host, tmp_path):
    facts = make_host(NITRO_HOST, uid=USER)
    device = tmp_path / "host/dev/nitro_enclaves"
    device.chmod(0o060)  # whoever owns it here
    facts = read_host_facts(str(tmp_path / "host"), programs=facts.programs.get, service=lambda _: None, uid=USER)
    assert not facts.nitro_device.accessible and facts.nitro_device.group
    assert "nitro-device-permission" in judged(diagnose_host(facts, "nitro-cli", WANTED))
    findings = judged(diagnose_host(replace(facts, log_writable=False), "nitro-cli", WANTED))
    assert findings["nitro-log-permission"] == "error"


EMULATOR_SITUATIONS = {
    "a laptop": ({}, 0, {"no-nitro": "note"}),
    "an EC2 instance without enclaves": (
        {"sys/devices/virtual/dmi/id/board_asset_tag": "i-0123456789abcdef0"},
        0,
        {"no-nitro": "note"},
    ),
    "user namespaces switched off": (
        {"proc/sys/user/max_user_namespaces": "0"},
        0,
        {"no-nitro": "note", "userns-disabled": "error"},
    ),
    "Ubuntu's AppArmor": (
        {"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"},
        USER,
        {"no-nitro": "note", "userns-refused": "error"},
    ),
    "an old Debian": (
        {"proc/sys/kernel/unprivileged_userns_clone": "0"},
        USER,
        {"no-nitro": "note", "userns-refused": "error"},
    ),
    "root on an old Debian": ({"proc/sys/kernel/unprivileged_userns_clone": "0"}, 0, {"no-nitro": "note"}),
    "a user without subordinate ids": (
        {"etc/subuid": None},
        USER,
        {"no-nitro": "note", "subuid-missing": "warning"},
    ),
    "too little memory": (
        {"proc/meminfo": "MemTotal: 900000 kB\nMemAvailable: 800000 kB"},
        0,
        {"no-nitro": "note", "memory-not-available": "error"},
    ),
    "memory in use": (
        {"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 800000 kB"},
        0,
        {"no-nitro": "note", "memory-tight": "warning"},
    ),
    "no cgroups": ({"sys/fs/cgroup/cgroup.controllers": None}, 0, {"no-nitro": "note", "cgroup-not-writable": "note"}),
    "a CID that is taken": ({}, 0, {"no-nitro": "note", "cid-taken": "note"}),
}


@pytest.mark.parametrize("situation", EMULATOR_SITUATIONS)
def test_emulator_situation(make_host, situation):
    changes, uid, expected = EMULATOR_SITUATIONS[situation]
    taken = {127} if "CID" in situation else ()
    facts = replace(make_host({**LAPTOP, **changes}, uid=uid, service=None), cgroup_writable=True)
    findings = diagnose_host(facts, "nitro-emu", WANTED, taken)
    assert judged(findings) == expected
    assert all(finding.cause and finding.cure for finding in findings if finding.severity != "ok")


def test_host_of_which_nothing_can_be_read(make_host):
    facts = make_host({}, programs={}, service=None, uid=USER)
    for backend in ("nitro-cli", "nitro-emu", None):
        assert worst(diagnose_host(facts, backend, WANTED)) == "error"


# images


@pytest.mark.parametrize(
    ("custom", "memory_mib", "expected"),
    [
        ({"kernel": {"nitro-capable": True}}, None, {}),
        ({"kernel": {"nitro-capable": True}}, 400, {}),
        ({}, None, {"kernel-unknown": "note"}),
        ({"kernel": {"nitro-capable": True}}, 399, {"memory-below-image": "error"}),
        (
            {"kernel": {"nitro-capable": True}, "resources": {"memory_mib": 256}},
            None,
            {"memory-below-image": "error"},
        ),
    ],
)
def test_image(custom, memory_mib, expected):
    image = parse_image("/i/app.eif", sized(100), "x86_64", {"CustomMetadata": custom})
    findings = diagnose_image(image, memory_mib)
    assert judged(findings) == expected
    assert "4 x 100 MiB" in " ".join(finding.text for finding in findings)


def test_what_counts_most_says_how_much_memory():
    size = replace(sized(100), unpacked_memory_bytes=300 << 20)
    image = parse_image("/i/app.eif", size, "x86_64", {})
    finding = diagnose_image(image, 647)[-1]
    assert finding.id == "memory-below-image" and "2 x 300 MiB unpacked" in finding.text
    assert worst(diagnose_image(image, 648)) == "note"


@pytest.mark.parametrize(("capable", "kernel"), [(False, BZIMAGE), (None, b"no kernel")])
def test_kernel_that_nitro_cannot_boot_is_no_matter_for_the_emulator(dull_image, capable, kernel):
    custom = {} if capable is None else {"kernel": {"nitro-capable": capable}}
    path = dull_image(boots=kernel, **custom)
    found = {backend: open_image(str(path), backend)[1] for backend in ("nitro-cli", "nitro-emu", None)}
    assert worst(found["nitro-cli"]) == "error"
    assert worst(found["nitro-emu"]) == worst(found[None]) == "note"
    with pytest.raises(InputError):
        check_bytes(str(path))


@pytest.mark.parametrize(("end", "expected"), [(2100, None), (2021, "image-certificate")])
def test_signed_image(tmp_path, dull_image, end, expected):
    from enclavekit_eif.signature import load_signer

    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "signer")])
    start = datetime.datetime(2020, 1, 1)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 1, start)
    certificate = made.not_valid_after(datetime.datetime(end, 1, 1)).sign(key, hashes.SHA384())
    encoding, none = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "crt").write_bytes(certificate.public_bytes(encoding))
    (tmp_path / "key").write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, none))
    signer = load_signer(str(tmp_path / "crt"), str(tmp_path / "key"))
    path = str(dull_image(signer=signer))
    image, findings = open_image(path, "nitro-cli")
    assert image is not None
    assert [finding.id for finding in findings if finding.severity == "error"] == ([expected] if expected else [])
    if expected:
        with pytest.raises(InputError):
            check_bytes(path)
    else:
        check_bytes(path)


# parts


@pytest.mark.parametrize(
    "text",
    [
        "memory_mib: 1\ncpu_count: 2",
        "---\nmemory_mib: 1",
        "---\nmemory_mib: 1\ncpu_count: 2\ncpu_pool: 2,3",
        "---\ncpu_count: 2",
        "---\nmemory_mib: x\ncpu_count: 2",
        "---\nmemory_mib: 1\ncpu_count: 2\nother: 1",
        "---\n- 1",
        "---\n{",
        "---",
    ],
)
def test_allocator_file_of_a_wrong_form(text):
    with pytest.raises(ValueError):
        parse_allocator(text)


def test_allocator_file():
    assert parse_allocator("---\n# shipped\nmemory_mib: 512\ncpu_count: 2\n").memory_mib == 512
    assert parse_allocator("---\nmemory_mib: 512\ncpu_pool: 2,3,6-9\n").cpu_pool == "2,3,6-9"
    assert parse_allocator("---\nmemory_mib: 512\ncpu_pool: 3\n").cpu_pool == "3"


def test_lists_and_meminfo():
    assert parse_cpu_list("1-3,7") == {1, 2, 3, 7} and parse_cpu_list("") == parse_cpu_list(None) == frozenset()
    assert parse_cpu_list("x,1-,2") == {2}
    assert parse_meminfo("MemTotal:  10 kB\nHugePages_Total:       3\n") == {"MemTotal": 10, "HugePages_Total": 3}


def test_explain(capsys):
    assert main(["explain", "e36"]) == 0
    assert capsys.readouterr().out.startswith("E36  Enclave boot failure\n")
    assert main(["explain", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 61
    assert main(["explain", "E99"]) == InputError.exit_code
    assert "cannot explain E99: " in capsys.readouterr().err


def test_facts_of_this_very_machine_can_be_read():
    facts = read_host_facts()
    assert facts.memory_total_mib > 0 and 0 in facts.cpus_online and facts.uid == os.geteuid()
    assert diagnose_host(facts, "nitro-emu", WANTED)
