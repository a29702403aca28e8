# Sourced by tools/demo and tools/test: installs missing Debian or Ubuntu packages and builds.  Not a command.

MQ_BUILD_PACKAGES="gcc g++ cmake ninja-build pkg-config libc6-dev libssl-dev libzstd-dev libcjson-dev libpcre2-dev
    libutf8proc-dev libopenblas-openmp-dev"
MQ_TEST_PACKAGES="check clang libclang-rt-dev libomp-dev python3 python3-venv coreutils util-linux"

say() { printf '%s\n' "== $*"; }

# Install those of the named packages that are missing, through apt as root or through sudo, after listing them.
install_packages() {
    local missing="" package as_root=""
    for package in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
    done
    if [ -z "$missing" ]; then
        return 0
    fi
    say "installing packages:$missing"
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "these packages are missing, and neither root nor sudo is at hand:$missing" >&2
            return 1
        fi
        as_root="sudo"
    fi
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y $missing
}

# build_in DIR TARGET [cmake options]: configure, build what changed.
build_in() {
    local dir=$1 target=$2
    shift 2
    # An unchanged configuration is a no-op for cmake; the options may differ from the last run's.
    cmake -S . -B "$dir" -G Ninja "$@" >"$dir.configure.log" 2>&1 || {
        cat "$dir.configure.log"
        return 1
    }
    ninja -C "$dir" "$target"
}
