# What the test scripts share: one cache directory, one lock per tool, apt and Go by their ordinary
# clients. Sourced, never executed. Nothing here names a package registry: what the machine's own
# apt, pip, go and cargo are set up to use is what is used.

CRISP_TEST_CACHE=${CRISP_TEST_CACHE:-/var/cache/crisp-tests}
export CRISP_TEST_CACHE
CRISP_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Runs a command with its output in a log, which is shown only if the command fails.
quietly() {
    local log=$1
    shift
    if ! "$@" >>"$log" 2>&1; then
        say "failed: $*"
        tail -n 40 "$log" >&2
        return 1
    fi
}

# apt_install PACKAGE...: installs those that are missing, and notes them so that an undo can
# remove them. Another apt on the machine is waited for.
apt_install() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    [ "$(id -u)" -eq 0 ] || die "not root, and these packages are missing: ${missing[*]}"
    mkdir -p "$CRISP_TEST_CACHE"
    local log=$CRISP_TEST_CACHE/apt.log
    : >"$log"
    (
        flock 9
        export DEBIAN_FRONTEND=noninteractive
        local opts=(-y -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 --no-install-recommends)
        # An interrupted dpkg of an earlier run is finished first.
        quietly "$log" dpkg --configure -a
        # Lists first: with those that an image came with, apt finds what was current at the release
        # (Rust 1.85 instead of 1.96), or what the archive no longer has. A machine without a network
        # may have all it needs in its cache.
        apt-get -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 update >>"$log" 2>&1 || say "apt-get update failed; going on with the lists there are"
        quietly "$log" apt-get "${opts[@]}" install "${missing[@]}"
        printf '%s\n' "${missing[@]}" >>"$CRISP_TEST_CACHE/apt-installed"
    ) 9>"$CRISP_TEST_CACHE/apt.lock"
}

# apt_source NAME SUITE DIR: the upstream tarball of a Debian source package, into DIR. The
# machine's own apt sources are asked, as sources, in a state directory of their own: the
# machine's settings stay as they are.
apt_source() {
    local name=$1 suite=$2 dir=$3 log=$CRISP_TEST_CACHE/apt-source.$1.log state
    : >"$log"
    state=$(mktemp -d "$CRISP_TEST_CACHE/apt-source.XXXXXX")
    mkdir -p "$state/lists/partial" "$state/parts" "$dir"
    apt_uris "$suite" >"$state/parts/source.sources"
    local opts=(-q -o Acquire::Retries=3 -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$state/parts"
        -o Dir::State::lists="$state/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
        -o APT::Sandbox::User=root)
    quietly "$log" apt-get "${opts[@]}" update
    # The packaging files may be refused where only the upstream tarball is served: what counts is
    # whether the tarball is here afterwards.
    (cd "$dir" && apt-get "${opts[@]}" source --download-only "$name" >>"$log" 2>&1) || true
    rm -rf "$state"
    ls "$dir"/"${name%%=*}"_*.orig.tar.* >/dev/null 2>&1 || { tail -n 20 "$log" >&2; die "no upstream tarball of $name"; }
}

# The main archive of this machine as a deb-src entry for one suite.
apt_uris() {
    local uri
    uri=$(apt-get indextargets --format '$(REPO_URI) $(SUITE)$(CODENAME)' 2>/dev/null |
        awk '$2 !~ /security|updates|backports/ { print $1; exit }')
    [ -n "$uri" ] || die "this machine has no apt source for Debian's main archive"
    printf 'Types: deb-src\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' "$uri" "$1"
}

# with_lock NAME COMMAND...: one at a time per name, over processes; released by the kernel if the
# holder dies.
with_lock() {
    local name=$1
    shift
    mkdir -p "$CRISP_TEST_CACHE/locks"
    (
        flock 8
        "$@"
    ) 8>"$CRISP_TEST_CACHE/locks/$name"
}
