#!/usr/bin/env bash
# Fails a change that made a model larger, slower or less accurate.
#
#   ci-gate.sh CANDIDATE.onnx BASELINE.onnx REPORTS [more options of compress verify]
#
# Leaves REPORTS/gate.json, gate.xml (JUnit) and gate.md (a table), and exits with the code of
# `compress verify`: 0 passed, 10 size, 11 parity, 12 accuracy, 13 latency, 14 provider, 2 usage.
set -euo pipefail

if [ "$#" -lt 3 ]; then
    echo "usage: $0 CANDIDATE.onnx BASELINE.onnx REPORTS [OPTIONS]" >&2
    exit 2
fi
candidate=$1 baseline=$2 reports=$3
shift 3
mkdir -p "$reports"
rm -f "$reports"/gate.{json,xml,md}  # of an earlier run in the same folder

code=0
compress verify "$candidate" --baseline "$baseline" \
    --max-latency-regression 3% \
    --json "$reports/gate.json" --junit "$reports/gate.xml" --markdown "$reports/gate.md" \
    "$@" || code=$?

# On a usage error nothing was measured and there is no table.
if [ -n "${GITHUB_STEP_SUMMARY:-}" ] && [ -f "$reports/gate.md" ]; then
    cat "$reports/gate.md" >> "$GITHUB_STEP_SUMMARY"
fi
exit "$code"
