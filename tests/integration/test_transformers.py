"""Models of a third party: dictionaries in and out, tied weights, parameters that no gradient reaches."""

import copy
from collections import UserDict

import lightning.pytorch as pl
import pytest
import torch

from lwpd_lightning import LWPDStrategy, lwpd_code
from tests.integration.models import loader, quiet_trainer

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `examples`)")

VOCABULARY, CONTEXT, UPDATES = 40, 12, 6


class Returning(pl.LightningModule):
    """Gives its GPT-2's whole output, a mapping with the loss in it, back to the loop."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2}
        config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
        self.net = transformers.GPT2DoubleHeadsModel(config)
        self.tied = (self.net.lm_head, self.net.transformer.wte)
        self.idle = [self.net.multiple_choice_head]

    def training_step(self, batch, batch_idx):
        return self.net(**batch)

    def configure_optimizers(self):
        # The decay moves a parameter whose gradient is zero, and leaves one alone that has none.
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


class Pooled(Returning):
    """A BERT whose pooler nobody asks, with the embedding as its output layer; gives back a mapping that is no dict."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=16, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.net = transformers.BertModel(config)
        self.output = torch.nn.Linear(16, VOCABULARY)
        self.output.weight = self.net.embeddings.word_embeddings.weight
        self.tied = (self.output, self.net.embeddings.word_embeddings)
        self.idle = [self.net.pooler]

    def training_step(self, batch, batch_idx):
        hidden = self.net(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        loss = torch.nn.functional.cross_entropy(self.output(hidden).flatten(0, 1), batch["labels"].flatten())
        return UserDict(loss=loss)


def sentences():
    tokens = torch.randint(VOCABULARY, (8 * UPDATES, CONTEXT), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids} for ids in tokens]


def encoded(samples):
    columns = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return transformers.BatchEncoding(columns)  # a mapping, no dict


@pytest.mark.slow
@pytest.mark.parametrize("model", [Returning, Pooled])
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("64-true", 1e-11)])
def test_waiting_for_all_equals_a_single_process(model, precision, tolerance):
    torch.manual_seed(0)
    coded = model()
    alone = copy.deepcopy(coded).to(torch.float64 if precision == "64-true" else torch.float32)
    start = {name: p.detach().clone() for name, p in alone.named_parameters()}
    batches = loader(sentences(), batch_size=8, collate_fn=encoded)

    trainer = quiet_trainer(
        devices=4, strategy=LWPDStrategy(code=lwpd_code(4, 4, 2)), max_epochs=1, precision=precision
    )
    trainer.fit(coded, batches)

    optimizer = alone.configure_optimizers()
    alone.train()
    for batch in batches:
        optimizer.zero_grad()
        alone.training_step(batch, 0)["loss"].backward()
        optimizer.step()
    assert trainer.global_step == UPDATES
    assert coded.tied[0].weight is coded.tied[1].weight
    idle = {id(p) for module in coded.idle for p in module.parameters()}
    assert idle
    for (name, ours), theirs in zip(coded.named_parameters(), alone.parameters(), strict=True):
        if id(ours) in idle:
            assert torch.equal(ours, start[name])
        else:
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    moved = sum(float((p.detach() - start[name]).square().sum()) for name, p in alone.named_parameters())
    assert moved > 1e-3
