#!/usr/bin/env bash
# Put fedloom on a device, join a server, and have systemd keep the client running. x86-64 and 64-bit ARM, Python 3.11.
#   sudo deploy/edge/install.sh --token-file FILE [--allow WORKLOAD[=FOLDER]]...    FILE - is stdin
#   sudo deploy/edge/install.sh                      only newer programs; the device stays the node it is
#   sudo deploy/edge/install.sh --no-service         only the programs, such as for a Ray node
#   sudo deploy/edge/install.sh --uninstall          keeps /etc/fedloom and the identity
# --from WHAT: what pip installs, a wheel or a folder with the source; by default the checkout this script is in.
# --dry-run: print what would be done, and do nothing.
# TORCH_INDEX=ADDRESS, the index of CPU builds that PyTorch's install page names, spares an x86-64 device without a GPU the CUDA libraries.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source_code=$(cd "$here/../.." && pwd)
token_file='' allow=() service=yes dry_run='' uninstall='' python=${PYTHON:-python3}
identity=/var/lib/fedloom/node policy=/etc/fedloom/policy.toml

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

value() { [[ $# -ge 2 && -n $2 ]] || fail "$1 needs a value"; }

while [[ $# -gt 0 ]]; do
    case $1 in
        --token-file) value "$@"; token_file=$2; shift ;;
        --allow) value "$@"; allow+=(--allow "$2"); shift ;;
        --from) value "$@"; source_code=$2; shift ;;
        --no-service) service='' ;;
        --dry-run) dry_run=yes ;;
        --uninstall) uninstall=yes ;;
        -h | --help) sed -n '2,9s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) fail "unknown option $1; --help shows those there are" ;;
    esac
    shift
done

[[ $dry_run || $EUID -eq 0 ]] || fail "must be root: it makes a user, /opt/fedloom and a service"

if [[ $uninstall ]]; then
    run systemctl disable --now fedloom-client.service || true
    run rm -f /etc/systemd/system/fedloom-client.service
    run rm -rf /opt/fedloom /var/cache/fedloom
    echo "removed; /etc/fedloom and /var/lib/fedloom are kept: the device is still a member"
    exit 0
fi

case $(uname -s)/$(uname -m) in
    Linux/x86_64 | Linux/aarch64) ;;
    *) fail "expected Linux on x86_64 or aarch64 (a 64-bit system; a 32-bit one has no torch), got $(uname -sm)" ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "needs Python 3.11 or newer; set PYTHON="
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "Python's venv is missing: apt-get install python3-venv"
[[ -e $source_code ]] || fail "--from $source_code: no such file or folder"
member=''
[[ -e $identity/server.json ]] && member=yes
if [[ $service && -z $member ]]; then
    [[ $token_file == - || -s $token_file ]] || fail "--token-file: expected a file with a join token, got '$token_file'"
fi
if [[ $member && ($token_file || ${#allow[@]} -gt 0) ]]; then
    fail "this device has joined already: edit $policy to change what it allows, move $identity away to join anew"
fi

constraints=()
locked=$source_code/requirements.lock
if [[ -f $locked ]]; then
    made=$(mktemp -d)
    trap 'rm -rf "$made"' EXIT
    "$python" "$source_code/deploy/dependencies.py" versions >"$made/versions.txt"
    constraints=(--constraint "$made/versions.txt")
fi
if [[ $service && $member ]] && command -v systemctl >/dev/null; then run systemctl stop fedloom-client.service; fi
run "$python" -m venv --clear /opt/fedloom
if [[ ${TORCH_INDEX:-} ]]; then
    run /opt/fedloom/bin/python -m pip install --quiet "${constraints[@]}" \
        --extra-index-url "$TORCH_INDEX" torch
fi
if [[ -f $locked ]]; then # what the lock has hashes for is installed by them, the rest by its version
    run /opt/fedloom/bin/python -m pip install --quiet --dry-run --report "$made/report.json" "${constraints[@]}" \
        "$source_code"
    run sh -c "'$python' '$source_code/deploy/dependencies.py' locked '$made/report.json' >'$made/locked.txt'"
    run /opt/fedloom/bin/python -m pip install --quiet --no-deps --require-hashes --requirement "$made/locked.txt"
fi
run /opt/fedloom/bin/python -m pip install --quiet "${constraints[@]}" "$source_code"
[[ $service ]] || exit 0

id -u fedloom >/dev/null 2>&1 || run useradd --system --home-dir /var/lib/fedloom --shell /usr/sbin/nologin fedloom
run install -d -m 0755 /etc/fedloom
run install -d -m 0700 -o fedloom -g fedloom /var/lib/fedloom
if [[ -z $member ]]; then
    join=(runuser -u fedloom -- /opt/fedloom/bin/fedloom join - --identity "$identity" "${allow[@]}")
    if [[ $token_file == - || $dry_run ]]; then run "${join[@]}"; else "${join[@]}" <"$token_file"; fi
    [[ -e $policy ]] || run install -m 0644 "$identity/policy.toml" "$policy"
    run rm -f "$identity/policy.toml"
fi
run install -m 0644 "$here/fedloom-client.service" /etc/systemd/system/fedloom-client.service
if command -v systemctl >/dev/null || [[ $dry_run ]]; then
    run systemctl daemon-reload
    run systemctl enable fedloom-client.service
    run systemctl restart fedloom-client.service
    run systemctl --no-pager --lines=0 status fedloom-client.service
else
    echo "no systemd here: start /opt/fedloom/bin/fedloom client --identity $identity --policy $policy as user fedloom"
fi
