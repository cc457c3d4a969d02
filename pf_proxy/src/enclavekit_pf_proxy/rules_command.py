# SPDX-License-Identifier: Apache-2.0
"""`pf-proxy rules show|apply|remove CONFIG`."""

from __future__ import annotations

import argparse

from enclavekit_core.errors import ConfigError

EPILOG = """\
`pf-proxy run CONFIG` applies rules and routes when it listens and removes them when it ends: these commands are for
looking at the rules, and for such as are to stand longer than a proxy runs, or are not for the proxy to change
(`rules: {apply: false}`). Rules of others are never touched.

exit codes:
  0  done; also if there was nothing to do
  2  CONFIG cannot be used, or a program is missing
  3  a route cannot be made or removed
  5  the kernel refused the rules, or a running pf-proxy has them
"""
ACTIONS = {
    "show": "print what would be applied",
    "apply": "put rules and routes in, in place of those of an earlier CONFIG",
    "remove": "take them out",
}


def add_rules_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    text = "the kernel's rules that lead to the listeners of a file"
    layout = argparse.RawDescriptionHelpFormatter
    rules = commands.add_parser("rules", help=text, description=text, epilog=EPILOG, formatter_class=layout)
    actions = rules.add_subparsers(required=True, metavar="ACTION", dest="action")
    for name, about in ACTIONS.items():
        action = actions.add_parser(name, help=about, description=about, epilog=EPILOG, formatter_class=layout)
        action.add_argument("config", metavar="CONFIG", help="YAML; see docs/reference/pf-proxy-config.md")
        if name == "show":
            action.add_argument(
                "--backend", choices=("nft", "iptables"), help="in this language (default: CONFIG's, or the kernel's)"
            )
    rules.set_defaults(command=run_rules)


def run_rules(args: argparse.Namespace) -> int:
    """Raises ConfigError, InputError, RulesError, TransportError."""
    from enclavekit_pf_proxy.config import load_plan
    from enclavekit_pf_proxy.network.routing import remove_default_routes
    from enclavekit_pf_proxy.rules import kernel
    from enclavekit_pf_proxy.rules.divert import Backend
    from enclavekit_pf_proxy.surroundings import RuleLock, around_rules

    plan = load_plan(args.config, serves=False)
    rules = plan.rules
    if rules is None and args.action != "remove":
        raise ConfigError(args.config, "", "no listener has `divert`: there are no rules")
    if args.action == "show":
        assert rules is not None
        backend = Backend(args.backend) if args.backend else kernel.choose_backend(plan.rules_backend)
        print(kernel.render(rules, backend), end="")
        return 0
    lock = RuleLock(plan.rules_name)
    try:
        if args.action == "remove":
            if plan.network is not None and plan.network.default_route:
                remove_default_routes(plan.network.default_route)
            kernel.remove(plan.rules_name)
        else:
            assert rules is not None
            with around_rules(plan.network):
                kernel.apply(rules, kernel.choose_backend(plan.rules_backend))
    finally:
        lock.release()
    return 0
