#!/bin/sh
# What flatlm does on this device, as one JSON file to send back: processor, kernels, speed, parity, temperatures.
#
#     sh device_report.sh [-o FILE] [-p TOKENS] [-n TOKENS] [-r RUNS] MODEL
#
# MODEL: folder of an exported model. -o: default flatlm-report.json. -p, -n, -r: size and runs of the speed tests,
# default 128, 64 and 5. Any POSIX shell (sh, dash, Termux's); needs `flatlm`, or FLATLM="another command".
# Nothing is sent anywhere. User name, host name and serial numbers are not in the file; read it before you share it.
#
# One to ten minutes. What fails is reported under "errors" and the rest goes on; the status is 1 then.
set -u

out=flatlm-report.json prompt=128 write=64 runs=5
usage() { echo "usage: sh device_report.sh [-o FILE] [-p TOKENS] [-n TOKENS] [-r RUNS] MODEL" >&2; exit 2; }
while getopts o:p:n:r: flag; do
    case $flag in
        o) out=$OPTARG ;;
        p) prompt=$OPTARG ;;
        n) write=$OPTARG ;;
        r) runs=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# = 1 ] || usage
model=$1

# shellcheck disable=SC2086 # FLATLM may be several words
flatlm() { command ${FLATLM:-flatlm} "$@"; }
fail() { echo "device_report: $*" >&2; exit 2; }
[ -f "$model/flatlm.json" ] || fail "$model is no exported model: there is no flatlm.json in it"
flatlm --version >/dev/null 2>&1 ||
    fail "\`${FLATLM:-flatlm} --version\` does not run: pip install flatlm, or set FLATLM to the command"
: >"$out" || fail "$out cannot be written"

work=$(mktemp -d) || fail "no temporary folder: set TMPDIR to one that can be written"
sampler=
trap 'rm -rf "$work"; [ -z "$sampler" ] || kill "$sampler" 2>/dev/null' EXIT
trap 'exit 130' INT TERM

# ---- JSON
home=${HOME:-}
[ ${#home} -gt 1 ] || home=/home/nobody
anonymous() { sed "s|$home|~|g"; } # paths name the user
string() { printf '"%s"' "$(printf '%s' "$1" | tr -d '\000-\037' | anonymous | sed 's/\\/\\\\/g; s/"/\\"/g')"; }
member() { # NAME VALUE: one line of the report
    printf '%s%s: %s' "${separator-}" "$(string "$1")" "$2" >>"$work/report"
    separator=',
 '
}
errors=
complain() {
    echo "device_report: $1" >&2
    errors="$errors${errors:+, }$(string "$1")"
}
value_of() { # NAME ARGUMENTS OF flatlm: the JSON in the last line of its output, or null and a complaint
    name=$1
    shift
    flatlm "$@" >"$work/out" 2>"$work/err"
    status=$?
    value=$(tail -n 1 "$work/out" | anonymous)
    case $value in
        '['* | '{'*) ;;
        *)
            value=null
            complain "$name: status $status, $(tail -n 1 "$work/err")"
            ;;
    esac
}

# ---- sysfs: what is not there is left out
first_line() { [ -r "$1" ] && head -n 1 "$1" 2>/dev/null | tr -d '\000'; }
listed() { # NAME=VALUE per line as the members of an object; values are numbers
    tr -d '"\134' | sed -n 's/^\(.*\)=\(-*[0-9][0-9]*\)$/"\1": \2/p' | paste -s -d ',' -
}
sensors() { # temperatures in 1/1000 °C as the zones call themselves, clocks in kHz
    temperatures=$(for zone in /sys/class/thermal/thermal_zone*; do
        echo "${zone##*zone} $(first_line "$zone/type")=$(first_line "$zone/temp")"
    done | listed)
    clocks=$(for core in /sys/devices/system/cpu/cpu[0-9]*; do
        echo "${core##*/}=$(first_line "$core/cpufreq/scaling_cur_freq")"
    done | listed)
    printf '{"seconds": %s, "temperature": {%s}, "khz": {%s}}' "$(($(date +%s) - started))" "$temperatures" "$clocks"
}
of_cores() { # FILE under cpuN: a number per core
    for core in /sys/devices/system/cpu/cpu[0-9]*; do
        echo "${core##*/}=$(first_line "$core/$1")"
    done | listed
}
started=$(date +%s)

# ---- the report
printf '{' >"$work/report"
echo "device_report: machine and kernels" >&2
member report 1
member date "$(string "$(date -u +%Y-%m-%dT%H:%M:%SZ)")"
member flatlm "$(string "$(flatlm --version)")"
member system "$(string "$(uname -srm)")"
release=$(sed -n 's/^PRETTY_NAME="*\([^"]*\)"*$/\1/p' /etc/os-release 2>/dev/null)
member release "$(string "${release:-$(getprop ro.build.version.release 2>/dev/null)}")"
board=$(first_line /proc/device-tree/model)
member board "$(string "${board:-$(getprop ro.product.model 2>/dev/null)}")"
member processor "$(string "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)")"
member soc "$(string "$(getprop ro.soc.model 2>/dev/null)")"
member parts "$(string "$(sed -n 's/^CPU part[^0-9]*//p' /proc/cpuinfo 2>/dev/null | paste -s -d ' ' -)")"
member capacity "{$(of_cores cpu_capacity)}"
member max_khz "{$(of_cores cpufreq/cpuinfo_max_freq)}"
member memory_kb "$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo 2>/dev/null | grep . || echo null)"
member model "$(string "$(basename "$model")")"

value_of doctor doctor --json
member doctor "$value"
case $(uname -m) in
    x86_64 | amd64) tiers="avx512vnni avx2" ;;
    *) tiers="i8mm dotprod neon" ;;
esac
for tier in $tiers; do
    FLATLM_CPU=$tier
    export FLATLM_CPU
    value_of "doctor, $tier" doctor --json
    member "doctor $tier" "$value"
done
unset FLATLM_CPU

measure() { # NAME FLAGS: the speed test, with what the sensors show every two seconds
    echo "device_report: speed, $1" >&2
    sensors >"$work/sensors"
    while sleep 2; do { printf ', ' && sensors; } >>"$work/sensors"; done </dev/null >/dev/null 2>&1 &
    sampler=$!
    title=$1
    shift
    value_of "speed, $title" bench "$model" -o json -p "$prompt" -n "$write" -r "$runs" "$@"
    kill "$sampler" 2>/dev/null
    wait "$sampler" 2>/dev/null
    sampler=
    { printf ', ' && sensors; } >>"$work/sensors"
    member "speed, $title" "{\"tests\": $value, \"sensors\": [$(cat "$work/sensors")]}"
}
measure "default threads"
measure "one thread" -t 1
throttled=$(vcgencmd get_throttled 2>/dev/null) && member throttled "$(string "$throttled")" # Raspberry Pi

echo "device_report: parity, native kernels against numpy" >&2
value_of parity parity "$model" --prompts 1 --tokens 8 --json
member parity "$value"
member errors "[$errors]"
printf '}\n' >>"$work/report"
cp "$work/report" "$out" || fail "$out cannot be written"
echo "device_report: $out" >&2
[ -z "$errors" ]
