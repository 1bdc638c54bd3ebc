"""The backend `triton` under the interpreter: its rules, its reasons, every kind of kernel, mixed precision."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware import measure
from sparseflow.hardware.backends import get, triton_op
from sparseflow.hardware.backends.base import FusedOp, MasterOp
from sparseflow.hardware.backends.triton import Triton
from sparseflow.hardware.backends.triton_op import TritonOp
from sparseflow.hardware.workload import Geometry, Workload
from sparseflow.testing import assert_close, check_backend
from sparseflow.testing.placement import feature_major, is_feature_major
from sparseflow_kernels import reference, triton_sddmm, triton_spmm
from sparseflow_kernels.triton_tune import config_text

WORK = Workload((8, 8), rows=4, density=0.5)


# All 106 cases take minutes (`tools/soak_triton.py`). These are linear layers and strided convolutions, of which all,
# a half or a tenth is kept, in float32 and in bfloat16.
@pytest.mark.parametrize("first", [9, 36])
def test_it_keeps_the_rules_of_a_backend(first: int) -> None:
    check_backend(Triton(), every=54, first=first)


class Fixed(Triton):
    """The same with a layout that the test names."""

    def __init__(self, products: str) -> None:
        self.products = products

    def layout(self, work: Workload) -> str:
        return f"triton/1/{work.geometry}/{self.products}"


CONV = Geometry("conv2d", stride=(2, 1), padding=(1, 1), groups=3)
SPMM, SDDMM = replace(triton_spmm.CONFIGS[4][-1], tokens=32), replace(triton_sddmm.CONFIGS[4][0], part=64)
MIXES = [
    "dense/dense/dense",
    "gather16/dense/dense",
    "dense/gather64/dense",
    "dense/dense/gather64",
    "gather128/gather32/gather16",
    f"gather64[{config_text(SPMM)}]/gather64/gather64[{config_text(SDDMM)}]",
]
PANELS = ["panel64/panel64/panel128", "panel64[tokens=64,depth=32,warps=4,stages=2]/gather64/panel64"]


BY_DTYPE = [*((torch.float32, mix) for mix in MIXES), *((torch.bfloat16, mix) for mix in PANELS)]


@pytest.mark.parametrize("dtype, products", BY_DTYPE)
@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv2d"])
def test_every_product_by_every_kernel_agrees_with_float64(dtype: torch.dtype, products: str, conv: bool) -> None:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) + 0.5).to(dtype)

    work = Workload((6, 2, 3, 3), CONV, 3, (5, 4)) if conv else Workload((33, 17), rows=9)
    mask = random(*work.shape) < 0.8
    mask[1] = False
    op = Fixed(products).pack(mask, Fixed(products).layout(work))
    assert isinstance(op, FusedOp)
    weight, bias, x = random(*work.shape), random(work.shape[0]), random(*work.input_shape())
    g = work.geometry
    sizes = (g.stride, g.padding, g.dilation, g.groups)
    expected = reference.conv2d(x, weight, mask, bias, *sizes) if conv else reference.linear(x, weight, mask, bias)
    dy = random(*expected.shape)
    backward = reference.conv2d_backward(dy, x, weight, mask, *sizes) if conv else None
    dx_expected, dweight = backward or reference.linear_backward(dy, x, weight, mask)
    values = op.pack_values(weight)
    for major in (False, True):
        x_given = feature_major(x) if major else x
        y = op.forward_fused(x_given, values, bias, True, major)
        dx, dvalues, dbias = op.backward_fused(dy, x_given, y, values, True, True)
        assert dx is not None and dbias is not None
        assert y.is_contiguous() or major
        assert is_feature_major(y) == is_feature_major(dx) or not major
        assert_close(y, expected, "y")
        assert_close(dx, dx_expected, "dx")
        assert_close(op.unpack_values(dvalues), dweight, "dvalues")
        assert_close(dbias, dy.double().transpose(0, 1).flatten(1).sum(1), "dbias")


def test_a_structure_is_shared_where_two_products_can() -> None:
    mask = torch.rand(8, 8) < 0.5
    shared, own, dense = (
        Triton().pack(mask, f"triton/1/linear/{products}")
        for products in ("gather16/dense/gather16", "gather16/dense/gather32", "gather16/dense/dense")
    )
    assert shared.tensors().keys() == dense.tensors().keys()
    assert any(name.startswith("wgrad.") for name in own.tensors())
    assert shared.nbytes == dense.nbytes < own.nbytes
    moved = shared.with_tensors({name: tensor.clone() for name, tensor in shared.tensors().items()})
    assert isinstance(moved, TritonOp) and moved.parts["wgrad"] is moved.parts["forward"]


@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv2d"])
def test_master_values_under_autocast_are_as_good_as_casts_of_them(short: torch.dtype, conv: bool) -> None:
    torch.manual_seed(0)
    layer: nn.Module = nn.Conv2d(4, 6, 3, padding=1) if conv else nn.Linear(16, 24)
    mask = torch.rand_like(layer.weight) < 0.3
    inputs = torch.randn(3, 4, 5, 5) if conv else torch.randn(7, 16)
    found = {}
    for backend in ("dense-compact", "triton"):
        sparse = sf.sparsify(copy.deepcopy(layer), {"weight": mask}, backend=backend)
        x = inputs.clone().requires_grad_()
        with torch.autocast("cpu", short):
            y = sparse(x)
        y.float().square().sum().backward()
        assert y.dtype == short
        assert sparse.values.grad.dtype == sparse.bias.grad.dtype == torch.float32
        grads = (sparse.unpack(sparse.values.grad), sparse.bias.grad, x.grad)
        found[backend] = [y.detach(), *(grad.to(short) for grad in grads)]
    for what, cast, master in zip(("y", "dvalues", "dbias", "dx"), *found.values()):
        assert_close(master, cast, what)


def test_master_values_are_never_copied_by_the_layer() -> None:
    torch.manual_seed(0)
    sparse = sf.sparsify(nn.Linear(16, 24), {"weight": torch.rand(24, 16) < 0.3}, backend="triton")
    assert isinstance(sparse.op, MasterOp)
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse(torch.randn(2, 16))
    assert any(saved is sparse.values for saved in y.grad_fn.saved_tensors)
    with pytest.raises(ValueError, match=r"expected an input of torch.float32, got torch.bfloat16"):
        sparse(torch.randn(2, 16, dtype=torch.bfloat16))


def test_a_plan_times_master_values_as_layers_give_them() -> None:
    work = replace(WORK, compute_dtype=torch.bfloat16)
    inputs = measure._inputs(work, torch.Generator())
    dtypes = {type(b): measure._Trial(b, work, inputs).values.dtype for b in (Triton(), get("dense-compact"))}
    assert list(dtypes.values()) == [torch.float32, torch.bfloat16]


def test_copies_of_a_layer_stand_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(36, 3))
    masks = {name: torch.rand_like(model.get_parameter(name)) < 0.4 for name in ("0.weight", "2.weight")}
    sparse = sf.sparsify(model, masks, backend="triton")
    x = torch.randn(2, 2, 5, 5)
    expected = sparse(x)
    assert torch.equal(copy.deepcopy(sparse)(x), expected)
    other = sf.sparsify(copy.deepcopy(model).requires_grad_(False), {}, backend="triton")
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(other(x), expected)
    assert torch.equal(sf.densify(sparse)(x) - expected < 1e-5, torch.ones_like(expected, dtype=torch.bool))


def test_it_says_what_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    double = replace(WORK, dtype=torch.float64, compute_dtype=torch.float64)
    assert Triton().unsupported(double) == "runs float32, bfloat16 and float16, not float64"
    huge = replace(WORK, shape=(1 << 16, 1 << 15))
    assert "too few for 2**31 weights" in (Triton().unsupported(huge) or "")
    assert Triton().unsupported(replace(WORK, device=torch.device("mps"))) == "runs on NVIDIA and AMD GPUs, not on mps"
    assert "unset it to use the GPU" in (Triton().unsupported(replace(WORK, device=torch.device("cuda"))) or "")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "needs a GPU; TRITON_INTERPRET=1" in (Triton().unsupported(WORK) or "")
    cuda = replace(WORK, device=torch.device("cuda"))
    if not torch.cuda.is_available():
        assert Triton().unsupported(cuda) == "Triton needs a GPU, and torch finds none here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert Triton().unsupported(cuda) == "runs on NVIDIA chips from sm_80 (A100) on, not on sm_75"
    monkeypatch.setattr("sparseflow.hardware.backends.triton.find_spec", lambda name: None)
    assert Triton().unsupported(cuda) == "triton is not installed; pip install triton"


def test_it_is_asked_without_loading_triton() -> None:
    code = (
        "import sys; from sparseflow.hardware import backends; from sparseflow.hardware.workload import Workload;"
        "b = backends.get('triton'); w = Workload((8, 8), rows=4, density=0.5);"
        "print(b.unsupported(w), b.cost(w), b.layout(w), b.explain(w), 'triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip().endswith("False"), done.stderr


BAD_LAYOUTS = {
    "cpu/1/linear/f1/b1": "expected a layout such as 'triton/1/linear/gather64/gather64/dense', got 'cpu/1",
    "triton/2/linear/dense/dense/dense": "plan anew",
    "triton/1/linear/dense/dense": "plan anew",
    "triton/1/linear/gather7/dense/dense": "expected dense, gather16, .*, panel128, .*got 'gather7'",
    "triton/1/linear/dense[tokens=1]/dense/dense": "got 'dense.tokens=1.'",
    "triton/1/linear/gather16[size=1]/dense/dense": "configuration such as lanes=N,tokens=N.*got 'size=1'",
    "triton/1/linear/gather16[lanes=3,tokens=8]/dense/dense": "lanes: expected 1, 2, 4, ..., got 3",
    "triton/1/linear/gather16[lanes=8,tokens=8,share=0]/dense/dense": "share: expected 1 or more, got 0",
    "triton/1/linear/dense/dense/gather16[lanes=8,steps=0,tokens=8,part=8]": "steps: expected 1, 2, 4, ..., got 0",
    # Past the end of the last panel.
    "triton/1/linear/panel64[tokens=64,depth=128,warps=4,stages=2]/dense/dense": "depth: expected 32 or 64, got 128",
    "triton/1/linear/dense/dense/panel64[slots=48,tokens=64,warps=4,stages=2]": "slots: expected 1, 2, 4, ..., got 48",
}


@pytest.mark.parametrize("layout", BAD_LAYOUTS)
def test_a_layout_of_something_else_is_refused(layout: str) -> None:
    with pytest.raises(ValueError, match=BAD_LAYOUTS[layout]):
        Triton().pack(torch.ones(8, 8, dtype=torch.bool), layout)


def test_wrong_tensors_are_refused_before_any_kernel() -> None:
    op = get("triton").pack(torch.rand(8, 6) < 0.5, "triton/1/linear/gather16/gather16/gather16")
    values, x = torch.zeros(op.nnz), torch.zeros(3, 6)
    wrong: list[tuple[str, tuple[Tensor, Tensor]]] = [
        ("one dtype.*got torch.float64 and torch.float32", (x.double(), values)),
        ("one dtype.*got torch.float32 and torch.bfloat16", (x, values.bfloat16())),
        ("on one device, got x on meta, values on cpu", (x.to("meta"), values)),
        (r"6 features or channels, got shape \(3, 2, 3\)", (x.view(3, 2, 3), values)),
    ]
    for words, (a, b) in wrong:
        with pytest.raises(ValueError, match=words):
            op.forward(a, b, None)
        with pytest.raises(ValueError, match=words):
            op.backward(torch.zeros(3, 8), a, b, True)
    for dense in (False, True):
        chosen = get("triton").pack(torch.ones(8, 6) > 0, "triton/1/linear/dense/dense/dense") if dense else op
        held = torch.zeros(chosen.nnz)
        with pytest.raises(ValueError, match=r"expected a bias of shape \(8,\), got \(1,\)"):
            chosen.forward(x, held, torch.zeros(1))
        with pytest.raises(ValueError, match="expected the bias on cpu, where x is, got meta"):
            chosen.forward(x, held, torch.zeros(8, device="meta"))
    with pytest.raises(ValueError, match=r"expected dy of shape \(3, 8\)"):
        op.backward(torch.zeros(3, 7), x, values, True)
    with pytest.raises(ValueError, match="expected dy on cpu, where x is, got meta"):
        op.backward(torch.zeros(3, 8, device="meta"), x, values, True)


def test_a_gradient_of_another_image_is_refused() -> None:
    op = Triton().pack(
        torch.ones(2, 1, 3, 3, dtype=torch.bool), "triton/1/conv2d:s2,1:p1,1:d1,1:g1/dense/dense/gather64"
    )
    with pytest.raises(ValueError, match=r"expected dy of shape \(1, 2, 3, 5\), got \(1, 2, 5, 5\)"):
        op.backward(torch.zeros(1, 2, 5, 5), torch.zeros(1, 1, 5, 5), torch.zeros(op.nnz), True)
    with pytest.raises(ValueError, match="expected an image at least as large as the kernel"):
        op.backward(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 5, 0), torch.zeros(op.nnz), True)


def test_tables_of_a_few_image_sizes_are_kept() -> None:
    op = Triton().pack(
        torch.ones(2, 1, 3, 3, dtype=torch.bool), "triton/1/conv2d:s1,1:p1,1:d1,1:g1/dense/dense/gather64"
    )
    assert isinstance(op, TritonOp)
    values = op.pack_values(torch.randn(2, 1, 3, 3))
    for size, images in itertools.product(range(3, 8), (1, 2)):
        x = torch.randn(images, 1, size, size)
        op.backward(torch.ones_like(op.forward(x, values, None)), x, values, False)
    assert len(op._images) == 8


def test_tables_that_a_captured_graph_reads_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    op = Triton().pack(
        torch.ones(2, 1, 3, 3, dtype=torch.bool), "triton/1/conv2d:s1,1:p1,1:d1,1:g1/dense/dense/gather64"
    )
    assert isinstance(op, TritonOp)
    first, *others = (torch.randn(1, 1, size, size) for size in range(3, 15))
    op._tokens(first)
    with monkeypatch.context() as capturing:
        capturing.setattr(triton_op, "_captures", lambda x: True)
        captured = op._tokens(first)
    for x in others:
        op._tokens(x)
    assert op._tokens(first) is captured and len(op._images) == 8
