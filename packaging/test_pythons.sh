#!/usr/bin/env bash
# The unit and fuzz tests with every CPython from 3.10 to 3.14 that this machine has, one after the other, each in an
# environment of its own (build/pythons/X.Y) with gopher built and installed as users install it.
# A version that is not here is named, and fails nothing; that none is here fails.
set -euo pipefail
cd "$(dirname "$0")/.."

# pyenv's stand in no PATH.
find_python() {
    local candidate
    for candidate in "$(command -v "python$1" || true)" ~/.pyenv/versions/"$1".*/bin/python"$1"; do
        if [[ -n $candidate ]] && "$candidate" -c "import sys, venv, ensurepip
sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
}

place=$PWD/build/pythons
rm -rf "$place/source" "$place/tests"
mkdir -p "$place/source" "$place/tests"
# Built in a copy: what Cython writes is the same for all versions, and the tree in use stays as it is.
tar -c --exclude='*.so' --exclude=__pycache__ gopher packaging setup.py pyproject.toml README.md LICENSE | tar -x -C "$place/source"
# The tests without the source tree beside them, so that only what is installed can be imported.
cp -r tests docs packaging pyproject.toml "$place/tests"
printf '[build_ext]\nparallel = %s\n' "$(nproc)" >"$place/parallel.cfg"
export DIST_EXTRA_CONFIG=$place/parallel.cfg
export GOPHER_CORPUS=${GOPHER_CORPUS:-$PWD/../shared/corpus}
tested=() missing=()
for version in 3.10 3.11 3.12 3.13 3.14; do
    python=$(find_python "$version")
    if [[ -z $python ]]; then
        missing+=("$version")
        continue
    fi
    begin=$SECONDS
    printf '\n== Python %s: %s\n' "$version" "$python"
    own=$place/$version/bin/python
    [[ -x $own ]] || "$python" -m venv "$place/$version"
    # A wheel, so that a second run installs what has been built again, and the test extra with it.
    rm -rf "$place/wheel"
    "$own" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$place/wheel" "$place/source"
    wheel=("$place"/wheel/*.whl)
    "$own" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "${wheel[0]}"
    "$own" -m pip install --quiet --disable-pip-version-check "${wheel[0]}[test]"
    "$own" -I packaging/smoke.py
    (cd "$place/tests" && "$own" -m pytest -q tests/unit tests/fuzz)
    tested+=("$version in $((SECONDS - begin)) s")
done
printf '\ntested with Python:'
printf ' %s;' "${tested[@]}"
printf ' not on this machine: %s\n' "${missing[*]:-none}"
[[ ${#tested[@]} -gt 0 ]]
