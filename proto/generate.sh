#!/usr/bin/env bash
# Generate the wire code; with --check, fail if what is committed differs from what the sources give.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
out=src
if [ "${1:-}" = --check ]; then out=$(mktemp -d); trap 'rm -rf "$out"' EXIT; fi
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -Iproto --python_out="$out" --grpc_python_out="$out" \
  --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" proto/fedloom/proto/v1/*.proto
if [ "${1:-}" = --check ]; then
  for file in "$out"/fedloom/proto/v1/*; do
    cmp "$file" "src/fedloom/proto/v1/$(basename "$file")" || { echo "run proto/generate.sh and commit" >&2; exit 1; }
  done
fi
