# SPDX-License-Identifier: Apache-2.0
import pytest
from enclavekit_core.errors import ConfigError
from enclavekit_enclave_init.boot import plan as bp
from enclavekit_enclave_init.boot.execute import BootError, run_operations
from enclavekit_enclave_init.boot.kernel_features import NO_VSOCK
from enclavekit_enclave_init.config import InitConfig, ParentConfig, parse_config
from enclavekit_enclave_init.runtime.mount_table import parse_mountinfo

PROCESS_MACHINE = {"/", "/proc", "/dev/null", "/dev/nsm", "/sys", "/run/enclavekit/fabric/16"}


def kinds(plan):
    return [type(operation).__name__ for operation in plan]


def mounted_by(plan):
    return [operation.target for operation in plan if isinstance(operation, bp.Mount)]


def test_parse_mountinfo_undoes_escapes():
    text = (
        "36 35 98:0 / /mnt\\040a rw,noatime master:1 - ext3 /dev/root rw\n"
        "37 36 0:5 / /back\\134slash rw - tmpfs tmpfs rw\nshort line\n"
    )
    assert parse_mountinfo(text) == {"/mnt a", "/back\\slash"}


def test_own_machine_gets_everything():
    plan = bp.plan_machine({"/", "/proc"})
    assert mounted_by(plan) == ["/dev", "/sys", "/run", "/tmp", "/dev/pts", "/dev/shm"]
    assert plan[-1] == bp.OpenConsole()


def test_process_machine_keeps_what_is_mounted_and_what_a_mount_would_hide():
    plan = bp.plan_machine(PROCESS_MACHINE)
    assert mounted_by(plan) == ["/tmp", "/dev/pts", "/dev/shm"]
    assert bp.OpenConsole() not in plan


def test_every_mount_but_sysfs_is_required_and_none_allows_setuid():
    for mount in bp.MOUNTS:
        assert mount.flags & bp.MS_NOSUID
        assert mount.required == (mount.target != "/sys")


def test_plan_system_order_ends_with_the_heartbeat():
    config = InitConfig(kernel_modules=("/b.ko", "/a.ko"))
    plan = bp.plan_system(config, owns_machine=True, has_nsm=False)
    assert [o.path for o in plan if isinstance(o, bp.LoadModule)] == ["/nsm.ko", "/b.ko", "/a.ko"]
    assert plan[-1] == bp.Heartbeat(3, 9000, 10.0)
    assert all(o.required for o in plan if isinstance(o, (bp.LoadModule, bp.BringLoopbackUp, bp.Heartbeat)))


def test_plan_system_loads_no_modules_into_a_kernel_of_others():
    config = InitConfig(kernel_modules=("/a.ko",))
    assert "LoadModule" not in kinds(bp.plan_system(config, owns_machine=False, has_nsm=True))


def test_plan_system_without_nsm_module_where_the_driver_is_there():
    assert "LoadModule" not in kinds(bp.plan_system(InitConfig(), owns_machine=True, has_nsm=True))


def test_plan_system_without_parent():
    config = InitConfig(vsock=ParentConfig(enabled=False), hostname="")
    assert kinds(bp.plan_system(config, owns_machine=False, has_nsm=True)) == [
        "BringLoopbackUp", "MakeDirectory", "MakeDirectory", "WriteFile",
    ]  # fmt: skip


def test_entropy_and_clock_come_before_the_heartbeat_and_fail_the_boot():
    plan = kinds(bp.plan_system(InitConfig(), owns_machine=True, has_nsm=False, nsm_port=7))
    assert plan.index("StartNsmRelay") < plan.index("SeedEntropy") < plan.index("CheckClock") < plan.index("Heartbeat")
    assert bp.SeedEntropy().required and bp.CheckClock().required
    assert "SeedEntropy" not in kinds(bp.plan_system(InitConfig(), owns_machine=False, has_nsm=True))


def test_cgroups_of_a_shared_kernel_are_touched_only_if_a_unit_needs_them():
    def planned(**keys):
        return "SetUpCgroups" in kinds(bp.plan_system(InitConfig(), has_nsm=True, **keys))

    assert planned(owns_machine=True) and planned(owns_machine=False, needs_cgroups=True)
    assert not planned(owns_machine=False)


