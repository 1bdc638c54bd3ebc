"""Each round proves itself (DESIGN rule 5): what the paper assumes is checked, and a violation stops the run.

Survivors equal the rewind point bit for bit; pruned weights are zero before and after training; one batch through
the sparse model equals the densified model, outputs and gradients.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparseflow.files.ticket import tensor_bytes
from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.model import sparse_layers
from sparseflow.hardware.names import dense_name
from sparseflow.hardware.plan import densify
from sparseflow.hardware.sample import Sample, call, untouched
from sparseflow.hardware.streaming.channel import Channel
from sparseflow.hardware.streaming.execution import Stream, stream_of
from sparseflow.hardware.weights import ModelWeights, weights_of

# RMS error over RMS reference. A product of n terms in another order errs by about sqrt(n) roundings.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# Of the gradients of a whole model: where rounding moves one unit across the kink of a ReLU, its gradient is wrong as
# a whole. One unit in a thousand may be, or, where that is more, the fraction of units that lie so near to their kink.
# That layers compute right is proved layer by layer, to TOLERANCE; this finds what goes wrong between them.
GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 3e-2, torch.bfloat16: 1.5e-1, torch.float16: 6e-2}


class ProofError(RuntimeError):
    """A round broke a rule of its own protocol. The text names the parameter."""


def prove_rewound(model: nn.Module, masks: Mapping[str, Tensor], rewind: Mapping[str, Tensor]) -> None:
    """Survivors, unpruned parameters and buffers are the rewind point's, bit for bit; pruned weights are +0.0."""
    weights = weights_of(model)
    for name in weights.names:
        if name not in rewind:
            raise ProofError(f"{name}: the rewind point has no such tensor")
        tensor = weights.read(name)
        expected = rewind[name].to(tensor.device)
        if name in masks:
            expected = torch.where(masks[name].to(tensor.device), expected, 0.0)
        if not _same_bits(tensor, expected):
            raise ProofError(f"{name}: survivors differ from the rewind point, or a pruned weight is not zero")


