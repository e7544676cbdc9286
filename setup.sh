#!/usr/bin/env bash
# Gets everything the build and the tests need onto this machine, into this folder. Safe to run again: what is there
# already is kept, and a second run takes seconds.
#
#   ./setup.sh          libtorch, for building and running
#   ./setup.sh --test   also the Python packages of the independent test peers
#
# libtorch is looked for in this order:
#   1. LIBTORCH, a folder with lib/libtorch_cpu.so (a libtorch distribution, or the `torch` folder of a PyTorch)
#   2. a PyTorch of the right version that `python3` can import (a Jetson's own wheel, say)
#   3. the pinned PyPI wheel, installed into .venv
set -euo pipefail
cd "$(dirname "$0")"

TORCH_SERIES=2.11            # what tch 0.24 binds
TORCH_VERSION=2.11.0
# What libtorch's CPU half of that wheel loads besides the C and C++ runtimes. The GPU half needs all of the wheel's
# dependencies; they are installed only where there is a GPU.
CPU_LIBRARIES=(nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
# The crate whose package carries TensorRT's headers (never built), and TensorRT's own small runtime (x86_64 and aarch64).
TENSORRT_HEADERS=trtx-sys@0.9.1
TENSORRT_LEAN=tensorrt-lean-cu12-libs==11.4.0.106
# The run-time compiler of the CUDA that this PyTorch is built with: 90 MB to download.
NVRTC=nvidia-cuda-nvrtc==13.0.88
TEST_PACKAGES=(cyclonedds==11.0.1 mcap==1.6.0 mcap-ros2-support==0.6.0 numpy==2.2.6 onnx==1.23.2 onnxruntime==1.23.2
    opencv-python-headless==4.11.0.86 pillow==12.1.1 rosbags==0.11.9
    # The makers of LeRobot's tables and videos, and an ffmpeg program: 50, 37 and 29 MB to download. These
    # are the newest that Python 3.10 can have.
    pyarrow==25.0.1 av==17.1.0 imageio-ffmpeg==0.6.0)

say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }
die() { printf '\033[1m[setup]\033[0m %s\n' "$*" >&2; exit 1; }

with_tests=false
[ "${1:-}" = "--test" ] && with_tests=true

command -v cargo >/dev/null || [ -x "$HOME/.cargo/bin/cargo" ] ||
    die "cargo is not there: install Rust 1.89 or newer (rustup, or your distribution's package) and run this again"
command -v c++ >/dev/null || die "no C++ compiler: sudo apt-get install g++"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    die "python3 is missing or older than 3.10: sudo apt-get install python3 python3-venv python3-pip"

# GROOT_GPU=1 prepares for a GPU where there is none yet, in an image for instance.
has_gpu() { [ "${GROOT_GPU:-0}" = 1 ] || [ -e /dev/nvidiactl ] || [ -e /dev/nvhost-gpu ] || [ -e /dev/nvmap ]; }

venv() {
    [ -x .venv/bin/python ] && return
    say "creating the local Python environment .venv"
    python3 -m venv .venv || die "python3 has no venv: sudo apt-get install python3-venv"
}

# install NAME PACKAGE...: once per list of packages
install() {
    local stamp=".venv/.installed-$1"; shift
    if [ "$(cat "$stamp" 2>/dev/null)" != "$*" ]; then
        venv
        say "installing $*"
        .venv/bin/pip install --quiet --disable-pip-version-check "$@" || die "pip could not install: $*"
        printf '%s' "$*" >"$stamp"
    fi
}

torch_folder() { "$1" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null; }
torch_version() { sed -n "s/^__version__ = '\\([0-9.]*\\).*/\\1/p" "$1/version.py" 2>/dev/null || true; }

if [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] ||
        die "LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so; point it at a libtorch or at PyTorch's own folder"
    folder=$LIBTORCH
    say "using your libtorch: LIBTORCH=$LIBTORCH"
elif folder=$(torch_folder python3) && [ "${folder#"$PWD"/}" = "$folder" ] &&
    [[ "$(torch_version "$folder")" == "$TORCH_SERIES".* ]]; then
    say "using the PyTorch $(torch_version "$folder") that python3 imports"
else
    if has_gpu; then
        install torch "torch==$TORCH_VERSION"
    else
        install torch --no-deps "torch==$TORCH_VERSION" "${CPU_LIBRARIES[@]}"
    fi
    folder=$(torch_folder .venv/bin/python) || die "the PyTorch in .venv is broken: remove .venv and run this again"
fi
version=$(torch_version "$folder"; cat "$folder/build-version" 2>/dev/null || true)
[[ -z "$version" || "$version" == "$TORCH_SERIES"* ]] ||
    die "libtorch in $folder is $version; this tree is built for $TORCH_SERIES (see 'Which PyTorch' in README.md)"
# Inside .venv the link is relative, so that the folder can be moved.
target=${folder#"$PWD"/}
if [ "$(readlink .libtorch || true)" != "$target" ]; then
    ln -sfn "$target" .libtorch
    say ".libtorch -> $target"
fi

if $with_tests; then
    install test "${TEST_PACKAGES[@]}"
    install tensorrt-lean --no-deps "$TENSORRT_LEAN"
    install nvrtc --no-deps "$NVRTC"
    # Unpacks the package where build.rs looks for headers; outside this folder, whose lock file has nothing to do with it.
    (cd / && cargo info --quiet "$TENSORRT_HEADERS" >/dev/null) ||
        say "TensorRT's headers could not be fetched: its shim is compiled only if libnvinfer-dev is installed"
fi
if has_gpu; then gpu="with CUDA where the GPU allows"; else gpu="for the CPU (no NVIDIA driver here)"; fi
say "ready: libtorch ${version:-of unknown version} $gpu"
