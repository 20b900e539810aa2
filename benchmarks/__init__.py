"""Scripts that measure what the documentation claims; each prints its figures and the command that made them."""
