# SPDX-License-Identifier: Apache-2.0
"""`rbuilds run`: start an enclave with the network that its image asks for, by nitro-cli or emulated."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from enclavekit_rbuilds.commands.enclave_arguments import add_backend_argument

if TYPE_CHECKING:
    from enclavekit_rbuilds.run.backend import Backend
    from enclavekit_rbuilds.run.front import Launch
    from enclavekit_rbuilds.run.launch_plan import Wishes
    from enclavekit_rbuilds.run.model import RunningEnclave

HELP = "start an enclave, and its proxies on this host"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="the .eif file")
    parser.add_argument("--name", help="default: the image's name; a taken one gets _1, _2, ...")
    parser.add_argument(
        "--cid", type=int, metavar="N", help="default: the image's, else 127; the next free one if taken"
    )
    parser.add_argument("--memory", type=int, metavar="MIB", help="default: the image's, else four times its size")
    parser.add_argument("--cpus", type=int, metavar="N", help="default: the image's, else 2")
    parser.add_argument("--debug", action="store_true", help="with a console; its evidence carries zero PCRs")
    parser.add_argument(
        "--attach",
        action="store_true",
        help="show the console until the enclave ends, then exit as its app did; implies --debug",
    )
    add_backend_argument(parser)
    parser.add_argument(
        "--machine",
        choices=("process", "qemu", "auto"),
        default="",
        help="of nitro-emu: namespaces, or a virtual machine with the image's kernel",
    )
    parser.add_argument("--no-proxies", action="store_true", help="start no pf-proxy on this host")
    parser.add_argument(
        "--bind", metavar="ADDRESS", default="127.0.0.1", help="where ingress ports listen (default: %(default)s)"
    )
    parser.add_argument(
        "--publish",
        metavar="HOSTPORT[-HOSTPORT]:PORT",
        action="append",
        default=[],
        help="lead host ports to an ingress port by nftables, while the enclave runs; repeatable, needs root",
    )
    parser.add_argument(
        "--resolver",
        metavar="ADDRESS[:PORT]",
        action="append",
        default=[],
        help="who answers the enclave's DNS questions, by TCP; up to three (default: those of /etc/resolv.conf)",
    )
    parser.add_argument(
        "--allow-destination",
        metavar="NETWORK[:PORT[-LAST]]",
        action="append",
        default=[],
        help="connect there for the enclave although it is loopback, link-local or the like; repeatable",
    )
    parser.add_argument(
        "--runtime-config",
        metavar="FILE",
        help="values for this deployment (YAML or JSON), which the enclave checks and measures into PCR16; an enclave "
        "that refuses them is ended",
    )
    parser.add_argument("--json", action="store_true", help="print the enclave as JSON; not with --attach")


def run(args: argparse.Namespace) -> int:
    from enclavekit_core.errors import InputError

    from enclavekit_rbuilds.run.image import MAX_RESOLVERS
    from enclavekit_rbuilds.run.launch_plan import Wishes
    from enclavekit_rbuilds.run.resolvers import host_resolvers, parse_resolver
    from enclavekit_rbuilds.run.rules import parse_publish
    from enclavekit_rbuilds.run.runtime_values import read_values

    if args.json and args.attach:
        raise InputError("use --json", "with --attach", "standard output is the console's")
    wishes = Wishes(
        name=args.name,
        cid=args.cid,
        memory_mib=args.memory,
        cpus=args.cpus,
        debug=args.debug,
        attach=args.attach,
        proxies=not args.no_proxies,
        bind=args.bind,
        publish=tuple(parse_publish(text) for text in args.publish),
        machine=args.machine,
        resolvers=tuple(map(parse_resolver, args.resolver))[:MAX_RESOLVERS] or host_resolvers(),
        allow_destinations=tuple(args.allow_destination),
    )
    values = None if args.runtime_config is None else read_values(args.runtime_config)
    return run_image(args.image, wishes, values, named_backend=args.backend, as_json=args.json)


def run_image(
    path: str,
    wishes: Wishes,
    values: dict[str, object] | None = None,
    *,
    named_backend: str | None = None,
    as_json: bool = False,
) -> int:
    """Start an enclave and return the exit code: with attach, the app's. Raises EnclavekitError."""
    from enclavekit_rbuilds.run.backend import choose_backend
    from enclavekit_rbuilds.run.cids import first_choice
    from enclavekit_rbuilds.run.front import Launch
    from enclavekit_rbuilds.run.image import read_image
    from enclavekit_rbuilds.run.image_diagnosis import check_bytes
    from enclavekit_rbuilds.run.launch_plan import plan_launch

    image = read_image(path)
    backend = choose_backend(named_backend)
    plan = plan_launch(image, backend.name, wishes)
    if backend.name == "nitro-cli":
        check_bytes(path)  # nitro-emu does so itself; Nitro would say E36, three minutes later
    _say(backend.meaning)
    if plan.debug:
        _say("note: debug mode: whoever is on this host reads the console, and the enclave's evidence has zero PCRs")
    if image.network.insecure_learn:
        _say("warning: insecure_learn: this image's policy lets every connection out")
    with Launch(plan, lambda text: _say(f"note: {text}")) as launch:
        enclave, network = launch.wait()
        pcr16 = "" if values is None else _configure(backend, enclave, values)
        first = plan.cid or first_choice(plan.first_cid)
        if enclave.cid != first:
            _say(f"note: CID {first} is taken, so this enclave has {enclave.cid}")
        if plan.attach:
            for rule in network:
                _say(rule)
            return _attach(launch, enclave)
        _print(enclave, network, pcr16, as_json=as_json)
    return 0


