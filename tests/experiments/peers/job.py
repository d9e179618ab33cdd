"""A job of its own for tests that signal and kill: trains with a peer until told to stop, and says how far it is."""

import argparse

import lightning.pytorch as pl

from experiments.peers import DDPPeer, PowerSGDPeer
from tests.integration.models import Classifier, loader, quiet_trainer, sgd


class Narrator(pl.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.is_global_zero:
            print(f"UPDATE {trainer.global_step}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", choices=["ddp", "powersgd"], default="ddp")
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=1)
    options = parser.parse_args()
    pl.seed_everything(1, verbose=False)
    model = Classifier(sgd)
    trainer = quiet_trainer(
        devices=4 // options.nodes, num_nodes=options.nodes, max_steps=options.updates, max_epochs=-1,
        strategy={"ddp": DDPPeer, "powersgd": PowerSGDPeer}[options.peer](), use_distributed_sampler=False,
        callbacks=[Narrator()],
    )  # fmt: skip
    trainer.fit(model, loader(shuffle=True))
    print(f"DONE {sum(p.double().norm().item() for p in model.parameters()):.12f}", flush=True)


if __name__ == "__main__":
    main()
