"""Snapshots of the layers: a folder with one index file per segment, the growing rows, and a manifest written last.

::

    segment-<number>-<digest>.faiss   inverted lists or graph; memory-mapped on restore, shared by processes
    state.safetensors                 slot → id and live bits of each segment; ids and float16 rows of the buffers
    manifest.json                     what belongs together, with size and BLAKE2b of every file

A segment does not change once made (but for live bits): a later snapshot links its file instead of writing it again.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from safetensors.numpy import load_file, save_file

from streamfold.core.errors import CorruptCheckpoint, StoreError
from streamfold.core.files import file_digest
from streamfold.core.stores.abc import Floats, Ids
from streamfold.core.stores.vectors.layers import AnySegment, Layers
from streamfold.core.stores.vectors.segment import Coarse, HnswSegment, IvfSegment, SavedFile

_MANIFEST, _STATE = "manifest.json", "state.safetensors"


class Restored(NamedTuple):
    """What a snapshot holds."""

    segments: list[AnySegment]
    coarse: Coarse | None
    ids: Ids
    rows: Floats
    nprobe: int


def save_layers(layers: Layers, path: Path, *, dim: int, normalize: bool, nprobe: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    with layers.lock:  # one moment; what is written afterwards does not change any more
        view, current = layers.view, layers.coarse
        alive = [segment.bits.copy() for segment in view.segments]
        rows = [(b.ids[s], b.matrix[s]) for b in view.buffers for s in [b.live_slots()]]
    arrays: dict[str, Any] = {
        "ids": np.concatenate([ids for ids, _ in rows]),
        "rows": np.concatenate([matrix for _, matrix in rows]).astype(np.float16),
    }
    coarses: list[Coarse] = []
    entries: list[dict[str, Any]] = []
    for segment, bits in zip(view.segments, alive, strict=True):
        saved = _save_segment(segment, path)
        arrays[f"ids.{segment.number}"], arrays[f"live.{segment.number}"] = segment.ids, bits
        entry: dict[str, Any] = {"number": segment.number, "file": saved[0], "size": saved[1], "blake2b": saved[2]}
        if isinstance(segment, IvfSegment):
            if segment.coarse not in coarses:
                coarses.append(segment.coarse)
            entry["coarse"] = coarses.index(segment.coarse)
        entries.append(entry)
    save_file(arrays, path / _STATE)
    manifest = {
        "format": 1,
        "dim": dim,
        "normalize": normalize,
        "nprobe": nprobe,
        "segments": entries,
        "coarse": [
            {"kind": c.kind, "trained_rows": c.trained_rows, "imbalance": c.imbalance, "tuned": c.tuned,
             "current": c is current}
            for c in coarses
        ],
        "state": {"size": (path / _STATE).stat().st_size, "blake2b": file_digest(path / _STATE)},
    }  # fmt: skip
    manifest["blake2b"] = _own_digest(manifest)
    partial = path / f"{_MANIFEST}.tmp"
    partial.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    os.replace(partial, path / _MANIFEST)


def _save_segment(segment: AnySegment, path: Path) -> tuple[str, int, str]:
    """Link or write a segment's index; returns file name, size, digest."""
    file = segment.file
    if file is not None:
        name = f"segment-{segment.number}-{file.digest[:12]}.faiss"
        if (path / name).exists() or file.link(path / name):
            return name, file.size, file.digest
    partial = path / f"segment-{segment.number}.tmp"
    faiss.write_index(segment.index, str(partial))
    digest, size = file_digest(partial), partial.stat().st_size
    name = f"segment-{segment.number}-{digest[:12]}.faiss"
    os.replace(partial, path / name)
    segment.file = SavedFile(path / name, digest, size)
    return name, size, digest


def restore_layers(path: Path, *, dim: int, normalize: bool, verify: bool) -> Restored:
    manifest = _manifest(path)
    if (manifest["dim"], manifest["normalize"]) != (dim, normalize):
        raise StoreError(
            f"snapshot {path} has dim {manifest['dim']}, normalize {manifest['normalize']}, "
            f"not dim {dim}, normalize {normalize}"
        )
    expected = {_STATE: manifest["state"]} | {entry["file"]: entry for entry in manifest["segments"]}
    for name, entry in expected.items():
        _check(path / name, entry, verify)
    try:
        state = load_file(path / _STATE)
        coarses: dict[int, Coarse] = {}
        current: Coarse | None = None
        segments: list[AnySegment] = []
        for entry in manifest["segments"]:
            segments.append(_load_segment(path, entry, state, manifest["coarse"], coarses))
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise CorruptCheckpoint(f"snapshot {path} cannot be read: {error}") from error
    for number, coarse in coarses.items():
        if manifest["coarse"][number]["current"]:
            current = coarse
    if current is None and coarses:
        current = coarses[max(coarses)]
    return Restored(segments, current, state["ids"], state["rows"].astype(np.float32), int(manifest["nprobe"]))


def _load_segment(
    path: Path,
    entry: dict[str, Any],
    state: dict[str, Any],
    described: list[dict[str, Any]],
    coarses: dict[int, Coarse],
) -> AnySegment:
    number, file = int(entry["number"]), path / entry["file"]
    ids, bits = state[f"ids.{number}"], state[f"live.{number}"]
    alive = np.unpackbits(bits, count=len(ids), bitorder="little").view(np.bool_)
    index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    segment: AnySegment
    if "coarse" in entry:
        which = int(entry["coarse"])
        if which not in coarses:
            about = described[which]
            coarse = coarses[which] = Coarse.of(index, about["kind"], int(about["trained_rows"]))
            coarse.imbalance, coarse.tuned = float(about["imbalance"]), int(about["tuned"])
        segment = IvfSegment(number, coarses[which], index, ids, alive)
    else:
        # The graph's memory map cannot be cloned for the next merge: read it as a whole.
        segment = HnswSegment(number, faiss.read_index(str(file)), ids, alive)
    segment.viewed = "coarse" in entry
    segment.file = SavedFile(file, entry["blake2b"], int(entry["size"]))
    return segment


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != 1:
            raise ValueError(f"format {manifest['format']}")
        if manifest.pop("blake2b") != _own_digest(manifest):
            raise ValueError("it was changed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"snapshot {path}: {_MANIFEST} cannot be read: {error!r}") from error
    return dict(manifest)


def _own_digest(manifest: dict[str, Any]) -> str:
    """Of the manifest's values, however they are laid out."""
    return hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).hexdigest()


def _check(file: Path, entry: dict[str, Any], verify: bool) -> None:
    try:
        size = file.stat().st_size
    except OSError:
        raise CorruptCheckpoint(f"snapshot file {file} is missing; rebuild from the ledger") from None
    if size != entry["size"] or (verify and file_digest(file) != entry["blake2b"]):
        raise CorruptCheckpoint(f"snapshot file {file} is changed or cut; rebuild from the ledger")
