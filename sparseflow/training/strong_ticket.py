"""Strong tickets: a network within a random one that is good as it stands, its weights never trained.

The methods are in `masks.supermasks`; here they meet a model, a trainer and the records of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.files import Ticket
from sparseflow.hardware.model import dense_state, load_dense_state, masks_by_every_name, sparse_layers
from sparseflow.hardware.survey import survey
from sparseflow.masks.masks import Masks
from sparseflow.masks.supermasks import Supermasks
from sparseflow.training import proof
from sparseflow.training.pruning import ParamFilter, prunable_weights
from sparseflow.training.records import Records, describe
from sparseflow.training.seeds import derive
from sparseflow.training.trainer import Trained, Trainer


class ScoredNetwork(nn.Module):
    """A model whose parameters are all frozen, and a score for each prunable weight, which is trained in their place.

    In training the network computes with the method's `training_weights`, in evaluation with those of the masks that
    its scores come to. Biases of the scored layers are zero; those of other layers, and the scales of norms, stay as
    built. The model is changed in place.
    """

    def __init__(self, body: nn.Module, method: Supermasks, seed: int, param_filter: ParamFilter | None = None) -> None:
        super().__init__()
        weights, fans = prunable_weights(body, param_filter), _fan_in(body)
        self.body = body.requires_grad_(False)
        self.method = method
        self.names = list(weights)
        drawn = method.scores(weights, fans, seed)
        self.scores = nn.ParameterList(drawn[name] for name in self.names)
        frozen = method.frozen(weights, fans)
        with torch.no_grad():
            for name, site in survey(body).sites.items():
                if name in weights:
                    site.weight.copy_(frozen[name])
                    for module in site.modules:
                        _clear_bias(module)

    @property
    def named_scores(self) -> dict[str, Tensor]:
        """Dense name → scores."""
        return dict(zip(self.names, self.scores))

    def masks(self) -> Masks:
        """The masks that the scores come to."""
        return self.method.masks(self.named_scores)

    def forward(self, *inputs: Any) -> Any:
        frozen = {name: self.body.get_parameter(name) for name in self.names}
        if self.training:
            weights = self.method.training_weights(frozen, self.named_scores)
        else:
            weights = self.method.weights(frozen, self.masks())
        return torch.func.functional_call(self.body, weights, inputs)

    def found(self) -> tuple[Masks, dict[str, Tensor]]:
        """The masks, and the state of the network that they leave: what an evaluation computes with."""
        masks, state = self.masks(), dense_state(self.body)
        used = self.method.weights({name: state[name] for name in self.names}, masks)
        every = masks_by_every_name(self.body, masks)
        first = {id(mask): name for name, mask in masks.items()}
        return masks, {**state, **{name: used[first[id(mask)]] for name, mask in every.items()}}


def strong_ticket(
    trainer: Trainer,
    method: Supermasks,
    *,
    param_filter: ParamFilter | None = None,
    records: Records | None = None,
) -> Ticket:
    """Trains scores over the trainer's model as it was built, and returns the network found: its masks and its weights.

    It is the network of the early-stop step, the one whose test accuracy is in `provenance["metrics"]`. The trainer's
    model becomes that network, dense with exact zeros, and trainable. Optimizer, schedule and weight decay act on the
    scores alone. With `records`, made with `first=1`, a stopped run resumes by the same call. ProofError where a weight
    has moved.
    """
    records = records or Records(None, first=1)
    if records.first != 1:
        raise ValueError(f"records: expected Records(folder, first=1), for round 0 is not trained, got {records.first}")
    if records.finished_rounds():
        return records.ticket(1)
    _check(trainer)
    network = ScoredNetwork(trainer.model, method, derive(trainer.seed, "scores"), param_filter)
    network.to(trainer.device)
    begun = dense_state(network.body)
    records.begin(begun)
    weights = {name: begun[name] for name, _ in network.body.named_parameters() if name in begun}
    marked = proof.digests(weights)
    everything = Masks.ones({name: weights[name].shape for name in network.names}, trainer.device)
    trained = trainer.train(network, progress=records.progress(1, everything, trainer.seed))
    ended = dense_state(network.body)
    proof.prove_unmoved({name: ended[name] for name in weights}, marked)
    return _finish(trainer, network, trained, begun, records)


def _finish(
    trainer: Trainer, network: ScoredNetwork, trained: Trained, begun: dict[str, Tensor], records: Records
) -> Ticket:
    network.load_state_dict(trained.early_state)
    masks, state = network.found()
    load_dense_state(network.body, state)
    network.body.requires_grad_(True)
    trained = replace(trained, early_state=network.body.state_dict())
    about = {
        "algorithm": type(network.method).__name__.lower(),
        "round": 1,
        "seed": trainer.seed,
        "metrics": describe(1, masks, None, trained),
    }
    ticket = Ticket(masks, state, None, about)
    trainer.model, trainer.last = network.body, trained
    records.finish_round(1, network.body, begun, ticket, trained)
    return ticket


def _check(trainer: Trainer) -> None:
    if sparse_layers(trainer.model):
        raise ValueError("expected a dense model to find a strong ticket in, got one with sparse layers; build it anew")
    if trainer.engine == "fsdp2" and trainer.ranks.world > 1:
        raise ValueError("a strong ticket's scores are not sharded: use engine ddp in place of fsdp2")


def _fan_in(model: nn.Module) -> Mapping[str, int]:
    return {
        name: site.weight.shape[0] if site.transposed else site.weight.shape[1:].numel()
        for name, site in survey(model).sites.items()
    }


def _clear_bias(module: nn.Module) -> None:
    bias = module._parameters.get("bias")
    if bias is not None:
        bias.zero_()
