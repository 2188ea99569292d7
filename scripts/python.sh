# Chooses the Python of scripts that may run on a GPU machine. Sourced, not run.

# Sets `python`: $BERTPIPE_PYTHON if set, else a python3 with CUDA torch and all dependencies, else
# that of .venv. Arguments: further packages that python3 needs.
choose_python() {
  local missing
  python="${BERTPIPE_PYTHON:-}"
  if [ -z "$python" ] && [ ! -d .venv ] && missing="$(python3 - "$@" 2>/dev/null <<'END'
import sys
from importlib.util import find_spec
import torch
assert torch.cuda.is_available()
needed = ("accelerate", "datasets", "pyarrow", "pydantic", "transformers", "typer", *sys.argv[1:])
print(*(name for name in needed if find_spec(name) is None))
END
)"; then
    # A GPU machine that has all dependencies: a .venv would download them again.
    if [ -z "$missing" ]; then
      python=python3
    else
      echo "python3 has torch for a GPU, but lacks $missing: installing everything into .venv instead." >&2
    fi
  fi
  if [ -z "$python" ]; then
    scripts/setup test
    python=.venv/bin/python
  fi
}
