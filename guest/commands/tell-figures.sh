# shellcheck shell=dash
# One block of lines for each sample of what the guest uses. The writing fails, and so ends this, once nobody reads it.
while :; do cat /proc/loadavg && head -n 1 /proc/stat && grep -E '^Mem(Total|Available):' /proc/meminfo && \
    df -kP /workspace | tail -n 1; echo . || exit; sleep 5; done
