#!/usr/bin/env bash
# Put fedloom on a device and have systemd keep its client running. x86-64 and 64-bit ARM, Python 3.11 or newer.
#   sudo deploy/edge/install.sh --server HOST:PORT --token-file FILE [--name NAME]
#   sudo deploy/edge/install.sh --no-service         only the programs, such as for a Ray node
#   sudo deploy/edge/install.sh --uninstall          keeps /etc/fedloom
# --from WHAT: what pip installs, a wheel or a folder with the source; by default the checkout this script is in.
# --dry-run: print what would be done, and do nothing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source_code=$(cd "$here/../.." && pwd)
server='' token_file='' name='' service=yes dry_run='' uninstall='' python=${PYTHON:-python3}

fail() {
    echo "install.sh: $*" >&2
    exit 2
}

run() {
    if [[ $dry_run ]]; then
        printf '+'
        printf ' %q' "$@"
        echo
    else
        "$@"
    fi
}

write() { # FILE MODE < content
    if [[ $dry_run ]]; then
        echo "+ write $1 (mode $2)"
        sed 's/^/|   /'
    else
        install -m "$2" /dev/stdin "$1"
    fi
}

value() { [[ $# -ge 2 && -n $2 ]] || fail "$1 needs a value"; }

while [[ $# -gt 0 ]]; do
    case $1 in
        --server) value "$@"; server=$2; shift ;;
        --token-file) value "$@"; token_file=$2; shift ;;
        --name) value "$@"; name=$2; shift ;;
        --from) value "$@"; source_code=$2; shift ;;
        --no-service) service='' ;;
        --dry-run) dry_run=yes ;;
        --uninstall) uninstall=yes ;;
        -h | --help) sed -n '2,7s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) fail "unknown option $1; --help shows those there are" ;;
    esac
    shift
done

[[ $dry_run || $EUID -eq 0 ]] || fail "must be root: it makes a user, /opt/fedloom and a service"

if [[ $uninstall ]]; then
    run systemctl disable --now fedloom-client.service || true
    run rm -f /etc/systemd/system/fedloom-client.service
    run rm -rf /opt/fedloom /var/cache/fedloom
    echo "removed; /etc/fedloom and /var/lib/fedloom are kept"
    exit 0
fi

case $(uname -s)/$(uname -m) in
    Linux/x86_64 | Linux/aarch64) ;;
    *) fail "expected Linux on x86_64 or aarch64 (a 64-bit system; a 32-bit one has no torch), got $(uname -sm)" ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "needs Python 3.11 or newer; set PYTHON="
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "Python's venv is missing: apt-get install python3-venv"
[[ -e $source_code ]] || fail "--from $source_code: no such file or folder"
if [[ $service ]]; then
    [[ $server =~ ^[^:[:space:]]+:[0-9]+$ ]] || fail "--server: expected HOST:PORT, got '$server'"
    [[ -s $token_file ]] || fail "--token-file: expected a file with the server's token, got '$token_file'"
    [[ $name =~ ^[A-Za-z0-9._-]*$ ]] || fail "--name: expected letters, digits, dots and dashes, got '$name'"
fi

constraints=()
[[ -f $source_code/requirements.lock ]] && constraints=(--constraint "$source_code/requirements.lock")
run "$python" -m venv --clear /opt/fedloom
run /opt/fedloom/bin/python -m pip install --quiet "${constraints[@]}" "$source_code"
[[ $service ]] || exit 0

id -u fedloom >/dev/null 2>&1 || run useradd --system --home-dir /var/lib/fedloom --shell /usr/sbin/nologin fedloom
run install -d -m 0755 /etc/fedloom
run install -m 0600 "$token_file" /etc/fedloom/token
write /etc/fedloom/client.env 0644 <<ENV
FEDLOOM_SERVER=$server
FEDLOOM_NODE=${name:-$(uname -n)}
ENV
run install -m 0644 "$here/fedloom-client.service" /etc/systemd/system/fedloom-client.service
if command -v systemctl >/dev/null || [[ $dry_run ]]; then
    run systemctl daemon-reload
    run systemctl enable --now fedloom-client.service
    run systemctl --no-pager --lines=0 status fedloom-client.service
else
    echo "no systemd here: start /opt/fedloom/bin/fedloom client by what there is, as user fedloom"
fi
