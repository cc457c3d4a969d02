# SPDX-License-Identifier: Apache-2.0
"""What keeps a Nitro host from running enclaves: device, nitro-cli, allocator, huge pages, CPUs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from enclavekit_rbuilds.run.allocator import Allocator, parse_allocator
from enclavekit_rbuilds.run.findings import INSTALL, Finding, Wanted, ok
from enclavekit_rbuilds.run.host_facts import HostFacts, parse_cpu_list
from enclavekit_rbuilds.run.sizing import allocate_pages, describe_pages, page_name, pages_mib

ALLOCATOR_FILE = "/etc/nitro_enclaves/allocator.yaml"
RESTART = "sudo systemctl restart nitro-enclaves-allocator.service"
BIG_PAGE_KIB = 1 << 20  # from here up a page wastes much of itself on a small enclave


def diagnose_nitro(facts: HostFacts, wanted: Wanted) -> Iterator[Finding]:
    yield from _device(facts)
    yield from _cli(facts)
    allocator: Allocator | None = None
    if facts.allocator is None:
        yield Finding(
            "warning",
            "allocator-missing",
            f"{ALLOCATOR_FILE} is missing",
            "the allocator, which sets memory and CPUs aside for enclaves, is not installed",
            INSTALL,
        )
    else:
        try:
            allocator = parse_allocator(facts.allocator)
            cpus = allocator.cpu_pool or f"{allocator.cpu_count} CPUs"
            yield ok("allocator", f"{ALLOCATOR_FILE}: {allocator.memory_mib} MiB, {cpus}")
        except ValueError as exc:
            yield Finding(
                "error", "allocator-config", f"{ALLOCATOR_FILE} cannot be used", str(exc), f"correct it, then {RESTART}"
            )
    yield from _allocator_service(facts)
    yield from _pages(facts, wanted, allocator)
    yield from _cpus(facts, wanted, allocator)


def _device(facts: HostFacts) -> Iterator[Finding]:
    if facts.nitro_device is None:
        if not facts.nitro_module:
            cause = "the kernel module nitro_enclaves is not loaded, or enclaves are not enabled for this instance"
            cure = "sudo modprobe nitro_enclaves; if that fails, stop the instance and enable its enclave option"
        else:
            cause = "the module is loaded but found no device: enclaves are not enabled for this instance"
            cure = "stop the instance and enable its enclave option (EnclaveOptions.Enabled); bare metal has none"
        yield Finding("error", "nitro-device-missing", "/dev/nitro_enclaves is missing", cause, cure)
        return
    if not facts.nitro_device.accessible:
        group = facts.nitro_device.group
        yield Finding(
            "error",
            "nitro-device-permission",
            f"/dev/nitro_enclaves cannot be used by {facts.user}",
            f"it belongs to the group {group}, which {facts.user} is not in",
            f"sudo usermod -aG {group} {facts.user}, then log in anew",
        )
        return
    yield ok("nitro-device", "/dev/nitro_enclaves can be used")


def _cli(facts: HostFacts) -> Iterator[Finding]:
    cli = facts.programs.get("nitro-cli")
    if cli is None:
        yield Finding("error", "nitro-cli-missing", "nitro-cli is not installed", "no program of that name", INSTALL)
        return
    if cli.fault:
        yield Finding("error", "nitro-cli-broken", "nitro-cli does not run", cli.fault, INSTALL)
    else:
        yield ok("nitro-cli", cli.answer or cli.path)
    if not facts.log_writable:
        yield Finding(
            "error",
            "nitro-log-permission",
            f"/var/log/nitro_enclaves cannot be written by {facts.user}",
            "every nitro-cli command opens its log first and ends with E19 if it cannot, describe-eif included",
            f"sudo usermod -aG ne {facts.user} and log in anew; or set NITRO_CLI_LOGS_PATH",
        )
    if not facts.sockets_directory:
        yield Finding(
            "error",
            "nitro-sockets-missing",
            "/run/nitro_enclaves is missing",
            "nitro-cli keeps the sockets of its enclaves there (E07, E40)",
            "sudo systemd-tmpfiles --create, or reinstall aws-nitro-enclaves-cli",
        )


def _allocator_service(facts: HostFacts) -> Iterator[Finding]:
    service = facts.allocator_service
    if service is None:
        if facts.allocator is not None:
            yield Finding(
                "warning",
                "allocator-service-missing",
                "nitro-enclaves-allocator.service is not known to systemd",
                "without it nothing sets memory and CPUs aside at boot",
                INSTALL,
            )
    elif service.state == "failed":
        yield Finding(
            "error",
            "allocator-service-failed",
            f"nitro-enclaves-allocator.service failed ({service.result or 'no result'})",
            "mostly memory that is too fragmented for huge pages, or more CPUs than can be spared",
            f"journalctl -u nitro-enclaves-allocator; lower memory_mib or reboot, then {RESTART}",
        )
    elif service.state != "active":
        yield Finding(
            "error",
            "allocator-service-inactive",
            f"nitro-enclaves-allocator.service is {service.state}",
            "it has not run since boot, so nothing is set aside",
            "sudo systemctl enable --now nitro-enclaves-allocator.service",
        )
    else:
        yield ok("allocator-service", "nitro-enclaves-allocator.service is active")


def _pages(facts: HostFacts, wanted: Wanted, allocator: Allocator | None) -> Iterator[Finding]:
    total = {
        node: pages_mib({size: count for size, (count, _) in sizes.items()}) for node, sizes in facts.pages.items()
    }
    free = {node: {size: count for size, (_, count) in sizes.items() if count} for node, sizes in facts.pages.items()}
    everything = sum(total.values())
    listing = "; ".join(
        f"node {node}: {total[node]} MiB, free {pages_mib(free[node])} MiB ({describe_pages(free[node])})"
        for node in sorted(total)
    )
    if not everything:
        yield Finding(
            "error",
            "huge-pages-none",
            "no huge pages are reserved",
            "an enclave's memory is huge pages only, and the allocator has reserved none (E27)",
            f"set memory_mib in {ALLOCATOR_FILE}, then {RESTART}",
        )
        return
    if allocator is not None and everything < allocator.memory_mib:
        yield Finding(
            "error" if wanted.memory_mib is not None and everything < wanted.memory_mib else "warning",
            "huge-pages-short",
            f"{everything} MiB of huge pages are reserved, memory_mib asks for {allocator.memory_mib} MiB",
            "memory was too fragmented when the allocator ran; it reports success all the same",
            f"{RESTART} soon after boot, or reboot",
        )
    else:
        yield ok("huge-pages", f"huge pages: {listing}")
    if wanted.memory_mib is None:
        return
    plans = {node: allocate_pages(wanted.memory_mib, sizes) for node, sizes in free.items()}
    fitting = {node: plan for node, plan in plans.items() if plan is not None}
    if not fitting:
        spread = sum(pages_mib(sizes) for sizes in free.values())
        if spread >= wanted.memory_mib:
            cause = f"no single NUMA node has them, and an enclave's memory comes from one node ({listing})"
            ident = "memory-across-nodes"
        else:
            cause = f"{spread} MiB are free ({listing})"
            ident = "memory-not-available"
        yield Finding(
            "error",
            ident,
            f"the enclave needs {wanted.memory_mib} MiB of free huge pages (E27)",
            cause,
            f"end other enclaves, or raise memory_mib in {ALLOCATOR_FILE} to {_with_used(facts, wanted)} or more, "
            f"then {RESTART}",
        )
        return
    node, plan = min(fitting.items(), key=lambda item: (pages_mib(item[1]), item[0]))
    got = pages_mib(plan)
    yield ok("memory-available", f"{wanted.memory_mib} MiB fit on node {node}: {describe_pages(plan)} = {got} MiB")
    if got > wanted.memory_mib:
        size = min(plan)
        yield Finding(
            "warning" if size >= BIG_PAGE_KIB else "note",
            "page-size-waste",
            f"{wanted.memory_mib} MiB take {describe_pages(plan)} = {got} MiB, {got - wanted.memory_mib} MiB too many",
            f"the smallest free page there that is left is of {page_name(size)}",
            "ask for a multiple of the page size, or reserve smaller pages as well",
        )
    pool_nodes = {facts.cpu_nodes.get(cpu) for cpu in parse_cpu_list(facts.ne_cpus)}
    if pool_nodes - {None} and not pool_nodes & set(fitting):
        yield Finding(
            "error",
            "memory-on-other-node",
            f"the CPU pool is on node {_numbers(pool_nodes)}, the free huge pages on node {_numbers(fitting)}",
            "an enclave takes memory and CPUs of one NUMA node (E29, E31)",
            f"{RESTART}, which reserves both on one node",
        )


def _with_used(facts: HostFacts, wanted: Wanted) -> int:
    used = sum(
        pages_mib({size: count - free for size, (count, free) in sizes.items()}) for sizes in facts.pages.values()
    )
    return used + (wanted.memory_mib or 0)


def _cpus(facts: HostFacts, wanted: Wanted, allocator: Allocator | None) -> Iterator[Finding]:
    if not facts.nitro_module:
        return
    pool = parse_cpu_list(facts.ne_cpus)
    if not pool:
        yield Finding(
            "error",
            "cpu-pool-empty",
            "no CPUs are set aside for enclaves",
            "the pool of the driver (ne_cpus) is empty (E22)",
            f"set cpu_count in {ALLOCATOR_FILE}, then {RESTART}",
        )
        return
    if len(pool) < wanted.cpus:
        yield Finding(
            "error",
            "cpu-pool-small",
            f"{wanted.cpus} CPUs are wanted, the pool has {len(pool)} ({facts.ne_cpus})",
            "the allocator set fewer aside (E22)",
            f"ask for fewer (--cpus), or raise cpu_count in {ALLOCATOR_FILE}, then {RESTART}",
        )
    else:
        yield ok("cpu-pool", f"CPU pool: {facts.ne_cpus} ({len(pool)} CPUs)")
    if allocator is not None and allocator.cpu_count is not None and len(pool) < allocator.cpu_count:
        yield Finding(
            "warning",
            "cpu-pool-short",
            f"the pool has {len(pool)} CPUs, cpu_count asks for {allocator.cpu_count}",
            "the allocator takes whole cores of one node and leaves CPU 0 to the parent",
            "lower cpu_count, or use a larger instance",
        )
    if not pool <= facts.cpus_offline and facts.cpus_offline:
        yield Finding(
            "warning",
            "cpu-pool-online",
            f"CPUs {_numbers(pool - facts.cpus_offline)} of the pool are online",
            "the driver takes pool CPUs offline; somebody brought them back",
            RESTART,
        )
    if wanted.cpus % 2 and _has_threads(facts):
        yield Finding(
            "error",
            "cpus-half-core",
            f"{wanted.cpus} CPUs are wanted, and cores here have two threads",
            "enclaves get whole cores (E29)",
            f"ask for {wanted.cpus + 1}: --cpus {wanted.cpus + 1}",
        )


def _has_threads(facts: HostFacts) -> bool:
    return any(len(threads) > 1 for threads in facts.siblings.values())


def _numbers(values: Iterable[int | None]) -> str:
    return ", ".join(str(value) for value in sorted(value for value in values if value is not None))
