# What the scripts that create a reward's own environment have in common; they source it.
# Expects REPOSITORY, the checkout of blip3o-rl, and PYTHON if the interpreter is to be another than the first that fits.

say() { printf '%s\n' "$*" >&2; }
fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; }

# open_environment FOLDER: makes sure that FOLDER is an environment with a Python that fits.
open_environment() {
    local folder=$1 python= candidate
    if [ ! -f "$REPOSITORY/pyproject.toml" ]; then
        say "error: $REPOSITORY has no pyproject.toml; run this command from a checkout of blip3o-rl"
        exit 1
    fi
    if fits "$folder/bin/python"; then
        return
    fi
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if fits "$candidate"; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        say "error: none of '${PYTHON:-python3.11 python3.12 python3}' is a Python 3.11 or 3.12 with venv; install one, or name it: PYTHON=/path/to/python3.11"
        exit 1
    fi
    say "creating $folder with $("$python" --version)"
    "$python" -m venv --clear "$folder"
}

# install_pinned PYTHON LIST: the packages of LIST, which names every version, and this package.
install_pinned() {
    local python=$1 list=$2
    if "$python" -m pip install --quiet uv && "$python" -m uv pip install --quiet --python "$python" --no-deps -r "$list"; then
        say "installed with uv"
    else
        say "uv cannot reach the packages here; pip does the same more slowly"
        "$python" -m pip install --quiet --no-deps -r "$list"
    fi
    "$python" -m pip install --quiet --no-deps --no-build-isolation -e "$REPOSITORY"
}
