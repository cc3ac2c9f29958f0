#!/usr/bin/env bash
# What bench/visit.sh needs besides CuPy, NumPy and pytest, as wheels in a folder: about 20 MB, for a machine that has no
# network.  PYTHON and PLATFORM are that machine's.
#     bench/wheels.sh [FOLDER] [PYTHON] [PLATFORM]
set -eu
folder=${1:-.wheels} python=${2:-3.12} platform=${3:-x86_64}
mkdir -p "$folder"
systems=()
for version in _2_17 2014 _2_24 _2_28; do systems+=(--platform "manylinux${version}_$platform"); done
python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$python" \
    "${systems[@]}" --dest "$folder" \
    'nvmath-python>=1.0,<1.1' 'array-api-compat>=1.16' 'array-api-strict>=2.5' \
    cuda-core cuda-bindings cuda-pathfinder threadpoolctl safetensors
du -sh "$folder"
