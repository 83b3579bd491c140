"""int8: what the linear layers see on a user's pictures, scales that fit it, and a search until the limit holds."""
