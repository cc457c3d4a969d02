# SPDX-License-Identifier: Apache-2.0
"""What is ignored, which mounts count, what is counted."""

import shutil
import subprocess

import pytest
from enclavekit_core.errors import ConfigError
from enclavekit_fs_monitor.config import Config, check
from enclavekit_fs_monitor.ignore_rules import MAX_FILE_BYTES, parse_rules
from enclavekit_fs_monitor.metrics import Lag, render
from enclavekit_fs_monitor.mount_table import concerns, kernel_mounts, parse_mounts
from hypothesis import given
from hypothesis import strategies as st

# of the Rust fs-monitor's own list
UPSTREAM = b"""**/.cache/**
**/*.~
**/*.swp
**/*.lock
**/*.incomplete
**/tmp_*
*.log
*~
"""


def rules(text, root=b"/data"):
    return parse_rules(text, root, "ignore")


@pytest.mark.parametrize(
    ("text", "path", "ignored"),
    [
        (b"# comment\n\n*.tmp\n", b"a.tmp", True),
        (b"*.tmp", b"deep/er/a.tmp", True),
        (b"*.tmp\n!keep.tmp", b"x/keep.tmp", False),
        (b"!keep.tmp\n*.tmp", b"keep.tmp", True),
        (b"/top", b"top", True),
        (b"/top", b"x/top", False),
        (b"build/", b"x/build/f", True),
        (b"build/", b"x/build", False),
        (b"a/**/z", b"a/b/c/z", True),
        (b"build/\n!build/keep", b"build/keep", True),  # git: what lies in an ignored directory stays ignored
        (b"\\#file", b"#file", True),
        (b"[ab].c\r\n", b"b.c", True),
        ("grün*".encode(), "grünes".encode(), True),
        (b"*.\xff", b"x.\xff", True),
        (b"", b"nats.db/x", True),
        (b"", b".logs/x", True),
        (b"", b"store/jetstream/$G/streams/KV_fs_hashes/msgs/1.blk", True),
        (b"!nats.db/", b"nats.db/x", False),
        # globs on absolute paths, as the Rust fs-monitor reads them: * and ? cross slashes
        (b"/data/a*b", b"a/x/b", True),
        (b"/data/a?b", b"a/b", True),
        (b"/data/**/f", b"f", True),
        (b"/data/**/f", b"x/y/f", True),
        (b"/data/**/f", b"xf", False),
        (b"/data/[!a]x", b"bx", True),
        (b"/data/[!a]x", b"ax", False),
        (b"/data/*\n!/data/keep", b"keep", False),
        (b"/database/x", b"x", False),
        (UPSTREAM, b"x/.cache/y", True),
        (UPSTREAM, b"x/tmp_1", True),
        (UPSTREAM, b"deep/x.log", True),
        (UPSTREAM, b"x/backup~", True),
        (UPSTREAM, b"x/report.txt", False),
    ],
)
def test_ignore_table(text, path, ignored):
    assert rules(text).covers(path, is_directory=False) is ignored


@pytest.mark.parametrize("text", [b"ok\n[z-a]\n", b"ok\n!\n", b"ok\n/data/[z-a]\n"])
def test_bad_pattern_names_its_line(text):
    with pytest.raises(ConfigError, match="line 2"):
        rules(text)


def test_file_that_is_too_large_is_refused():
    with pytest.raises(ConfigError, match="larger"):
        rules(b"#" * (MAX_FILE_BYTES + 1))


def test_root_of_everything_reads_anchored_patterns_as_git_does():
    assert rules(b"/tmp/*", b"/").covers(b"tmp/x", is_directory=False)
    assert not rules(b"/tmp/*.c", b"/").covers(b"tmp/x/y.c", is_directory=False)


