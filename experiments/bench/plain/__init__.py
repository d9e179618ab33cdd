"""Plain torch loops on the race's models, batches, links and targets: what Lightning costs a peer, and a bound."""
