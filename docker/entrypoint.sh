#!/bin/bash
# Runs a command of the image: nemo, slipway, a subcommand of slipway, or anything else. Works as any user.
set -euo pipefail

# A user without an entry in /etc/passwd has no home to write caches into.
if [ ! -w "${HOME:-/nonexistent}" ]; then
    export HOME="/tmp/home-$(id -u)"
    mkdir -p "$HOME"
fi

case "${1:-}" in
    list | show | check | plan | advise | validate | rehearse | export | weights | run | launch | report | compare | doctor | data | --help | --version)
        set -- slipway "$@" ;;
esac

# NVIDIA's own entry point, where the base has it, sets up the driver's forward compatibility.
if [ -x /opt/nvidia/nvidia_entrypoint.sh ]; then
    exec /opt/nvidia/nvidia_entrypoint.sh "$@"
fi
exec "$@"
