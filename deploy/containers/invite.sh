#!/bin/sh
# Ask a server on this machine for a join token and leave it in a file. Ends when the token is there.
#   invite.sh NAME FILE     members will be called NAME-1, NAME-2, …
# FEDLOOM_IDENTITY: an administrator's, such as `admin` in the server's state folder.
# USES, TTL: how many may join with it, and how long. PATIENCE_S: seconds to wait for the server.
set -eu
name=${1:?how members will be called} file=${2:?where the token goes}
: "${USES:=100}"
: "${TTL:=1d}"
: "${PATIENCE_S:=120}"

umask 077
give_up=$(($(date +%s) + PATIENCE_S))
until fedloom token create --name "$name" --uses "$USES" --ttl "$TTL" >"$file.new" 2>/tmp/invite.log; do
    if [ "$(date +%s)" -ge "$give_up" ]; then
        cat /tmp/invite.log >&2
        echo "no join token within $PATIENCE_S s" >&2
        exit 1
    fi
    sleep 1
done
mv "$file.new" "$file"
echo "$USES members $name-1, $name-2, … may join within $TTL"
