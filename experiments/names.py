"""How a configuration names what is in this package, which is called `lwpd_experiments` once it is installed.

`_target_: ${experiments:models.mlp_classifier}` is `experiments.models.mlp_classifier` in a checkout; importing this
module makes that known to OmegaConf.
"""

from omegaconf import OmegaConf

OmegaConf.register_new_resolver("experiments", lambda name: f"{__package__}.{name}", replace=True)
