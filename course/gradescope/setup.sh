#!/usr/bin/env bash
# Gradescope runs this once, when it makes the image: a Python with what the grader needs, and a
# user for students' code, who can read neither submissions nor solutions, and write no results.
set -euo pipefail
root=${AUTOGRADER:-/autograder}                     # another folder, to try it anywhere
if ! command -v python3 >/dev/null || ! python3 -c "import venv, ensurepip" 2>/dev/null; then
    apt-get update && apt-get install -y python3 python3-venv python3-pip
fi
python3 -m venv "$root/venv"
"$root/venv/bin/python" -m pip install -q "torch>=2.9,<2.14" numpy pytest \
    ${PIP_OPTIONS:---extra-index-url https://download.pytorch.org/whl/cpu}
id student >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin student
