"""Bytes that training keeps for a sparse model, over those for the dense one."""

from __future__ import annotations

from torch import Tensor

from sparseflow.bench import networks
from sparseflow.bench.clock import threads
from sparseflow.bench.figure import Figure
from sparseflow.bench.networks import Case
from sparseflow.bench.step import Step, dense_steps, fault, sparse_step
from sparseflow.hardware.backends import SparseOp
from sparseflow.hardware.model import sparse_layers

_LIMIT = 0.2
_DENSITY = 0.1


def memory(backend: str) -> list[Figure]:
    """Both MLPs and both convolutions with a tenth of the weights."""
    cases = (networks.mlp_narrow(), networks.mlp_wide(), networks.conv(64, 32), networks.conv(256, 8))
    return [memory_over_dense(case, backend) for case in cases]


def memory_over_dense(case: Case, backend: str) -> Figure:
    """Bytes after a step, ours over dense. A count, so there is one sample."""
    name = f"{case.name}, 90 % sparse: bytes kept, ours / dense"
    with threads(case.threads):
        ours = sparse_step(case, _DENSITY, backend)
        check = fault(ours)
        if check != "ok":
            return Figure(name, "x", _LIMIT, False, (), check)
        dense = dense_steps(case)["dense"]
        ours()
        dense()
    return Figure(name, "x", _LIMIT, False, (bytes_kept(ours) / bytes_kept(dense),))


def bytes_kept(step: Step) -> int:
    """Bytes of parameters, gradients, optimizer state and index structures, from the tensors that exist."""
    tensors: list[Tensor] = list(step.parameters)
    tensors += [parameter.grad for parameter in step.parameters if parameter.grad is not None]
    if step.optimizer is not None:
        states = step.optimizer.state.values()
        tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
    ops = [layer.op for layer in sparse_layers(step.model).values()]
    return sum(_bytes(tensor) for tensor in tensors) + sum(_index_bytes(op) for op in ops)


def _index_bytes(op: SparseOp) -> int:
    # What the op says of itself is not believed below what its tensors take.
    return max(op.nbytes, sum(_bytes(tensor) for tensor in op.tensors().values()))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize
