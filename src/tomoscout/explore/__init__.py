"""The search for the best training: proposals, trials, and what came out of them."""
