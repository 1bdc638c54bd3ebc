"""Files taken apart and put together byte by byte, without the code under test, to spoil any part of them."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseflow.files import Ticket, Weights, save
from sparseflow.masks.masks import Masks


@dataclass
class RawFile:
    """`header` is the safetensors header without `__metadata__`, `content` our JSON, `data` what follows."""

    header: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any] | None
    data: bytearray = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "RawFile":
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        metadata = header.pop("__metadata__")
        content = json.loads(metadata.pop("sparseflow"))
        return cls(header, metadata, content, bytearray(raw[8 + length :]))

    def tensor(self, name: str) -> memoryview:
        start, end = self.header[name]["data_offsets"]
        return memoryview(self.data)[start:end]

    def replace(self, name: str, data: bytes, shape: list[int] | None = None, dtype: str | None = None) -> None:
        """Other bytes for one tensor, the offsets of those behind it moved, our JSON brought into line."""
        start, end = self.header[name]["data_offsets"]
        self.data[start:end] = data
        moved = len(data) - (end - start)
        for entry in self.header.values():
            first, last = entry["data_offsets"]
            if first >= end and (first, last) != (start, end):
                entry["data_offsets"] = [first + moved, last + moved]
        entry = self.header[name]
        entry["data_offsets"] = [start, start + len(data)]
        entry["shape"] = entry["shape"] if shape is None else shape
        entry["dtype"] = dtype or entry["dtype"]
        if self.content is not None:
            stored = {
                "dtype": entry["dtype"],
                "shape": entry["shape"],
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            self.content["stored"][name] = stored

    def append(self, name: str, dtype: str, shape: list[int], data: bytes) -> None:
        """One more tensor behind the others, known to our JSON."""
        self.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(self.data)] * 2}
        self.replace(name, data)

    def rehash(self) -> None:
        """The sha256 of every stored tensor, as its bytes are now."""
        assert self.content is not None
        for name, stored in self.content["stored"].items():
            stored["sha256"] = hashlib.sha256(self.tensor(name)).hexdigest()

    def to_bytes(self) -> bytes:
        """The file, with the sha256 that our JSON should have, so that other rules than that one are met."""
        metadata = dict(self.metadata)
        if self.content is not None:
            metadata["sparseflow"] = signed(self.content)
        return framed(json.dumps({"__metadata__": metadata, **self.header}).encode()) + bytes(self.data)


def signed(content: dict[str, Any]) -> str:
    """Our JSON with its right sha256."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return spelt({**rest, "sha256": hashlib.sha256(spelt(rest).encode()).hexdigest()})


def spelt(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def framed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def small_ticket() -> Ticket:
    """A bitmask layer with a kept -0.0, a CSR layer, a bfloat16 kernel, a bias and two buffers."""
    fc = torch.tensor([[1.0, 0, -2, 0, 3], [0, -0.0, 0, 0, 0], [4, 5, 0, 6, 0]])
    kept = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [1, 1, 0, 1, 0]], dtype=torch.bool)
    wide = torch.zeros(2, 200)
    wide[0, 3], wide[0, 199], wide[1, 0] = 1.5, -2.5, 3.5
    conv = torch.arange(-8.0, 8.0).reshape(2, 2, 2, 2).bfloat16()
    masks = Masks({"fc.weight": kept, "wide.weight": wide != 0, "conv.weight": conv != 0})
    rewind: dict[str, Tensor] = {"fc.weight": fc, "wide.weight": wide, "conv.weight": conv}
    rewind |= {"fc.bias": torch.tensor([1.0, -0.0, 3.0]), "bn.flags": torch.tensor([True, False, True])}
    rewind |= {"bn.num_batches_tracked": torch.tensor(7)}
    plan: dict[str, object] = {"fc.weight": {"backend": "cpu", "seconds": 1.5e-5}}
    return Ticket(masks, rewind, plan, {"algorithm": "imp", "round": 2, "metrics": [0.5, None, "é"]})


def saved(path: Path, format: str = "compact") -> RawFile:
    """The small ticket, saved in a form and taken apart. The dense form loses a kept zero, so it has none."""
    ticket = small_ticket()
    if format == "dense":
        save(
            Ticket(
                Masks({n: t != 0 for n, t in ticket.rewind.items() if n in ticket.masks}),
                ticket.rewind,
                ticket.plan,
                ticket.provenance,
            ),
            path,
            format="dense",
        )
    else:
        save(ticket, path)
    return RawFile.read(path)


def assert_same(left: Ticket | Weights, right: Ticket | Weights) -> None:
    """Equal kind, names, masks and JSON; tensors equal bit for bit, so that -0.0 is not 0.0."""
    assert type(left) is type(right)
    assert left.masks == right.masks
    if isinstance(left, Ticket) and isinstance(right, Ticket):
        assert (left.plan, left.provenance) == (right.plan, right.provenance)
        assert_same_state(left.rewind, right.rewind)
    if isinstance(left, Weights) and isinstance(right, Weights):
        assert left.metadata == right.metadata
        assert_same_state(left.state, right.state)


def assert_same_state(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        other = right[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        assert torch.equal(_bytes(tensor), _bytes(other)), name


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
