//! The cases, by topic.

mod hooks;
mod hostile;
mod inside;
mod life;
mod spec;
mod users;
mod volumes;

macro_rules! cases {
    ($($module:ident: $($name:ident)*;)*) => {
        /// Every case by name.
        pub const ALL: &[(&str, fn())] = &[$($((stringify!($name), $module::$name),)*)*];
    };
}

cases! {
    life:
        output_and_exit_code_come_back
        a_rootfs_may_be_a_directory
        nothing_runs_before_the_gate_opens
        a_dropped_gate_ends_the_init
        a_missing_program_is_found_out_at_create
        a_program_that_cannot_run_is_found_out_at_start
        failures_leave_nothing
        a_terminal_is_the_containers_own
        exec_joins_everything
        exec_failure_leaves_the_container_alone
        exec_with_terminal
        pid_namespace_of_another_container_is_joined
        nothing_is_allocated_between_clone_and_exec
        the_host_keeps_its_mounts
        death_of_the_maker_ends_a_waiting_init;
    inside:
        only_standard_descriptors_are_open
        capabilities_are_exactly_those_planned
        no_new_privileges_is_set_or_not
        users_and_groups
        streams_can_be_opened_again_by_the_user
        limits_are_set_or_clamped
        a_filter_is_in_force
        masked_paths_are_hidden
        read_only_paths_stay_read_only
        a_read_only_root
        devices_are_denied_by_default
        its_own_cgroup_namespace
        kernel_parameters_are_the_namespaces_own
        oom_score_is_raised
        signals_are_as_a_program_expects
        the_working_directory_is_made
        the_maker_is_not_traceable;
    hostile:
        a_working_directory_through_a_descriptor_is_refused
        links_in_the_image_stay_inside
        proc_that_is_a_link_is_refused
        volumes_over_proc_are_refused
        a_null_that_is_no_null_is_refused
        setuid_programs_gain_nothing
        a_volume_that_changes_under_the_mount_stays_inside
        a_waiting_init_holds_nothing_of_the_hosts
        a_waiting_init_cannot_be_looked_into_by_its_pod
        an_update_keeps_the_device_policy
        the_hosts_root_can_be_a_volume;
    spec:
        an_engines_bundle_runs
        its_cgroups_are_visible_and_read_only
        the_command_line_runs_a_bundle;
    users:
        a_user_namespace_owns_the_containers_namespaces
        a_pid_namespace_is_joined_together_with_users
        exec_enters_the_user_namespace
        volumes_are_translated_where_the_filesystem_can
        failures_in_a_user_namespace_leave_nothing
        nothing_is_allocated_on_the_way_into_a_user_namespace
        groups_are_handed_to_the_root_of_a_user_namespace;
    volumes:
        files_and_directories_are_bound
        read_only_binds
        host_mounts_reach_slaves_also_while_created
        shared_mounts_reach_the_host
        private_mounts_stay_apart
        a_source_below_a_volume_cannot_leave_it
        a_detached_mount_is_a_volume_whole_or_in_part
        a_part_of_a_detached_mount_cannot_lie_outside_of_it
        options_of_a_tmpfs_are_in_force
        a_process_joins_its_group_of_cache_and_bandwidth;
    hooks:
        hooks_run_in_order_and_are_told_the_state
        create_container_hooks_change_the_root_before_the_pivot
        a_hook_gets_its_own_three_descriptors_only
        a_hook_that_fails_before_the_start_undoes_the_container
        a_hook_that_fails_at_the_start_is_told
        a_hook_ends_at_its_timeout_with_all_it_started
        what_a_hook_prints_or_leaves_running_holds_nobody_up;
}
