#!/bin/sh
# What an installation takes: packages, megabytes and the time of its import, as a Markdown table.
#
#     scripts/install_size.sh FLATLM_WHEEL [LLAMA_CPP_PYTHON] [ONNXRUNTIME_GENAI]
#
# Each row is a fresh virtual environment without pip, filled by `pip install` (bytecode included); AArch64 is what pip
# would install on 64-bit Raspberry Pi OS with the same Python, wheels only. Import: median of 5 starts less those of an
# empty program, files in the page cache. The last two arguments are what pip is to install for them, for instance a
# wheel that was built before: llama-cpp-python is compiled where it has no wheel, which takes minutes.
set -eu

[ -f "${1-}" ] || {
    echo "usage: scripts/install_size.sh FLATLM_WHEEL [LLAMA_CPP_PYTHON] [ONNXRUNTIME_GENAI]" >&2
    exit 2
}
llama=${2:-llama-cpp-python} genai=${3:-onnxruntime-genai}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$(python3 -c 'import sys; print("{}.{}".format(*sys.version_info))')
pip="python3 -m pip --disable-pip-version-check -q"

megabytes() { # FOLDER
    du -sk "$1" | awk '{ printf "%.1f", $1 * 1024 / 1e6 }'
}
on_arm() { # ARGUMENTS OF pip install: megabytes, or why not
    rm -rf "$work/arm"
    set -- "$@" --target "$work/arm" --only-binary=:all: --implementation cp --python-version "$version"
    for glibc in 17 24 26 27 28 31 34 35 36; do set -- "$@" --platform "manylinux_2_${glibc}_aarch64"; done
    if $pip install --platform manylinux2014_aarch64 "$@" >"$work/log" 2>&1; then
        rm -rf "$work/arm/bin"
        megabytes "$work/arm"
    else
        echo "no wheel"
    fi
}
seconds() { # STATEMENTS: median of 5 starts of the environment's Python
    python3 - "$work/env/bin/python" "$1" <<'CODE'
import subprocess, sys, time
def start(code):
    begun = time.perf_counter()
    subprocess.run([sys.argv[1], "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun
start(sys.argv[2])
print("{:.2f}".format(sorted(start(sys.argv[2]) for _ in range(5))[2] - sorted(start("") for _ in range(5))[2]))
CODE
}
row() { # NAME STATEMENTS ARGUMENTS OF pip install
    echo "install_size: $1" >&2
    name=$1 statements=$2
    shift 2
    rm -rf "$work/env"
    python3 -m venv --without-pip "$work/env"
    $pip --python "$work/env/bin/python" install "$@"
    packages=$work/env/lib/python$version/site-packages
    count=$(find "$packages" -maxdepth 1 -name '*.dist-info' | wc -l)
    echo "| $name | $count | $(megabytes "$packages") | $(on_arm "$@") | $(seconds "$statements") |"
}

echo "| package | packages | MB on $(uname -m) | MB on AArch64 | import, s |"
echo "|---|---:|---:|---:|---:|"
ours="from flatlm import LLM; import flatlm.runtime.backends.native, tokenizers, jinja2"
row "flatlm[chat]" "$ours" "$1[chat]"
row "flatlm, and of tokenizers only itself" "$ours" --no-deps "$1" numpy tokenizers jinja2 markupsafe
row "llama-cpp-python" "import llama_cpp" "$llama"
row "onnxruntime-genai" "import onnxruntime_genai" "$genai"
