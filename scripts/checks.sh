# Functions that scripts/check and scripts/test share. Sourced, not run.

run_check() {
  echo "==> $*"
  .venv/bin/"$@"
}

run_static_checks() {
  run_check ruff format --check .
  run_check ruff check .
  run_check mypy
  run_check lint-imports
}

run_tests() {
  # Small builds spend most of their time on fsync, which costs nothing in memory.
  local free
  free="$(df --output=avail --block-size=1G /dev/shm 2>/dev/null | tail -n 1 || true)"
  if [ "${free:-0}" -ge 8 ]; then
    TMPDIR="$(mktemp -d /dev/shm/bertpipe-tests.XXXXXX)"
    export TMPDIR
    trap 'rm -rf "$TMPDIR"' EXIT
  fi
  # One worker more than cores: many tests wait for other processes or the network.
  # loadgroup sends single tests to workers; tests/conftest.py groups those that share a fixture.
  run_check python -m pytest --numprocesses "$(($(nproc 2>/dev/null || echo 2) + 1))" \
    --dist loadgroup --no-loadscope-reorder "$@"
}
