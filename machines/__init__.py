"""What a virtual machine is: image, process, disks, SSH, capacity. Knows nothing of tasks."""
