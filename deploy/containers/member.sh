#!/bin/sh
# Join a server by the token in a file, unless this node has joined before, and work for it.
#   member.sh [OPTION]...     what `fedloom client` takes
# FEDLOOM_IDENTITY: folder the identity is kept in. JOIN_TOKEN_FILE: the token.
# ALLOW: workloads the node will run, separated by spaces; WORKLOAD=FOLDER gives one its data.
set -eu
: "${FEDLOOM_IDENTITY:?folder the identity is kept in}"

if [ ! -s "$FEDLOOM_IDENTITY/server.json" ]; then
    : "${JOIN_TOKEN_FILE:?the join token}"
    (
        set --
        for workload in ${ALLOW:-}; do
            set -- "$@" --allow "$workload"
        done
        exec fedloom join - --identity "$FEDLOOM_IDENTITY" "$@" <"$JOIN_TOKEN_FILE"
    )
fi
exec fedloom client "$@"
