#!/bin/sh
# A program that reports its progress: backbeat run --agent a1 --task copy --budget 8 -- examples/status.sh
# It also runs without backbeat.
status=${BACKBEAT_STATUS_FILE:-/dev/null}
for step in 1 2 3 4; do
    echo "{\"progress\": 0.$((step * 2)), \"notes\": \"step $step of 4\"}" >>"$status"
    sleep "${STEP_SECONDS:-1}"
done
echo '{"state": "review", "progress": 1}' >>"$status"
