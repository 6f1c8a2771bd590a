#!/bin/sh
# Makes the virtual environment in the folder $1 (default .venv) and installs Headrace into it, editable, with the
# versions of constraints.txt. What pip says goes to a log and is shown only when it fails.
set -eu

folder=${1:-.venv}
log=$folder/install.log

# A name on PATH may be a shim that starts nothing (pyenv), so every candidate is run.
find_python() {
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "make: no Python 3.11 or newer${PYTHON:+ at PYTHON=$PYTHON}; install one (Debian, Ubuntu:" >&2
    echo "      apt install python3 python3-venv; macOS: brew install python) or name it: make PYTHON=... test" >&2
    return 1
}

install() {
    if ! "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >>"$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "make: the installation failed; the whole log is in $log" >&2
        exit 1
    fi
}

if ! "$folder/bin/python" -c '' 2>/dev/null; then
    python=$(find_python)
    echo "Making $folder with $("$python" --version) ..."
    if ! "$python" -m venv --clear "$folder"; then
        echo "make: $python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2
        exit 1
    fi
fi

echo "Installing into $folder, once (PyTorch is large: this takes a few minutes) ..."
: >"$log"
install 'pip>=25.1'
install --constraint constraints.txt --group dev --editable '.[guided]'
