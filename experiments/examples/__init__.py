"""Well-known shapes of training, each an ordinary script: ``--strategy ddp`` and ``--strategy lwpd`` train the same.

`drop_in` is the one to start from: what changes in a script, and how near compressed gradients are to DDP's.
"""