def _configure(backend: Backend, enclave: RunningEnclave, values: dict[str, object]) -> str:
    """Give the enclave its values and return PCR16; end it if it does not take them. Raises EnclavekitError."""
    from enclavekit_core.errors import EnclavekitError

    from enclavekit_rbuilds.run.runtime_values import give_values

    try:
        return give_values(enclave.cid, values)
    except EnclavekitError:
        backend.terminate(enclave)  # its supervisor takes the network back
        raise


def _attach(launch: Launch, enclave: RunningEnclave) -> int:
    try:
        for chunk in launch.console():
            view = memoryview(chunk)
            while view:
                view = view[os.write(sys.stdout.fileno(), view) :]
    except KeyboardInterrupt:
        _say(f"left the console; enclave {enclave.name} goes on: rbuilds attach or drop {enclave.name}")
        raise
    if launch.app_status is None:
        _say(f"note: enclave {enclave.name} has ended; {enclave.backend} does not tell how its app exited")
        return 0
    if launch.app_status:
        # the console has shown what it said last; why it ended is nowhere else
        _say(f"note: enclave {enclave.name} has ended: {launch.end_words[0]}")
    return launch.app_status


def _print(enclave: RunningEnclave, network: list[str], pcr16: str, *, as_json: bool) -> None:
    if as_json:
        measured = {"pcr16": pcr16} if pcr16 else {}
        json.dump({**describe_enclave(enclave), "network": network, **measured}, sys.stdout, indent=2)
        print()
        return
    print(f"{enclave.name}: running, CID {enclave.cid}, {enclave.memory_mib} MiB, {enclave.cpus} CPUs, {enclave.id}")
    for rule in network:
        print(f"  {rule}")
    if pcr16:
        print(f"  runtime configuration: PCR16 {pcr16}")


def describe_enclave(enclave: RunningEnclave) -> dict[str, object]:
    """Return an enclave for machines."""
    return {
        "name": enclave.name,
        "id": enclave.id,
        "cid": enclave.cid,
        "state": enclave.state,
        "backend": enclave.backend,
        "confidential": enclave.confidential,
        "debug": enclave.debug,
        "memory_mib": enclave.memory_mib,
        "cpus": enclave.cpus,
        "pid": enclave.pid,
    }


def _say(text: str) -> None:
    print(f"rbuilds: {text}", file=sys.stderr, flush=True)
