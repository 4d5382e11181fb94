#!/bin/sh
# Join a Ray cluster without offering it CPUs, wait until it has those asked for, and run an experiment on it.
#   run-on-cluster.sh TARGET [OPTION]...     what `fedloom run` takes
# RAY_HEAD: host:port of the head. RAY_WORKERS: agents, of one CPU each. PATIENCE_S: seconds to wait for both.
# RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH: the cluster's token, as Ray reads it.
set -eu
: "${RAY_HEAD:?the head of the cluster, host:port}"
: "${RAY_WORKERS:=2}"
: "${PATIENCE_S:=120}"

give_up=$(($(date +%s) + PATIENCE_S))
until ray start --address="$RAY_HEAD" --num-cpus=0 --disable-usage-stats >/tmp/ray-start.log 2>&1; do
    if [ "$(date +%s)" -ge "$give_up" ]; then
        cat /tmp/ray-start.log >&2
        echo "no Ray head answered at $RAY_HEAD within $PATIENCE_S s" >&2
        exit 1
    fi
    sleep 1
done

python3 - "$RAY_WORKERS" "$give_up" <<'PYTHON'
import sys, time
import ray

workers, give_up = int(sys.argv[1]), float(sys.argv[2])
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
while (there := ray.cluster_resources().get("CPU", 0.0)) < workers:
    if time.time() > give_up:
        sys.exit(f"the Ray cluster has {there:g} CPU; {workers} workers of 1 CPU each were asked for (RAY_WORKERS)")
    time.sleep(0.5)
PYTHON

exec fedloom run "$@" --ray-address auto --workers "$RAY_WORKERS"
