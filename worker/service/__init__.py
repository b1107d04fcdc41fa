"""The service of a VM host: through it API servers run processes in machines, and reach their files, ports and logs."""
