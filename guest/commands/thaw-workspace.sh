# shellcheck shell=dash
# Lets writes to /workspace go on.
fsfreeze --unfreeze /workspace
