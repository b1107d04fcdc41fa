"""What a run does after its agent has ended, beside collecting and letting go of the machine."""
