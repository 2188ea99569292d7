# Chooses the Python of scripts that may run on a GPU machine. Sourced, not run.

# Sets `python`: $BERTPIPE_PYTHON if set, else a python3 with CUDA torch and all dependencies, else
# that of .venv. Arguments: further packages that python3 needs.
choose_python() {
  local missing
  python="${BERTPIPE_PYTHON:-}"
  if [ -z "$python" ] && [ ! -d .venv ] && missing="$(python3 - "$@" 2>/dev/null <<'END'
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
import torch

assert torch.cuda.is_available()
dependencies = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
for name in [re.split(r"[^\w.-]", text)[0] for text in dependencies] + sys.argv[1:]:
    try:
        version(name)
    except PackageNotFoundError:
        print(name, end=" ")
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
