#!/bin/sh
# Makes .venv and installs packages into it: `sh install.sh run` those of the service, `dev` also those of `make test`
# and `make check`, `ci` all.
#
# .venv/installed is a copy of the requirements that are installed, or "unfinished" during an installation. A .venv that
# cannot work is made again. PYTHON names another Python than python3. uv is used if it is on the PATH.
set -eu
unset CDPATH PIP_PREFIX PIP_PYTHON PIP_ROOT PIP_TARGET
export PIP_USER=0
cd "$(dirname "$0")"
exec >&2 # `make token` prints only the token on stdout

PYTHON=${PYTHON:-}
uv=$(command -v uv) || uv=
stamp=.venv/installed
service=$(cat requirements.txt requirements-embedded.txt && echo "# run")
tests=$service$(cat requirements-otel.txt requirements-mcp.txt requirements-dev.txt)
case ${1:-} in
    run) wanted=$service file=requirements-embedded.txt size=180 ;;
    dev) wanted=$tests file=requirements-dev.txt size=640 ;;
    ci) wanted=$tests$(cat requirements-ci.txt) file=requirements-ci.txt size=1100 ;;
    *) echo "usage: sh install.sh run|dev|ci" && exit 2 ;;
esac

fail() { printf '%s\n' "$@"; exit 1; }

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

# Prints the folder in which .venv was made. Its programs work nowhere else.
made_in() {
    (
        # Older Pythons put the path between quotes as it is, so the shell would run `$(…)` in it.
        VIRTUAL_ENV=$(sed -n 's/^ *\(export \)*VIRTUAL_ENV="\(.*\)"$/\2/p' .venv/bin/activate)
        [ -n "$VIRTUAL_ENV" ] || { set +u && . .venv/bin/activate; }
        cd "$VIRTUAL_ENV" && pwd -P
    ) 2>/dev/null || true
}

# Prints why .venv has to be made again, or "new", or nothing.
fault() {
    version=$(version_of .venv/bin/python)
    set -- .venv/lib/*"$version"*/site-packages
    if [ ! -e .venv/bin ]; then echo new
    elif [ ! -x .venv/bin/python ]; then echo "its Python is gone"
    elif [ -z "$version" ]; then echo "its Python does not run"
    elif [ -n "$PYTHON" ] && [ "$(version_of "$PYTHON")" != "$version" ]; then echo "its Python is $version, not $PYTHON"
    elif [ ! -d "$1" ]; then echo "its Python has become $version"
    elif [ ! -e .venv/pyvenv.cfg ] || [ ! -e .venv/bin/activate ] || [ "$installed" = unfinished ]; then
        echo "an installation was interrupted"
    elif [ "$(made_in)" != "$(cd .venv && pwd -P)" ]; then echo "it was made in another folder"
    else case $version in 2.* | 3.? | 3.10) echo "its Python is $version, and 3.11 is needed" ;; esac
    fi
}

# Sets `installed` and `reason`, and ends the script if there is nothing to do.
look() {
    installed=$(cat $stamp 2>/dev/null) || installed=nothing
    reason=$(fault)
    [ -n "$reason" ] || case $installed in "$wanted"*) exit 0 ;; esac
}

# Sets `python` to one that can make .venv, and `refused` to those before it that cannot.
find_python() {
    modules="venv, ensurepip.__main__" # Debian may leave the directory
    [ -z "$uv" ] || modules=venv
    check="import sys
if sys.version_info < (3, 11): sys.exit('is Python %d.%d' % sys.version_info[:2])
try: import $modules
except ImportError: sys.exit('has no venv (on Debian: apt install python%d.%d-venv)' % sys.version_info[:2])"
    PATH=${PATH#"${VIRTUAL_ENV:-none}/bin:"} # it may be .venv itself
    set -- python3 python3.13 python3.12 python3.11 python3.14
    [ ! -e .venv/pyvenv.cfg ] || set -- .venv/bin/python "$@" # it has perhaps been chosen
    if [ -n "$PYTHON" ]; then set -- "$PYTHON"
    elif [ -n "$uv" ]; then set -- "$@" "$(uv python find '>=3.11' 2>/dev/null)"
    fi
    refused=
    for python in "$@"; do
        answer=$("$python" -c "$check" 2>&1) && return
        case $answer in
            "is Python "* | "has no venv "*) ;;
            *) if [ -n "$PYTHON" ]; then answer="does not run"; else continue; fi ;;
        esac
        [ "$python" = .venv/bin/python ] || refused="$refused$python $answer; "
    done
    fail "${refused}Python 3.11 or newer is needed. Install one, or name it with PYTHON=, and repeat the command."
}

