# SPDX-License-Identifier: Apache-2.0
"""The architecture, held by reading every import: libs know no service, services know no other service, and the
modules that decide things touch nothing of the world."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MEMBERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]
LIBS = [member for member in MEMBERS if member.startswith("libs/")]
WORLD = {"socket", "asyncio", "os", "subprocess", "time", "logging", "select", "selectors", "threading", "random"}

# sans-IO modules: bytes in, values out; time, randomness and file contents are arguments
PURE = [
    "libs/core/src/enclavekit_core/address.py",
    "libs/core/src/enclavekit_core/amounts.py",
    "libs/core/src/enclavekit_core/bus_config.py",
    "libs/core/src/enclavekit_core/egress_policy.py",
    "libs/core/src/enclavekit_core/exposition.py",
    "libs/core/src/enclavekit_core/file_record.py",
    "libs/core/src/enclavekit_core/host_names.py",
    "libs/core/src/enclavekit_core/http_get.py",
    "libs/core/src/enclavekit_core/ip_addresses.py",
    "libs/core/src/enclavekit_core/tree_digest.py",
    "libs/core/src/enclavekit_core/split_files.py",
    "libs/core/src/enclavekit_core/exit_report.py",
    "libs/core/src/enclavekit_core/nftables.py",
    "libs/core/src/enclavekit_core/nitro_errors.py",
    "libs/eif/src/enclavekit_eif/crc.py",
    "libs/eif/src/enclavekit_eif/detached.py",
    "libs/eif/src/enclavekit_eif/difference.py",
    "libs/eif/src/enclavekit_eif/kernel_format.py",
    "libs/eif/src/enclavekit_eif/model.py",
    "libs/nsm/src/enclavekit_nsm/messages/codec.py",
    "libs/nsm/src/enclavekit_nsm/messages/model.py",
    "libs/attestation/src/enclavekit_attestation/document.py",
    "libs/attestation/src/enclavekit_attestation/evidence_exchange.py",
    "libs/attestation/src/enclavekit_attestation/file_claim.py",
    "libs/attestation/src/enclavekit_attestation/manifest_proof.py",
    "libs/attestation/src/enclavekit_attestation/measurement.py",
    "libs/attestation/src/enclavekit_attestation/report.py",
    "libs/attestation/src/enclavekit_attestation/user_data.py",
    "libs/attestation/src/enclavekit_attestation/verdict.py",
    "libs/ecvrf/src/ecvrf/hmac_nonce.py",
    "libs/ecvrf/src/ecvrf/message_hash.py",
    "libs/ecvrf/src/ecvrf/suite.py",
    "libs/ecvrf/src/ecvrf/weierstrass.py",
    "emulator/src/enclavekit_emulator/pcr_bank.py",
    "pipeline/src/enclavekit_pipeline/wire/frames.py",
    "pipeline/src/enclavekit_pipeline/wire/handshake.py",
    "pipeline/src/enclavekit_pipeline/wire/flow.py",
    "pipeline/src/enclavekit_pipeline/wire/messages.py",
    "pipeline/src/enclavekit_pipeline/wire/exec_messages.py",
    "pipeline/src/enclavekit_pipeline/wire/job_messages.py",
    "pipeline/src/enclavekit_pipeline/wire/copy_messages.py",
    "pipeline/src/enclavekit_pipeline/wire/digest.py",
    "libs/core/src/enclavekit_core/seccomp.py",
    "pipeline/src/enclavekit_pipeline/wire/forward_messages.py",
    "pipeline/src/enclavekit_pipeline/wire/legacy_slc.py",
    "pipeline/src/enclavekit_pipeline/wire/requests.py",
    "pipeline/src/enclavekit_pipeline/wire/info_messages.py",
    "pipeline/src/enclavekit_pipeline/wire/tree_content.py",
    "pipeline/src/enclavekit_pipeline/wire/tree_filter.py",
    "pipeline/src/enclavekit_pipeline/wire/tree_order.py",
    "pipeline/src/enclavekit_pipeline/wire/tree_receiver.py",
    "pipeline/src/enclavekit_pipeline/wire/tree_records.py",
    "pipeline/src/enclavekit_pipeline/wire/tree_sender.py",
    "pipeline/src/enclavekit_pipeline/wire/liveness.py",
    "pipeline/src/enclavekit_pipeline/wire/numbering.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/claims.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/fair_queue.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/manifest.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/answers.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/asked.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/metrics.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/networks.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/openapi.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/page.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/paths.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/records.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/requests.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/routes.py",
    "ra_web_srv/src/enclavekit_ra_web_srv/views.py",
    "fs_monitor/src/enclavekit_fs_monitor/inotify_events.py",
    "fs_monitor/src/enclavekit_fs_monitor/file_state.py",
    "fs_monitor/src/enclavekit_fs_monitor/tracker.py",
    "fs_monitor/src/enclavekit_fs_monitor/hash_queue.py",
    "fs_monitor/src/enclavekit_fs_monitor/ignore_rules.py",
    "fs_monitor/src/enclavekit_fs_monitor/metrics.py",
    "fs_monitor/src/enclavekit_fs_monitor/mount_table.py",
    "enclave_init/src/enclavekit_enclave_init/boot/plan.py",
    "enclave_init/src/enclavekit_enclave_init/boot/steps.py",
    "enclave_init/src/enclavekit_enclave_init/supervision/events.py",
    "enclave_init/src/enclavekit_enclave_init/initctl/access.py",
    "enclave_init/src/enclavekit_enclave_init/initctl/boot_times.py",
    "enclave_init/src/enclavekit_enclave_init/initctl/channel.py",
    "enclave_init/src/enclavekit_enclave_init/initctl/framing.py",
    "enclave_init/src/enclavekit_enclave_init/initctl/http.py",
    "enclave_init/src/enclavekit_enclave_init/initctl/metrics.py",
    "enclave_init/src/enclavekit_enclave_init/initctl/requests.py",
    "enclave_init/src/enclavekit_enclave_init/initctl/views.py",
    "enclave_init/src/enclavekit_enclave_init/logs/config.py",
    "enclave_init/src/enclavekit_enclave_init/logs/kernel_log.py",
    "enclave_init/src/enclavekit_enclave_init/logs/line_queue.py",
    "enclave_init/src/enclavekit_enclave_init/logs/redaction.py",
    "enclave_init/src/enclavekit_enclave_init/logs/ring.py",
    "pf_proxy/src/enclavekit_pf_proxy/announcement.py",
    "pf_proxy/src/enclavekit_pf_proxy/destinations.py",
    "pf_proxy/src/enclavekit_pf_proxy/half_close.py",
    "pf_proxy/src/enclavekit_pf_proxy/handshake.py",
    "pf_proxy/src/enclavekit_pf_proxy/passage.py",
    "pf_proxy/src/enclavekit_pf_proxy/plan.py",
    "pf_proxy/src/enclavekit_pf_proxy/policy/answers.py",
    "pf_proxy/src/enclavekit_pf_proxy/policy/client_hello.py",
    "pf_proxy/src/enclavekit_pf_proxy/policy/decision.py",
    "pf_proxy/src/enclavekit_pf_proxy/policy/first_bytes.py",
    "pf_proxy/src/enclavekit_pf_proxy/policy/first_datagrams.py",
    "pf_proxy/src/enclavekit_pf_proxy/policy/later_hellos.py",
    "pf_proxy/src/enclavekit_pf_proxy/policy/learning.py",
    "pf_proxy/src/enclavekit_pf_proxy/policy/http_requests.py",
    "pf_proxy/src/enclavekit_pf_proxy/resolver/cache.py",
    "pf_proxy/src/enclavekit_pf_proxy/resolver/vetting.py",
    "pf_proxy/src/enclavekit_pf_proxy/network/rtnetlink.py",
    "pf_proxy/src/enclavekit_pf_proxy/quic/crypto_stream.py",
    "pf_proxy/src/enclavekit_pf_proxy/quic/packets.py",
    "pf_proxy/src/enclavekit_pf_proxy/quic/protection.py",
    "pf_proxy/src/enclavekit_pf_proxy/quic/session.py",
    "pf_proxy/src/enclavekit_pf_proxy/rules/divert.py",
    "pf_proxy/src/enclavekit_pf_proxy/rules/iptables.py",
    "pf_proxy/src/enclavekit_pf_proxy/rules/nftables.py",
    "pf_proxy/src/enclavekit_pf_proxy/service.py",
    "pf_proxy/src/enclavekit_pf_proxy/status/metrics.py",
    "pf_proxy/src/enclavekit_pf_proxy/status/model.py",
    "pf_proxy/src/enclavekit_pf_proxy/status/text.py",
    "pf_proxy/src/enclavekit_pf_proxy/timers.py",
    "pf_proxy/src/enclavekit_pf_proxy/wire/datagrams.py",
    "pf_proxy/src/enclavekit_pf_proxy/wire/destination.py",
    "pf_proxy/src/enclavekit_pf_proxy/wire/opening.py",
    "libs/core/src/enclavekit_core/proxy_protocol.py",
    "pf_proxy/src/enclavekit_pf_proxy/wire/request.py",
    "enclave_init/src/enclavekit_enclave_init/units/unit.py",
    "enclave_init/src/enclavekit_enclave_init/supervision/book.py",
    "enclave_init/src/enclavekit_enclave_init/supervision/duty.py",
    "enclave_init/src/enclavekit_enclave_init/supervision/ending.py",
    "enclave_init/src/enclavekit_enclave_init/supervision/ripple.py",
    "enclave_init/src/enclavekit_enclave_init/supervision/starting.py",
    "enclave_init/src/enclavekit_enclave_init/supervision/supervisor.py",
    "enclave_init/src/enclavekit_enclave_init/supervision/operations.py",
    "enclave_init/src/enclavekit_enclave_init/boot/nsm_answers.py",
    "enclave_init/src/enclavekit_enclave_init/boot/clock_policy.py",
    "enclave_init/src/enclavekit_enclave_init/units/protections.py",
    "enclave_init/src/enclavekit_enclave_init/units/bounds.py",
    "enclave_init/src/enclavekit_enclave_init/units/commands.py",
    "enclave_init/src/enclavekit_enclave_init/units/key.py",
    "enclave_init/src/enclavekit_enclave_init/units/keys.py",
    "enclave_init/src/enclavekit_enclave_init/units/life_keys.py",
    "enclave_init/src/enclavekit_enclave_init/units/place_keys.py",
    "enclave_init/src/enclavekit_enclave_init/supervision/state.py",
    "enclave_init/src/enclavekit_enclave_init/units/ordering.py",
    "rbuilds/src/enclavekit_rbuilds/app/tree.py",
    "rbuilds/src/enclavekit_rbuilds/app/image_config.py",
    "rbuilds/src/enclavekit_rbuilds/console/catalog.py",
    "rbuilds/src/enclavekit_rbuilds/console/flags.py",
    "rbuilds/src/enclavekit_rbuilds/console/masking.py",
    "rbuilds/src/enclavekit_rbuilds/console/plan.py",
    "rbuilds/src/enclavekit_rbuilds/console/planners.py",
    "rbuilds/src/enclavekit_rbuilds/console/replaced.py",
    "rbuilds/src/enclavekit_rbuilds/console/report.py",
    "rbuilds/src/enclavekit_rbuilds/console/settings.py",
    "rbuilds/src/enclavekit_rbuilds/console/texts.py",
    "rbuilds/src/enclavekit_rbuilds/manifest/logs.py",
    "rbuilds/src/enclavekit_rbuilds/manifest/network.py",
    "rbuilds/src/enclavekit_rbuilds/manifest/schema.py",
    "rbuilds/src/enclavekit_rbuilds/plan/steps.py",
    "rbuilds/src/enclavekit_rbuilds/run/allocator.py",
    "rbuilds/src/enclavekit_rbuilds/run/cids.py",
    "rbuilds/src/enclavekit_rbuilds/run/diagnosis.py",
    "rbuilds/src/enclavekit_rbuilds/run/emulator_diagnosis.py",
    "rbuilds/src/enclavekit_rbuilds/run/failure.py",
    "rbuilds/src/enclavekit_rbuilds/run/launch_plan.py",
    "rbuilds/src/enclavekit_rbuilds/run/model.py",
    "rbuilds/src/enclavekit_rbuilds/run/nitro_commands.py",
    "rbuilds/src/enclavekit_rbuilds/run/nitro_diagnosis.py",
    "rbuilds/src/enclavekit_rbuilds/run/proxies.py",
    "rbuilds/src/enclavekit_rbuilds/run/rules.py",
    "rbuilds/src/enclavekit_rbuilds/run/sizing.py",
]


def package_of(member: str) -> str:
    return next((ROOT / member / "src").iterdir()).name


PACKAGES = {package_of(member) for member in MEMBERS}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def ours(path: Path) -> set[str]:
    return {top for name in imports_of(path) if (top := name.partition(".")[0]) in PACKAGES}


@pytest.mark.parametrize("member", MEMBERS)
def test_imports_go_from_services_to_libs_only(member):
    own, libs = package_of(member), {package_of(lib) for lib in LIBS}
    for path in (ROOT / member / "src").rglob("*.py"):
        foreign = ours(path) - libs - {own}
        assert not foreign, f"{path.relative_to(ROOT)} imports another service: {foreign}"


@pytest.mark.parametrize("member", MEMBERS)
def test_imports_are_declared_dependencies(member):
    project = tomllib.loads((ROOT / member / "pyproject.toml").read_text())["project"]
    optional = [name for group in project.get("optional-dependencies", {}).values() for name in group]
    names = {name.partition(">")[0].partition("[")[0] for name in [*project["dependencies"], *optional]}
    declared = {name.removeprefix("enclavekit-") if name == "enclavekit-ecvrf" else name for name in names}
    declared = {name.replace("-", "_") for name in declared}
    for path in (ROOT / member / "src").rglob("*.py"):
        undeclared = ours(path) - declared - {package_of(member)}
        assert not undeclared, f"{path.relative_to(ROOT)} needs {undeclared} in its pyproject.toml"


def test_core_stands_below_all_other_libs():
    for path in (ROOT / "libs/core/src").rglob("*.py"):
        assert ours(path) <= {"enclavekit_core"}, path


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_nothing_of_the_world(module):
    touched = {name.partition(".")[0] for name in imports_of(ROOT / module)} & WORLD
    assert not touched, f"{module} imports {touched}"


@pytest.mark.parametrize(("side", "other"), [("host", "enclave"), ("enclave", "host")])
def test_sides_of_the_pipeline_do_not_know_each_other(side, other):
    package = ROOT / "pipeline/src/enclavekit_pipeline"
    for path in [*(package / side).rglob("*.py"), *(package / "channel").rglob("*.py")]:
        assert not any(name.startswith(f"enclavekit_pipeline.{other}") for name in imports_of(path)), path


def test_production_code_cannot_import_fakes_or_tests():
    for member in MEMBERS:
        for path in (ROOT / member / "src").rglob("*.py"):
            assert not any(part in ("tests", "conftest") for name in imports_of(path) for part in name.split(".")), path
