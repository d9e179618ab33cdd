"""The losses of several runs of an example under one strategy, as JSON."""

import argparse
import importlib
import json
import os
from pathlib import Path

import torch
from torch.utils.data import Sampler


class LikeDDP(Sampler[int]):
    """The samples that DDP's ranks have in an update, rank after rank, by the sampler that Lightning gives them."""

    def __init__(self, length, batch, ranks, seed):
        self.length, self.batch, self.ranks, self.seed, self.epoch = length, batch, ranks, seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for start in range(0, self.length, self.batch):
            for rank in range(self.ranks):
                yield from order[start : start + self.batch][rank :: self.ranks]

    def __len__(self):
        return self.length


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("example")
    parser.add_argument("--strategy", choices=["ddp", "lwpd"])
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--runs", type=json.loads, help="the words of train(), and like_ddp: in DDP's order")
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()

    example = importlib.import_module(f"experiments.examples.{options.example}")
    curves = []
    for settings in options.runs:
        if settings.pop("like_ddp", False) and options.strategy == "lwpd":
            settings["sampler"] = LikeDDP(example.TRAINED, example.BATCH, options.devices, settings["seed"])
        curve = example.train(strategy=options.strategy, devices=options.devices, **settings)
        curves.append({"training": curve.training, "validation": curve.validation})
    if os.environ.get("LOCAL_RANK", "0") == "0":
        options.file.write_text(json.dumps(curves))


if __name__ == "__main__":
    main()