def digests(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name → sha256 of a tensor's bytes: what `prove_unmoved` compares with. Copies a GPU's tensors once."""
    return {name: hashlib.sha256(tensor_bytes(tensor.cpu())).hexdigest() for name, tensor in state.items()}


def prove_unmoved(rewind: Mapping[str, Tensor], marked: Mapping[str, str]) -> None:
    """The rewind point is what it was when it was marked; one that shares memory with the model has trained along."""
    for name, digest in digests(rewind).items():
        if marked.get(name) != digest:
            raise ProofError(f"{name}: the rewind point has changed since it was marked")


def prove_pruned(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """No weight stands where the mask has pruned, neither in the dense view nor in the stored values."""
    if stream_of(model) is not None:
        _prove_pruned_in_store(weights_of(model), masks)
        return
    layers = sparse_layers(model)
    for name, mask in masks.items():
        if name not in layers:
            if not bool(mask.all()):
                raise ProofError(f"{name}: its mask prunes, but the layer is dense")
            continue
        layer = layers[name]
        if not torch.equal(layer.mask, mask.to(layer.values.device)):
            raise ProofError(f"{name}: the layer has another mask than the round")
        values = layer.values.detach()
        if not torch.isfinite(values).all():
            raise ProofError(f"{name}: a weight is not finite")
        if not torch.equal(layer.op.pack_values(layer.op.unpack_values(values)), values):
            raise ProofError(f"{name}: a pruned weight is not zero")


def prove_equal_to_dense(model: nn.Module, sample: Sample) -> None:
    """One batch through the model and through its densified copy: outputs and gradients agree.

    The output, and each layer's own output and gradients given what the dense layer gets, to `TOLERANCE`; the
    gradients of the whole model to `GRADIENT_TOLERANCE`. In eval mode, on copies of the model, so that nothing of
    the run is touched. Costs four forward and backward passes.

    The layers of a streamed model are the dense model's own; what is proved is that they get its weights.
    """
    if (stream := stream_of(model)) is not None:
        _prove_streamed(stream)
        return
    if not sparse_layers(model):
        return
    sparse, dense = copy.deepcopy(model), densify(copy.deepcopy(model))
    calls: list[tuple[str, Tensor]] = []
    hooks = [dense.get_submodule(path).register_forward_pre_hook(_keep(calls, path)) for path in _sparse_paths(sparse)]
    outputs = {key: _run(one, sample) for key, one in (("sparse", sparse), ("dense", dense))}
    for hook in hooks:
        hook.remove()
    tolerance = TOLERANCE[outputs["dense"].dtype]
    _close("the model's output", outputs["sparse"], outputs["dense"], tolerance)
    _compare_gradients(sparse, dense)
    for path, x in calls:
        _prove_layer(path, sparse.get_submodule(path), dense.get_submodule(path), x)


def _prove_pruned_in_store(weights: ModelWeights, masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        stored, tensor = weights.mask(name), weights.read(name)
        if stored is None and not bool(mask.all()):
            raise ProofError(f"{name}: its mask prunes, but the store keeps all of it")
        if stored is not None and not torch.equal(stored, mask.cpu()):
            raise ProofError(f"{name}: the store has another mask than the round")
        if not torch.isfinite(tensor).all():
            raise ProofError(f"{name}: a weight is not finite")
        if tensor[~mask.cpu()].any():
            raise ProofError(f"{name}: a pruned weight is not zero")


def _prove_streamed(stream: Stream) -> None:
    channel = Channel(stream.store, strict=True)
    for name in stream.names:
        expected = stream.read(name)
        if not _same_bits(channel.send_weights(name, "forward", torch.empty_like(expected)), expected):
            raise ProofError(f"{name}: what is streamed is not what is stored")


def _run(model: nn.Module, sample: Sample) -> Tensor:
    model.zero_grad()
    with untouched(model):
        output = _first_tensor(call(model, sample))
        torch.autograd.backward((output * _cotangent(output)).sum())
    return output.detach()


def _cotangent(output: Tensor) -> Tensor:
    # Fixed, without symmetry, so that wrong gradients cannot cancel; and of one sign, so that right ones do not: of a
    # sum that does, only the rounding would be compared.
    numbers = torch.rand(output.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    return numbers.to(output.device, output.dtype)


def _compare_gradients(sparse: nn.Module, dense: nn.Module) -> None:
    gradients = {dense_name(name): parameter.grad for name, parameter in dense.named_parameters()}
    twins = sparse_layers(sparse)
    # Some gradients are nothing but rounding, such as that of a key's bias before a softmax.
    least = 1e-3 * max((float(_rms(gradient)) for gradient in gradients.values() if gradient is not None), default=0.0)
    for raw, parameter in sparse.named_parameters():
        name, reference = dense_name(raw), gradients[dense_name(raw)]
        got = parameter.grad
        if got is None or reference is None:
            if got is not reference:
                raise ProofError(f"{name}: only the {'dense' if got is None else 'sparse'} model gives it a gradient")
            continue
        if name in twins:
            got, reference = twins[name].unpack(got), torch.where(twins[name].mask, reference, 0.0)
        _close(f"the gradient of {name}", got, reference, GRADIENT_TOLERANCE[got.dtype], least)


def _prove_layer(path: str, sparse: nn.Module, dense: nn.Module, x: Tensor) -> None:
    # The same input to both: no unit of another layer can stand on the other side of its kink.
    assert isinstance(sparse, SparseLayer)
    # Nor may a unit of its own: a ReLU that the layer does itself was proved with the whole model.
    sparse.relu = False
    weight = dense.weight
    assert isinstance(weight, nn.Parameter)
    got, reference = _layer_gradients(sparse, sparse.values, x), _layer_gradients(dense, weight, x)
    got["weight"] = sparse.unpack(got["weight"])
    reference["weight"] = torch.where(sparse.mask, reference["weight"], 0.0)
    for part, tensor in got.items():
        what = "the output" if part == "output" else f"the gradient of the {part}"
        _close(f"{path}: {what}", tensor, reference[part], TOLERANCE[tensor.dtype])


def _layer_gradients(layer: nn.Module, weight: nn.Parameter, x: Tensor) -> dict[str, Tensor]:
    x, weight_was = x.detach().requires_grad_(), weight.requires_grad
    weight.requires_grad_()
    output = layer(x)
    dx, dweight = torch.autograd.grad(output, [x, weight], _cotangent(output))
    weight.requires_grad_(weight_was)
    return {"output": output.detach(), "input": dx, "weight": dweight}


def _sparse_paths(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, SparseLayer)]


def _keep(calls: list[tuple[str, Tensor]], path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs:
            calls.append((path, inputs[0].detach().clone()))

    return hook


def _close(what: str, got: Tensor, reference: Tensor, tolerance: float, least: float = 0.0) -> None:
    """`least`: the scale of what is compared, where the reference's own is smaller."""
    scale = _rms(reference).clamp_min(max(least, 1e-30))
    error = _rms(got.double() - reference.double())
    if not bool(error <= tolerance * scale):
        raise ProofError(
            f"{what} differs between the sparse and the dense model: relative RMS error "
            f"{float(error / scale):.2e}, allowed {tolerance:.0e}"
        )


def _rms(tensor: Tensor) -> Tensor:
    return tensor.double().pow(2).mean().sqrt()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    # torch.equal calls -0.0 and 0.0 the same, and NaN unequal to itself.
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _first_tensor(output: object) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return _first_tensor(next(iter(output.values())))
    if isinstance(output, (tuple, list)):
        return _first_tensor(output[0])
    raise TypeError(f"expected the model to return a tensor, tuple or mapping, got {type(output).__name__}")