# The lock is that of an open file, which `python` shares, so it ends with this script.
wait_for_another_installation() {
    exec 9<install.sh
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || {
        echo "Waiting for another installation in this folder."
        "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    }
}

# Says what follows, before the silence of the programs.
announce() {
    if [ -n "$reason" ]; then
        [ "$reason" = new ] || echo "Making .venv again: $reason."
        [ -z "$refused" ] || echo "Using $python, because ${refused%; }."
        installed=nothing
    fi
    case $installed in
        nothing) echo "Installing about $size MB into .venv; this takes a minute." ;;
        "$tests"*) echo "Adding about $((size - 640)) MB to .venv; this takes a minute." ;;
        "$service"*) echo "Adding about $((size - 180)) MB to .venv; this takes a minute." ;;
        *) echo "Updating .venv; this takes up to a minute." ;;
    esac
}

make_venv() {
    output=$("$python" -m venv --clear ${uv:+--without-pip} "$(cd .venv && pwd -P)" 2>&1) ||
        fail "$output" "$python cannot make .venv. Repeat the command when the error above is mended."
}

install() {
    # The markers of requirements cannot tell musl from glibc, and there is no wheel for musl.
    libc=$(.venv/bin/python -c 'import platform; print(platform.system() + platform.libc_ver()[0])')
    case $1-$libc in
        run-Linuxglibc | run-Darwin* | dev-* | ci-*) ;;
        *) file=requirements.txt && echo "There is no embedded PostgreSQL for this system: set DATABASE_URL." ;;
    esac
    echo unfinished >$stamp
    if [ -n "$uv" ]; then set -- uv pip install --quiet --python .venv/bin/python
    else
        .venv/bin/python -c 'import pip' 2>/dev/null || .venv/bin/python -m ensurepip >/dev/null 2>&1 || true
        set -- .venv/bin/python -m pip install --quiet --disable-pip-version-check
    fi
    output=$("$@" -r "$file" 2>&1) || report
    names=$(sed -n 's/^\([A-Za-z0-9_.-]*\).*==[^;]*$/\1/p' requirements.txt) # those without a marker
    output=$(.venv/bin/python -c "import sys, importlib.metadata as installed
try: [*map(installed.version, sys.argv[1:])]
except ImportError as e: sys.exit(f'{e} in .venv. Look for target, prefix, root or dry-run in the settings of pip or uv.')
" $names 2>&1) || report
    printf '%s\n' "$wanted" >$stamp.new
    mv $stamp.new $stamp
}

# Says why the packages were not installed, in one line if the network is the reason.
report() {
    rm -f $stamp
    case $output in *"connection broken by"* | *"Failed to fetch"*)
        reason=$(printf '%s\n' "$output" |
            sed -n "s/^ *cause: //p; s/<[^>]*>: //; s/.*connection broken by '\(.*\)': .*/\1/p" | tail -n 1)
        fail "The package index cannot be reached${uv:+ by uv} ($reason). Repeat the command when it can." ;;
    esac
    fail "$output" "The packages are not installed. Repeat the command when the error above is mended."
}

look
python=.venv/bin/python
[ -z "$reason" ] || find_python
wait_for_another_installation
look
mkdir -p .venv 2>/dev/null || true
[ -d .venv ] && [ -w .venv ] || fail "This account cannot write .venv here. Remove .venv if it is a file or belongs to \
another account (sudo rm -r .venv), or use a folder of your own, and repeat the command."
announce
[ -z "$reason" ] || make_venv
install "$1"
