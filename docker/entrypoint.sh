#!/bin/bash
# Runs a program of the image, or a command of slipway (docker run IMAGE check ...). Works as any user.
set -euo pipefail

# A user without an entry in /etc/passwd has no home to write caches into.
if [ ! -w "${HOME:-/nonexistent}" ]; then
    export HOME="/tmp/home-$(id -u)"
    mkdir -p "$HOME"
fi

# A word that is no program is for slipway, which knows its commands and suggests the nearest to a misspelled one. A command of
# slipway also takes precedence over a program of its name, such as ImageMagick's compare; asking takes a tenth of a second.
is_program() { [[ "$1" == */* ]] || type -P -- "$1" > /dev/null; }
is_command() { [[ "$1" != */* && " $(slipway --commands | tr '\n' ' ') " == *" $1 "* ]]; }
if [ $# -gt 0 ] && { ! is_program "$1" || is_command "$1"; }; then
    set -- slipway "$@"
fi

# NVIDIA's own entry point, where the base has it, sets up the driver's forward compatibility.
if [ -x /opt/nvidia/nvidia_entrypoint.sh ]; then
    exec /opt/nvidia/nvidia_entrypoint.sh "$@"
fi
exec "$@"
