# SPDX-License-Identifier: Apache-2.0
"""What is known to go wrong in file monitors, the Rust one among them, and which tests show that it does not here."""

import ast
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
OURS, CORE, RA = "fs_monitor/tests/", "libs/core/tests/", "ra_web_srv/tests/"

DEFECTS = {
    "F1 files that were there before the start are never hashed, keys of deleted ones stay": (
        OURS + "test_monitor.py::test_files_that_were_there_before",
        OURS + "test_monitor.py::test_leftovers_of_an_earlier_run",
        OURS + "test_monitor.py::test_killed_and_started_again",
    ),
    "F2 files in directories that have just been made are lost": (
        OURS + "test_monitor.py::test_new_directories_lose_nothing",
        OURS + "test_model.py::test_short",
    ),
    "F3 what happens to a directory happens to its siblings of the same beginning": (
        OURS + "test_monitor.py::test_renames",
        OURS + "test_watching.py::test_several_roots",
    ),
    "F4 without standard input it runs in a circle": (OURS + "test_idle.py::test_ready",),
    "F5 the store of the hashes and its own log are hashed in turn": (
        OURS + "test_service.py::test_log_of_the_service_itself_is_no_file_of_the_tree",
    ),
    "F6 a queue that overflows and a limit of watches that is reached go unnoticed": (
        OURS + "test_monitor.py::test_queue_overflow_loses_nothing",
        OURS + "test_watching.py::test_watch_limit_falls_back_to_scans",
    ),
    "F7 a file that is renamed while it is hashed has no hash": (
        OURS + "test_watching.py::test_rename_while_it_is_hashed",
    ),
    "F8 the older of two hashes of one file wins": (
        OURS + "test_pure.py::test_older_result_never_wins",
        OURS + "test_pure.py::test_queue_gives_each_path_to_one_worker",
        OURS + "test_pure.py::test_model_published_hash_is_of_the_last_settled_content",
    ),
    "F9 a file that cannot be hashed keeps its former hash": (
        OURS + "test_pure.py::test_file_that_cannot_be_hashed_loses_its_hash",
        OURS + "test_watching.py::test_hash_of_a_file_that_has_a_writer_again_is_taken_back",
    ),
    "F10 files are hashed while somebody writes; mappings and truncation are not seen": (
        OURS + "test_monitor.py::test_file_with_an_open_writer_is_not_published",
        OURS + "test_monitor.py::test_write_append_truncate_and_delete",
        OURS + "test_watching.py::test_mapped_file_is_hashed_once_its_writer_is_gone",
    ),
    "F11 files are hashed one after the other": (
        OURS + "test_service.py::test_large_files_leave_a_worker_to_small_ones",
    ),
    "F12 a bus that does not answer stops everything": (
        OURS + "test_service.py::test_bus_that_hangs_holds_nothing_else_up",
    ),
    "F13 what is ignored is hashed when a directory comes in": (
        OURS + "test_service.py::test_ignore_file_applies_to_scans_events_and_moves_and_is_read_again",
    ),
    "F14 the ignore file is no gitignore, and a bad or missing one ends the service": (
        OURS + "test_rules.py::test_as_git_itself_decides",
        OURS + "test_service.py::test_bad_ignore_file_stops_the_start_but_not_the_service",
    ),
    "F15 links are followed out of the tree": (OURS + "test_monitor.py::test_links_and_odd_files",),
    "F16 names with blanks, other scripts, or bytes that are no UTF-8 are refused": (
        OURS + "test_monitor.py::test_names_of_every_kind",
        OURS + "test_service.py::test_hash_finds_names_of_every_kind",
        CORE + "test_bus.py::test_key_is_legal_and_reversible",
        RA + "test_files.py::test_names_of_every_kind_come_over_the_bus",
    ),
    "F17 what changes while the bus is away is lost, and a late bus ends the service": (
        OURS + "test_monitor.py::test_outage_of_the_bus_loses_nothing",
        OURS + "test_monitor.py::test_bus_that_is_late",
    ),
    "F18 memory grows with every change": (OURS + "test_pure.py::test_memory_does_not_grow_with_changes",),
    "F19 the digest of a directory knows no names": (
        OURS + "test_service.py::test_digest_of_a_directory_covers_names_types_and_modes",
        CORE + "test_tree_digest.py::*",
    ),
    "F20 hard links and renames over a file are not understood": (
        OURS + "test_monitor.py::test_links_and_odd_files",
        OURS + "test_pure.py::test_change_under_one_name_is_looked_for_under_the_others",
        OURS + "test_monitor.py::test_renames",
    ),
    "F21 it does not start, nor do its tests, without files that are not there": (
        OURS + "test_service.py::test_starts_with_no_file_and_no_flag_but_where_its_bus_is",
    ),
    "F22 nobody can see how it is, and stopping it loses what it has": (
        OURS + "test_service.py::test_status_hash_and_metrics",
        OURS + "test_service.py::test_readiness_waits_for_the_bus_and_is_told_to_the_supervisor",
        OURS + "test_service.py::test_stop_publishes_what_has_just_happened",
        OURS + "test_service.py::test_what_a_read_has_taken_when_the_stop_comes_is_not_lost",
    ),
}


def test_table_is_complete():
    assert [defect.split()[0] for defect in DEFECTS] == [f"F{number}" for number in range(1, 23)]


@pytest.mark.parametrize("defect", DEFECTS)
def test_tests_of_the_table_exist(defect):
    assert DEFECTS[defect]
    for test in DEFECTS[defect]:
        file, _, name = test.partition("::")
        tree = ast.parse((CHECKOUT / file).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions or (name == "*" and functions), test
