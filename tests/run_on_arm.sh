#!/bin/sh
# Run the kernels once as an ARM processor would: `tests/run_on_arm.sh [FOLDER]`, on Debian or Ubuntu with qemu-user (`apt-get install qemu-user`) and this project's
# Python. Downloads Python, numpy, numba and xxhash for ARM into FOLDER (default: the user's cache), some 100 MB, and finds them there the next time. Changes nothing else.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/modelcodec-arm}
command -v qemu-aarch64 > /dev/null || { echo "qemu-aarch64 is missing: apt-get install qemu-user" >&2; exit 1; }

if [ ! -e "$folder/complete" ]; then
    rm -rf "$folder"
    mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial" "$folder/apt/state" "$folder/wheels" "$folder/system" "$folder/site"
    : > "$folder/apt/status" # as if nothing was installed, so that apt finds everything that Python needs
    debian() {
        apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root -o Debug::NoLocking=1 \
            -o Dir::State="$folder/apt/state" -o Dir::State::status="$folder/apt/status" -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt/cache" "$@"
    }
    debian update
    debian install --yes --download-only --no-install-recommends python3 libstdc++6
    for package in "$folder"/apt/cache/archives/*.deb; do dpkg -x "$package" "$folder/system"; done
    version=$(basename "$(readlink -f "$folder/system/usr/bin/python3")")
    python3 -m pip download --quiet --dest "$folder/wheels" --only-binary=:all: --python-version "${version#python}" \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
        "numpy==$(python3 -c 'import numpy; print(numpy.__version__)')" "numba==$(python3 -c 'import numba; print(numba.__version__)')" \
        "xxhash==$(python3 -c 'import xxhash; print(xxhash.VERSION)')"
    for wheel in "$folder"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$folder/site"; done
    rm -rf "$folder/apt" "$folder/wheels"
    : > "$folder/complete"
fi

here=$(cd "$root" && PYTHONPATH="$root" python3 tests/every_arm.py)
there=$(cd "$root" && PYTHONPATH="$root:$folder/site" PYTHONHOME="$folder/system/usr" XDG_CACHE_HOME="$folder/cache" \
    qemu-aarch64 -L "$folder/system" "$folder/system/usr/bin/python3" tests/every_arm.py)
printf 'here  %s\nARM   %s\n' "$here" "$there"
[ "${here#* }" = "${there#* }" ]
