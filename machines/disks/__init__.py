"""The disks of machines, which a guest may have forged: made, read back, and looked after."""
