#!/bin/sh
# Join a server by the token in a file, once it is there, unless this node has joined before; and work for it.
#   member.sh [OPTION]...     what `fedloom client` takes
# FEDLOOM_IDENTITY: folder the identity is kept in. JOIN_TOKEN_FILE: the token.
# ALLOW: workloads the node will run, separated by spaces; WORKLOAD=FOLDER gives one its data.
set -eu
: "${FEDLOOM_IDENTITY:?folder the identity is kept in}"

if [ ! -s "$FEDLOOM_IDENTITY/server.json" ]; then
    : "${JOIN_TOKEN_FILE:?file with the join token}"
    [ -s "$JOIN_TOKEN_FILE" ] || echo "waiting for a join token in $JOIN_TOKEN_FILE"
    until [ -s "$JOIN_TOKEN_FILE" ]; do
        sleep 1
    done
    (
        set --
        for workload in ${ALLOW:-}; do
            set -- "$@" --allow "$workload"
        done
        exec fedloom join - --identity "$FEDLOOM_IDENTITY" "$@" <"$JOIN_TOKEN_FILE"
    )
fi
exec fedloom client "$@"