PATTERNS = st.lists(
    st.sampled_from(
        ["*.c", "/a", "build/", "a/**", "!b.c", "**/a/b.c", "# x", "x*", "/build/*", "\\#n", "a/*/a", "[ab]"]
    ),
    max_size=4,
)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_as_git_itself_decides(tmp_path):
    """Every path of three levels against some dozens of lists of patterns, judged by `git check-ignore`.

    What is brought back are files only: below a directory that is, pathspec is more generous than git.
    """
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    directories, files = ["a", "build", "x y", "#n"], ["a", "b.c", "build", "x y", "#n"]
    paths = [f"{one}/{two}/{file}" for one in directories for two in directories for file in files] + files
    judged = {}

    @given(PATTERNS)
    def judge(patterns):
        text = "\n".join(patterns).encode()
        if text not in judged and len(judged) < 50:
            (tmp_path / ".gitignore").write_bytes(text)
            argv = ["git", "-C", tmp_path, "check-ignore", "--no-index", "--stdin", "-z"]
            answer = subprocess.run(argv, input="\0".join(paths).encode(), capture_output=True).stdout
            judged[text] = set(answer.decode().split("\0")[:-1])
        ours = {path for path in paths if rules(text).covers(path.encode(), is_directory=False)}
        assert ours == judged.get(text, ours)

    judge()
    assert len(judged) > 20


MOUNTINFO = rb"""22 1 0:20 / /proc rw,nosuid shared:5 - proc proc rw
23 1 0:21 / /data/with\040blank\134 rw - sysfs sysfs rw
24 1 259:1 / /data rw,relatime shared:1 master:2 - ext4 /dev/root rw
25 1 0:22 / /cut
26 1 0:23 / /cut2 rw -
"""


def test_kernel_mounts():
    assert kernel_mounts(parse_mounts(MOUNTINFO)) == {b"/proc", b"/data/with blank\\"}


@given(st.binary(max_size=200))
def test_mount_table_may_hold_anything(data):
    parse_mounts(data)


def test_only_mounts_on_the_way_to_a_tree_or_in_it_concern_it():
    (sysfs,) = (mount for mount in parse_mounts(MOUNTINFO) if mount.point.startswith(b"/data/"))
    roots = (b"/", b"/data", b"/data/with blank\\", b"/data/with blank\\/below", b"/data/with", b"/other")
    assert [concerns(sysfs, root) for root in roots] == [True, True, True, True, False, False]


def test_mount_with_other_options_is_the_same_mount():
    again = MOUNTINFO.replace(b"rw,relatime shared:1", b"ro shared:1")
    assert parse_mounts(again) == parse_mounts(MOUNTINFO)
    assert parse_mounts(MOUNTINFO.replace(b"24 1 ", b"44 1 ")) != parse_mounts(MOUNTINFO)


def test_metrics_format():
    samples = [
        ("files", "gauge", "Files.", 2, {"state": 'a"b\\c\n'}),
        ("files", "gauge", "Files.", 3, {"state": "d"}),
        ("lag", "counter", "Lag.", 0.25, {}),
    ]
    assert render(samples) == (
        "# HELP fs_monitor_files Files.\n# TYPE fs_monitor_files gauge\n"
        'fs_monitor_files{state="a\\"b\\\\c\\n"} 2\nfs_monitor_files{state="d"} 3\n'
        "# HELP fs_monitor_lag Lag.\n# TYPE fs_monitor_lag counter\nfs_monitor_lag 0.250000\n"
    )


def test_lag_counts_from_the_first_sign():
    lag = Lag()
    lag.begin(b"/a", 1.0)
    lag.begin(b"/a", 2.0)
    lag.begin(b"/b", 3.0)
    assert lag.oldest_s(5.0) == 4.0
    lag.end(b"/a", 5.0)
    assert (lag.last_s, lag.sum_s, lag.count, lag.oldest_s(5.0)) == (4.0, 4.0, 1, 2.0)
    lag.drop(b"/b")
    lag.end(b"/b", 9.0)
    assert (lag.count, lag.oldest_s(9.0)) == (1, 0.0)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"roots": ()}, "roots"),
        ({"roots": ("/tmp", "/tmp/x")}, "roots"),
        ({"roots": ("/", "/tmp")}, "roots"),
        ({"roots": ("/tmp", "/tmp/.")}, "roots"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": 6}, "replicas"),
        ({"quiet_s": -1.0}, "quiet_s"),
    ],
)
def test_configuration_that_makes_no_sense(fields, key):
    with pytest.raises(ConfigError) as refused:
        check(Config(**fields))
    assert refused.value.key == key


def test_roots_side_by_side_are_fine():
    check(Config(roots=("/tmp/a", "/tmp/ab", "/tmp/a.b")))
