"""save and load: tickets and weights in one sparse safetensors file.

Every file is plain safetensors. Its metadata has the entry "format": "pt", by which transformers knows a
PyTorch file, and the entry "sparseflow", the JSON of `schema`. Two forms:

* dense: tensors under their own names, exact +0.0 at pruned places; any reader of safetensors loads it. The
  masks are not stored; on load they are `tensor != 0`, so **a kept weight equal to 0.0 is lost from its
  mask**. The metadata counts those, and `load` warns where there are any.
* compact: the kept values and the mask of each masked tensor, the mask as bits or as columns of rows,
  whichever is smaller. Nothing is lost: kept zeros stay kept and -0.0 stays -0.0.

The sha256 of each tensor's bytes and of the metadata are stored and checked. Nothing is pickled.
"""

import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from torch import Tensor, nn

from sparseflow.atomic import atomic_write
from sparseflow.files.container import DTYPE_NAMES, Entry, StoredTensors, read_header, write_container
from sparseflow.files.packing import Format, check_parts, dense_bytes, is_part, pack, unpack
from sparseflow.files.part import Part
from sparseflow.files.schema import (
    KEY,
    VERSION,
    Content,
    Stored,
    TicketContent,
    WeightsContent,
    content_from_text,
    content_to_text,
    json_object,
)
from sparseflow.files.ticket import Ticket, Weights, tensor_bytes
from sparseflow.files.validate import Place, Rule
from sparseflow.masks.masks import Masks

# 16 GiB: a model of about four billion float32 parameters.
DEFAULT_MAX_DENSE_BYTES = 16 * 2**30


class FileMissingError(FileNotFoundError, ValueError):
    """There is no file under the path that was to be loaded."""


def save(
    what: Ticket | Weights | nn.Module,
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    masks: Mapping[str, Tensor] | None = None,
    metadata: dict[str, object] | None = None,
) -> None:
    """Writes a ticket, weights or a model to `path`, whole or not at all; equal content gives equal bytes.

    `format` is "compact" by default for tickets, "dense" for the rest. `masks` and `metadata` (plain JSON) go
    with a model only: the others have their own. A sparse model has its masks in it, and `masks` is for a
    dense one.

    Raises ValueError that names the tensor for NaN and infinity, for a nonzero weight at a pruned place, for
    a dtype that the format does not have and for anything else that `load` would refuse; OSError if the disk
    does. Needs memory for one copy of what is stored.
    """
    if format is not None and format not in get_args(Format):
        raise ValueError(f"no format {format!r}; available: {', '.join(get_args(Format))}")
    holder = _holder(what, masks, metadata)
    form: Format = format or ("compact" if isinstance(holder, Ticket) else "dense")
    part = sparse_part(holder, form)
    with atomic_write(path) as file:
        part.write(file)


def sparse_part(holder: Ticket | Weights, form: Format) -> Part:
    """The file that `save` writes, as a part of a commit. Raises as `save` does."""
    state = holder.rewind if isinstance(holder, Ticket) else holder.state
    tensors, masked = pack(state, holder.masks, form)
    stored = {name: _stored(tensor) for name, tensor in tensors.items()}
    content: Content
    if isinstance(holder, Ticket):
        plan = None if holder.plan is None else json_object("the ticket's plan", holder.plan)
        provenance = json_object("the ticket's provenance", holder.provenance)
        content = TicketContent(format=form, stored=stored, masked=masked, plan=plan, provenance=provenance)
    else:
        extra = json_object("metadata", holder.metadata)
        content = WeightsContent(format=form, stored=stored, masked=masked, metadata=extra)
    about = {"format": "pt", KEY: content_to_text(content)}
    nbytes = sum(tensor.nbytes for tensor in tensors.values()) + 2 * len(about[KEY])
    return Part(lambda sink: write_container(sink, tensors, about), nbytes)


