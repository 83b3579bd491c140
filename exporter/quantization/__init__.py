"""int8: the numbers that linear layers read, scales that fit them, and a search until the limit holds."""
