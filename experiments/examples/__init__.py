"""Well-known shapes of training, each an ordinary script: ``--strategy ddp`` and ``--strategy lwpd`` train the same."""
