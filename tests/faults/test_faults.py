"""Every fault that must be survived has its tests: the id of a fault is the id of a test here, which names them."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIST = ROOT.parent / "shared/faults.md"

FAULTS: dict[str, tuple[str, ...]] = {
    "S1": ("secret/test_secret_file::test_every_child_carries_the_token_that_was_complete_before_its_spawn",),
    "S2": ("secret/test_secret_file::test_every_child_carries_its_token_while_the_file_is_changed_in_place",),
    "S3": ("secret/test_secret_file::test_a_spawn_never_gets_half_a_token",),
    "S3b": ("secret/test_secret_file::test_a_file_that_is_gone_withdraws_its_token_after_a_while_and_is_back_at_once",),
    "S4": ("secret/test_secret_file::test_a_short_gap_between_unlink_and_create_keeps_the_last_good",),
    "S5": ("secret/test_secret_file::test_no_child_misses_a_kubelet_swap_in_a_storm",),
    "S6": ("secret/test_secret_file::test_a_replaced_directory_is_watched_again",),
    "S7": ("secret/test_secret_file::test_a_replaced_directory_is_watched_again",),
    "S8": ("secret/test_secret_mounts::test_a_file_system_mounted_over_the_directory_and_unmounted_again_is_followed",),
    "S9": ("secret/test_secret_file::test_a_file_and_directory_that_come_later_are_seen",),
    "S10": ("secret/test_secret_mounts::test_a_single_file_mount_is_warned_of_and_a_rename_outside_is_reported",),
    "S11": ("secret/test_secret_mounts::test_without_inotify_the_file_is_re_read_and_one_warning_says_so",),
    "S12": ("secret/test_secret_mounts::test_an_overflow_of_the_event_queue_while_stopped_loses_nothing",),
    "S13": ("secret/test_secret_mounts::test_a_write_behind_an_overlay_is_seen_although_it_has_no_event",),
    "S14": ("secret/test_secret_file::test_odd_contents_are_used_if_valid_after_trimming_else_the_last_good_stays",),
    "S15": (
        "secret/test_secret_reading::test_a_fifo_is_not_even_opened",
        "secret/test_secret_mounts::test_another_users_file_is_a_reason_and_no_crash",
    ),
    "S16": ("secret/test_secret_file::test_the_number_only_rises_when_values_come_and_go_quickly",),
    "S17": ("secret/test_secret_file::test_a_late_failure_of_an_older_generation_does_not_refuse_the_newer",),
    "S18": ("secret/test_secret_file::test_metadata_alone_makes_no_generation",),
    "A1": (
        "evidence/test_evidence::test_an_entry_that_grows_byte_by_byte_is_recognised_before_its_end_and_never_mistaken",
    ),
    "A2": (
        "process/test_framing::test_a_line_of_400_kb_and_a_frame_of_a_megabyte_come_out_whole",
        "execution/test_attempt::test_output_without_end_is_bounded_and_hides_nothing",
    ),
    "A3": (
        "evidence/test_evidence::test_the_clis_own_words_are_nothing_in_other_mouths",
        "system/test_executions::test_look_alikes_stop_nothing",
    ),
    "A4": ("execution/test_attempt::test_output_without_end_is_bounded_and_hides_nothing",),
    "A5": ("execution/test_attempt::test_match_and_signal_do_not_wait_for_a_blocked_event_loop",),
    "A6": ("evidence/test_evidence::test_a_damaged_entry_is_still_recognised",),
    "A7": ("execution/test_attempt::test_a_refusal_and_the_childs_own_end_make_one_verdict",),
    "A8": ("system/test_switching::test_a_burst_of_refusals_is_one_refusal_and_all_but_the_one_that_answered_go_on",),
    "A9": (
        "system/test_switching::test_what_a_tool_forges_stops_its_own_attempts_and_condemns_no_token",
        "system/test_token_trouble::test_what_a_tool_forges_each_time_is_never_told_as_the_token_s",
    ),
    "A10": (
        "system/test_executions::test_silence_is_ended_as_stalled",
        "real_cli/test_real_cli::test_what_the_api_never_answers_is_ended_as_stalled",
    ),
    "A11": (
        "evidence/test_evidence::test_a_403_that_is_not_the_apis_is_no_refusal",
        "evidence/test_evidence::test_a_401_whose_connection_was_lost_is_a_matter_of_the_network_in_frames_too",
    ),
    "A12": ("evidence/test_evidence::test_a_throttle_stays_one_through_retries_and_the_end",),
    "P1": ("process/test_containment::test_after_a_kill_a_whole_family_is_gone_at_once",),
    "P2": ("process/test_containment::test_a_process_that_has_left_its_family_is_found_and_none_of_another_attempt",),
    "P3": (
        "process/test_cgroup_limits::test_a_fork_bomb_stays_within_its_limit_and_is_gone",
        "process/test_containment::test_a_process_that_runs_away_by_forking_is_caught",
    ),
    "P4": (
        "process/test_process::test_a_stopped_child_is_interrupted",
        "process/test_process::test_a_stopped_child_is_killed",
    ),
    "P5": ("process/test_containment::test_a_grandchild_that_holds_the_pipes_is_ended_with_its_leader",),
    "P6": ("process/test_containment::test_two_hundred_orphans_leave_no_zombie_and_no_exit_code_is_lost",),
    "P7": ("process/test_containment::test_a_process_with_the_reused_pid_of_an_ended_one_is_not_hit",),
    "P8": (
        "process/test_process::test_an_exit_that_a_foreign_waitpid_has_taken_from_a_dead_shim_is_unknown_and_nothing_hangs",
    ),
    "P9": ("delivery/test_cli_check::test_k7_what_the_kernel_will_not_start_is_known_by_its_first_bytes",),
    "P10": ("process/test_containment::test_what_runs_beside_it_is_never_touched",),
    "P11": (
        "process/test_containment::test_the_next_start_ends_what_a_killed_supervisor_left_and_nothing_of_another_one",
    ),
    "P12": ("system/test_races::test_a_supervisor_that_was_stopped_for_five_seconds_ends_nobody_for_it",),
    "P13": (
        "process/test_process::test_a_kill_against_the_natural_end_a_thousand_times",
        "system/test_races::test_a_stop_at_any_moment_from_two_sides_is_idempotent_and_leaves_one_final_state",
    ),
    "P14": (
        "execution/test_attempt::test_a_prompt_that_is_never_read_costs_nothing_but_the_deadline",
        "telemetry/test_logs::test_logging_from_many_threads_into_a_full_pipe_ends",
    ),
    "P15": ("system/test_clock::test_a_clock_that_is_moved_ends_nothing_and_spares_nothing",),
    "P16": (
        (
            "process/test_containment::"
            "test_as_pid_1_and_under_an_init_zombies_are_reaped_and_foreign_orphans_are_not_killed"
        ),
    ),
    "R1": ("process/test_process::test_a_running_family_is_ended_with_no_descriptor_left",),
    "R2": ("process/test_cgroup_limits::test_a_kill_needs_neither_a_fork_nor_a_thread",),
    "R3": ("api/test_streams::test_executions_answer_on_a_full_disk_and_say_what_is_not_kept",),
    "R4": ("process/test_cgroup_limits::test_a_cli_that_takes_all_memory_ends_as_out_of_memory",),
    "R5": ("process/test_cgroup_limits::test_a_tree_with_next_to_no_cpu_is_ended_in_ten_times_the_time",),
    "R6": ("telemetry/test_logs::test_a_supervisor_whose_output_nobody_reads_does_its_work",),
    "R7": ("system/test_endurance::test_ten_thousand_executions_leave_descriptors_threads_and_memory_flat",),
    "L1": ("system/test_executions::test_sigterm_lets_the_running_finish_and_says_that_it_drains",),
    "L2": ("api/test_streams::test_fifty_streams_get_a_last_event_when_the_supervisor_is_told_to_end",),
    "L3": (
        "serve/test_starting::test_a_signal_at_any_moment_of_the_start_ends_it_well",
        "system/test_executions::test_what_does_not_finish_in_time_is_interrupted_and_gone",
    ),
    "L4": ("store/test_positions::test_a_position_is_gone_on_from_exactly",),
    "L5": ("system/test_executions::test_the_same_id_joins_while_it_runs_and_gets_the_kept_answer_later",),
    "L6": ("system/test_executions::test_a_client_that_hangs_up_changes_nothing",),
    "L7": ("web/test_hostile::test_whatever_is_sent_gets_an_answer_of_the_contract",),
    "L8": ("system/test_crash_points::test_a_supervisor_killed_at_any_write_is_followed_by_one_that_tells_the_truth",),
    "L9": ("system/test_leaks::test_no_token_and_no_key_is_in_any_sink",),
}
"""Faults by their ids in the list of faults, and the tests that bring each about: ``module::function`` below tests/."""


@functools.cache
def functions(module: str) -> frozenset[str]:
    """List the functions of a test module; none: there is no such module."""
    path = ROOT / "tests" / f"{module}.py"
    if not path.exists():
        return frozenset()
    return frozenset(node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_tests(fault: str) -> None:
    named = [test.split("::") for test in FAULTS[fault]]

    assert named
    assert [f"{module}::{name}" for module, name in named if name not in functions(module)] == []


@pytest.mark.skipif(not LIST.exists(), reason="the list of faults is not beside this checkout")
def test_the_faults_are_those_of_the_list() -> None:
    assert re.findall(r"^\| ([A-Z]\d+b?) \|", LIST.read_text(), re.MULTILINE) == list(FAULTS)
