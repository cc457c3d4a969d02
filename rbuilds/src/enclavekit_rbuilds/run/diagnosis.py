# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a host, from its facts: rules for Nitro or for the emulator, and those for both. Pure.

The situations are those that users of Nitro Enclaves report again and again: a device or module that is missing, an
allocator that "succeeded" with less than it was told, memory on the wrong NUMA node, half cores, no permission.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from enclavekit_rbuilds.run.emulator_diagnosis import diagnose_emulator, diagnose_no_nitro
from enclavekit_rbuilds.run.findings import Finding, Wanted, ok
from enclavekit_rbuilds.run.host_facts import HostFacts
from enclavekit_rbuilds.run.model import BackendName
from enclavekit_rbuilds.run.nitro_diagnosis import diagnose_nitro


def diagnose_host(
    facts: HostFacts, backend: BackendName | None, wanted: Wanted, taken_cids: Iterable[int] = ()
) -> list[Finding]:
    """Return the findings about a host for one backend; None where neither can be used."""
    findings: list[Finding] = []
    if backend == "nitro-cli":
        findings += diagnose_nitro(facts, wanted)
    else:
        findings += diagnose_no_nitro(facts)
        findings += diagnose_emulator(facts, wanted)
    findings += _both(facts, wanted, frozenset(taken_cids), on_nitro=backend == "nitro-cli")
    return findings


def _both(facts: HostFacts, wanted: Wanted, taken: frozenset[int], *, on_nitro: bool) -> Iterator[Finding]:
    if wanted.arch is not None and wanted.arch != facts.arch:
        yield Finding(
            "error",
            "image-arch",
            f"the image is for {wanted.arch}, this host is {facts.arch}",
            "the hypervisor refuses an image of another architecture (E36), and the emulator cannot run its programs",
            f"build it with --arch {facts.arch}",
        )
    if wanted.cid is not None and wanted.cid in taken:
        yield Finding(
            "note",
            "cid-taken",
            f"CID {wanted.cid} is taken",
            "another enclave runs with it",
            "rbuilds run takes the next free one unless --cid says otherwise",
        )
    if wanted.has_network and "pf-proxy" not in facts.programs:
        yield Finding(
            "error",
            "pf-proxy-missing",
            "pf-proxy is not installed",
            "the image has network rules, and their host ends are pf-proxy processes",
            "pip install ./pf_proxy (of this release's checkout), or rbuilds run --no-proxies",
        )
    engines = {name: facts.programs[name] for name in ("docker", "podman", "buildah") if name in facts.programs}
    working = [name for name, program in engines.items() if not program.fault]
    if working:
        yield ok("container-engine", f"for Dockerfiles: {', '.join(working)}")
    else:
        faults = "; ".join(f"{name}: {program.fault}" for name, program in engines.items())
        yield Finding(
            "note",
            "container-engine-none",
            "no container engine works here: Dockerfiles cannot be built; archives and directories can",
            faults or "docker, podman and buildah are not installed",
            "install buildah, which needs no daemon",
        )
    if not facts.vsock_device:
        yield Finding(
            "error" if on_nitro else "note",
            "vsock-missing",
            "/dev/vsock is missing: no AF_VSOCK here",
            "the kernel module vsock is not loaded; Nitro needs it, the emulator does not",
            "sudo modprobe vsock",
        )
    if not facts.vhost_vsock:
        yield Finding(
            "note",
            "vhost-vsock-missing",
            "/dev/vhost-vsock is missing: QEMU guests have no vsock",
            "the kernel module vhost_vsock is not loaded; neither nitro-cli nor nitro-emu needs it",
            "sudo modprobe vhost_vsock",
        )