def test_heartbeat_that_waits_is_no_part_of_the_plan():
    plan = bp.plan_system(InitConfig(), owns_machine=False, has_nsm=True, heartbeat_waits=True)
    assert "Heartbeat" not in kinds(plan)


def test_names_are_written_where_the_image_has_none(tmp_path):
    plan = bp.plan_names(InitConfig(hostname="h", nameserver="127.0.0.1"))
    files = {o.path: o.text for o in plan if isinstance(o, bp.WriteFile)}
    assert files == {
        "/etc/hosts": "127.0.0.1 localhost h\n::1 localhost\n",
        "/etc/resolv.conf": "nameserver 127.0.0.1\n",
    }
    path = tmp_path / "hosts"
    for text in ("one", "two"):
        run_operations([bp.WriteFile(str(path), text)], lambda line: None, lambda: None)
    assert path.read_text() == "one"


def test_run_operations_stops_at_a_required_failure_and_names_it(tmp_path):
    (tmp_path / "file").touch()
    lines = []
    plan = [
        bp.MakeDirectory(str(tmp_path / "a"), 0o700),
        bp.MakeDirectory(str(tmp_path / "file" / "x"), 0o700, required=False),
        bp.MakeLink(str(tmp_path / "l"), "a"),
        bp.MakeDirectory(str(tmp_path / "file" / "y"), 0o700),
        bp.MakeDirectory(str(tmp_path / "never"), 0o700),
    ]
    with pytest.raises(BootError, match=r"cannot make directory .*/file/y: not a directory"):
        run_operations(plan, lines.append, lambda: None)
    assert len(lines) == 3
    assert (tmp_path / "l").is_symlink() and not (tmp_path / "never").exists()


def test_module_that_is_missing_is_an_error_unless_optional(tmp_path):
    missing = str(tmp_path / "m.ko")
    run_operations([bp.LoadModule(missing, optional=True)], lambda text: None, lambda: None)
    with pytest.raises(BootError, match=r"m\.ko: no such file"):
        run_operations([bp.LoadModule(missing)], lambda text: None, lambda: None)


@pytest.mark.parametrize("name", ["vmw_vsock_virtio_transport.ko", "virtio-mmio.ko"])
def test_module_that_is_missing_is_named_with_what_it_costs(tmp_path, name):
    with pytest.raises(BootError) as failed:
        run_operations([bp.LoadModule(str(tmp_path / name))], lambda text: None, lambda: None)
    assert name in str(failed.value) and NO_VSOCK in str(failed.value)


def test_parse_config_takes_every_key():
    text = """
service_dir = "/s"
log_dir = "/l"
max_log_size = 8192
max_log_files = 2
hostname = "h-1.x"
nameserver = "::1"
nsm_driver_path = ""
kernel_modules = ["/a.ko"]
[environment]
TZ = "UTC"
[vsock]
enabled = false
cid = 2
port = 1
report_port = 4
timeout_s = 3
"""
    assert parse_config(text, "f") == InitConfig(
        "/s",
        "/l",
        8192,
        2,
        "h-1.x",
        "",
        ("/a.ko",),
        (("TZ", "UTC"),),
        ParentConfig(False, 2, 1, 4, 3.0),
        nameserver="::1",
    )
    assert parse_config("", "f") == InitConfig()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("nope = 1", "nope"),
        ("[vsock]\nnope = 1", "vsock.nope"),
        ("vsock = 1", "vsock"),
        ("[environment]\nA = 1", "environment.A"),
        ("service_dir = 'rel'", "service_dir"),
        ("max_log_files = 0", "max_log_files"),
        ("max_log_size = true", "max_log_size"),
        ("hostname = 'a b'", "hostname"),
        ("nameserver = 'dns.example'", "nameserver"),
        ("kernel_modules = ['x.ko']", "kernel_modules"),
        ("[vsock]\ntimeout_s = 0", "vsock.timeout_s"),
        ("[vsock]\ntimeout_s = nan", "vsock.timeout_s"),
        ("[vsock]\nport = -1", "vsock.port"),
        ("[vsock]\nenabled = 1", "vsock.enabled"),
        ("not toml", ""),
    ],
)
def test_parse_config_refuses_by_key(text, key):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f")
    assert caught.value.key == key