def load(path: str | os.PathLike[str], *, max_dense_bytes: int = DEFAULT_MAX_DENSE_BYTES) -> Ticket | Weights:
    """Returns the Ticket or the Weights in a file, on the CPU.

    A plain safetensors file gives Weights without masks. A sparse file can be small and its dense tensors
    huge: a file whose state and masks would take more than `max_dense_bytes` in memory is refused before
    anything is allocated.

    Raises SparseFormatError that names file, tensor and rule if anything at all is wrong with the file, and
    FileMissingError if there is none. Warns where a dense file has lost kept weights that equal 0.0 from its
    masks.
    """
    place = Place(os.fspath(path))
    if not Path(path).is_file():
        what = "a directory" if Path(path).is_dir() else "nothing"
        raise FileMissingError(f"expected a safetensors file, got {what} at {path}; check the path")
    with open(path, "rb") as file:
        entries, metadata = read_header(file, place)
        content = _read_content(entries, metadata, place)
        needed = dense_bytes(entries, content.masked if content else {})
        if needed > max_dense_bytes:
            place.fail(
                Rule.DENSE_BYTES,
                f"expected at most {max_dense_bytes} bytes in memory, the file needs {needed}",
            )
        recorded = {name: stored.sha256 for name, stored in content.stored.items()} if content else {}
        tensors = StoredTensors(file, entries, recorded, place)
        if content is None:
            return Weights({name: tensors.read(name) for name in sorted(entries)}, Masks({}), {})
        state, masks = _read_state(tensors, content)
    if isinstance(content, TicketContent):
        plan = None if content.plan is None else dict[str, object](content.plan)
        return Ticket(masks, state, plan, dict(content.provenance))
    return Weights(state, masks, dict(content.metadata))


def _holder(what: object, masks: Mapping[str, Tensor] | None, metadata: dict[str, object] | None) -> Ticket | Weights:
    if isinstance(what, nn.Module):
        # Backends come in with the layers; whoever only saves and reads tickets needs none of them.
        from sparseflow.hardware.model import current_masks, dense_state

        return Weights(dense_state(what), Masks(current_masks(what) if masks is None else masks), metadata or {})
    if not isinstance(what, Ticket | Weights):
        raise TypeError(f"expected a Ticket, Weights or torch.nn.Module to save, got {type(what).__name__}")
    if masks is not None or metadata is not None:
        raise TypeError("expected masks and metadata with a model only; a Ticket and Weights hold their own")
    return what


def _stored(tensor: Tensor) -> Stored:
    sha256 = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
    return Stored(dtype=DTYPE_NAMES[tensor.dtype], shape=list(tensor.shape), sha256=sha256)


def _read_content(entries: Mapping[str, Entry], metadata: Mapping[str, str], place: Place) -> Content | None:
    if KEY not in metadata:
        # A file of ours with a damaged key must not pass for a plain one.
        if any(VERSION in text for text in metadata.values()):
            place.fail(
                Rule.METADATA_KEYS,
                f"expected what sparseflow recorded under the key '{KEY}', got another key",
            )
        check_parts(entries, {}, "dense", place)
        return None
    if metadata.keys() != {"format", KEY} or metadata["format"] != "pt":
        place.fail(Rule.METADATA_KEYS, f"expected 'format': 'pt' and '{KEY}' in the metadata, nothing else")
    content = content_from_text(metadata[KEY], place)
    if entries.keys() != content.stored.keys():
        first = min(entries.keys() ^ content.stored.keys())
        place.at(first).fail(Rule.PARTS, "the tensor is in the file or in its metadata, expected it in both")
    for name, entry in entries.items():
        place.at(name).expect(Rule.DTYPE, "the dtype", content.stored[name].dtype, entry.dtype)
        place.at(name).expect(Rule.SHAPE, "the shape", tuple(content.stored[name].shape), entry.shape)
    check_parts(entries, content.masked, content.format, place)
    return content


def _read_state(tensors: StoredTensors, content: Content) -> tuple[dict[str, Tensor], Masks]:
    state: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for name in sorted(tensors.entries.keys() | content.masked.keys()):
        if name in content.masked:
            state[name], masks[name] = unpack(tensors, name, content.masked[name])
        elif not is_part(name):
            state[name] = tensors.read(name)
    lost = {name: record.kept_zeros for name, record in content.masked.items() if record.kept_zeros}
    if content.format == "dense" and lost:
        warnings.warn(
            f"{tensors.place.path}: {sum(lost.values())} kept weights equal 0.0 and are not in the masks, "
            f"which a dense file does not store ({', '.join(sorted(lost))}); "
            "save with format='compact' to keep them",
            stacklevel=3,
        )
    return state, Masks(masks)
