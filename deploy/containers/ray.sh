#!/bin/sh
# Start a Ray node whose callers must show the token in a file. The head makes the token once; the others wait for it.
#   ray.sh OPTION...     what `ray start` takes
# RAY_AUTH_TOKEN_PATH: the file, on a volume that the cluster's containers share.
set -eu
: "${RAY_AUTH_TOKEN_PATH:?file of the token of the cluster}"
export RAY_AUTH_MODE=token
if [ "${1:-}" = --head ] && [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    (umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH.new")
    mv "$RAY_AUTH_TOKEN_PATH.new" "$RAY_AUTH_TOKEN_PATH"
fi
until [ -s "$RAY_AUTH_TOKEN_PATH" ]; do
    sleep 1
done
exec ray start "$@"
