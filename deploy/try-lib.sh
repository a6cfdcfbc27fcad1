# What deploy/try and deploy/untry share: where things lie, and how what a pod leaves is removed.
# Sourced by both, never executed.

# Nothing of a production daemon (/etc/crisp, /var/lib/crisp, /run/crisp, /etc/cni) is touched.
HOME_DIR=/var/lib/crisp-try
RUN_DIR=/run/crisp-try
NETWORK=crisp-try
BRIDGE=crisp-try0
SOCKET=$RUN_DIR/crisp.sock
PID_FILE=$RUN_DIR/pid

say() { printf '%s\n' "$*"; }
die() { printf '%s: error: %s\n' "$PROGRAM" "$*" >&2; exit 1; }

# One of the two at a time: both change the same machine.
take_lock() {
    exec 9>/run/crisp-try.lock
    flock -n 9 || die "another deploy/try or deploy/untry is running"
}

# Without the architecture, as apt's own lists name those of the machine's.
packages_now() { dpkg-query -W -f='${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | LC_ALL=C sort -u; }

# Completes the list of installed packages, also after an installation that was interrupted.
note_packages() {
    [ -f "$HOME_DIR/packages.before" ] || return 0
    packages_now | LC_ALL=C comm -13 "$HOME_DIR/packages.before" - >>"$HOME_DIR/installed"
    rm "$HOME_DIR/packages.before"
}

# Stops a daemon of ours, by its process id. The id may be another program's by now: the command
# line tells.
stop_daemon() {
    local pid deadline=$((SECONDS + 10))
    pid=$(cat "$PID_FILE" 2>/dev/null) || return 0
    [ -n "$pid" ] || return 0
    if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "serve --config $HOME_DIR/crisp.toml"; then
        kill -TERM "$pid" 2>/dev/null || true
        # A daemon that this shell started is a zombie until it is waited for, which is as good as gone.
        while state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null) &&
            [ -n "$state" ] && [ "$state" != Z ]; do
            if [ "$SECONDS" -ge "$deadline" ]; then
                say "the daemon $pid does not end on SIGTERM: killing it"
                kill -KILL "$pid" 2>/dev/null || true
                deadline=$((SECONDS + 10))
            fi
            sleep 0.05
        done
    fi
    rm -f "$PID_FILE"
}

# Ids of the pods and containers that the records of an earlier run name.
left_ids() {
    local dir
    for dir in "$HOME_DIR"/root/sandboxes/* "$HOME_DIR"/root/containers/* "$RUN_DIR"/sandboxes/* "$RUN_DIR"/containers/*; do
        dir=${dir##*/}
        # Only what is an id: a shorter word would match foreign processes.
        case $dir in *[!0-9a-f]*) continue ;; esac
        if [ ${#dir} -ge 32 ]; then printf '%s\n' "$dir"; fi
    done | LC_ALL=C sort -u
}

# Kills every process whose command line (monitors, pauses) or cgroup (containers) names an id.
kill_by_id() {
    local id=$1 entry pid
    for entry in /proc/[0-9]*; do
        pid=${entry#/proc/}
        [ "$pid" != $$ ] || continue
        if tr '\0' '\n' <"$entry/cmdline" 2>/dev/null | grep -qxF "$id" || grep -qF "/$id" "$entry/cgroup" 2>/dev/null; then
            kill -KILL "$pid" 2>/dev/null || true
        fi
    done
}

remove_cgroups() {
    local id=$1 dir
    # Children before parents; a group is busy until its last process is reaped.
    { find /sys/fs/cgroup -depth -type d \( -name "$id" -o -path "*/$id/*" \) 2>/dev/null || true; } | while read -r dir; do
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            rmdir "$dir" 2>/dev/null && break
            [ -d "$dir" ] || break
            sleep 0.1
        done
    done
}

# Unmounts everything below our directories, innermost first.
unmount_below() {
    local point
    awk -v a="$HOME_DIR/" -v b="$RUN_DIR/" 'index($5, a) == 1 || index($5, b) == 1 { print $5 }' /proc/self/mountinfo |
        LC_ALL=C sort -r | while read -r point; do umount -l "$point" || true; done
}

# The iptables rules and chains that the bridge plugin made for our network and did not take back.
remove_rules() {
    command -v iptables >/dev/null || return 0
    local rule source id chain
    { iptables -w 10 -t nat -S POSTROUTING 2>/dev/null || true; } | while read -r rule; do
        # -A POSTROUTING -s ADDRESS -m comment --comment "name: \"NETWORK\" id: \"ID\"" -j CNI-HASH
        [[ $rule =~ ^'-A POSTROUTING -s '([0-9./]+)' '.*'name: \"'$NETWORK'\" id: \"'([0-9a-f]+)'\"'.*' -j '(CNI-[0-9a-f]+)$ ]] || continue
        source=${BASH_REMATCH[1]} id=${BASH_REMATCH[2]} chain=${BASH_REMATCH[3]}
        iptables -w 10 -t nat -D POSTROUTING -s "$source" -m comment --comment "name: \"$NETWORK\" id: \"$id\"" -j "$chain" || true
        iptables -w 10 -t nat -F "$chain" || true
        iptables -w 10 -t nat -X "$chain" || true
    done
}

# Removes what a run of ours that was cut off left on the machine: the daemon, pods, mounts, rules.
sweep() {
    local id
    stop_daemon
    for id in $(left_ids); do
        kill_by_id "$id"
        remove_cgroups "$id"
        if [ -e "/run/netns/crisp-${id:0:13}" ]; then
            umount -l "/run/netns/crisp-${id:0:13}" 2>/dev/null || true
            rm -f "/run/netns/crisp-${id:0:13}"
        fi
    done
    unmount_below
    remove_rules
    if [ -d "/sys/class/net/$BRIDGE" ]; then
        link_delete "$BRIDGE"
    fi
    if [ "$(cat "$RUN_DIR/ip_forward" 2>/dev/null)" = 0 ]; then
        echo 0 >/proc/sys/net/ipv4/ip_forward
    fi
    # Made by crisp and left empty: only if they were not there before.
    if [ -f "$RUN_DIR/made-cgroups" ]; then
        for id in /sys/fs/cgroup/crisp /sys/fs/cgroup/*/crisp; do
            rmdir "$id" 2>/dev/null || true
        done
    fi
    if [ -f "$RUN_DIR/made-netns" ] && [ -d /run/netns ] && [ -z "$(ls -A /run/netns)" ]; then
        umount /run/netns 2>/dev/null || true
        rmdir /run/netns
    fi
    rm -rf "$RUN_DIR" "$HOME_DIR/root" "$HOME_DIR/logs" "$HOME_DIR/cni" "$HOME_DIR/leases"
}

# The busybox of the image knows ip, so that the machine needs no package for it.
link_delete() {
    if command -v ip >/dev/null; then
        ip link delete "$1"
    else
        "$HOME_DIR/busybox/bin/busybox" ip link delete "$1"
    fi
}
