"""The backends as an instance sees them: results kept by content hash, so that nothing is computed twice.

An unchanged chunk is never embedded twice, a policy's bug fix embeds nothing again, and replay gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamfold.core.context import Context, Runtime, backend_identities
from streamfold.core.errors import ConfigError
from streamfold.core.policy import Chunker, Encoder


def content_hash(text: str) -> bytes:
    """16 bytes of blake2b of the UTF-8 text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def backend_name(kind: str, identity: Mapping[str, Any]) -> str:
    """The name under which the ledger keeps a backend's results."""
    return f"{kind}:{json.dumps(identity, sort_keys=True, separators=(',', ':'))}"


EXTRACTED_BY_US = "streamfold/"
"""How ``extractor`` begins in the ``document.extracted`` events that are not somebody else's."""


def extractor_id(identity: Mapping[str, Any]) -> str:
    """Name an extractor in its events: backend, model, and a hash over all that decides what it finds."""
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=4).hexdigest()
    model = str(identity.get("model", ""))[:80]
    return f"{EXTRACTED_BY_US}{identity['use']}{':' if model else ''}{model}@{digest}"


class KeptEncoder:
    """An encoder whose rows are kept in the ledger by (workspace, backend identity, content hash)."""

    def __init__(self, inner: Encoder, context: Context, workspace: str, identity: str) -> None:
        self._inner = inner
        self._context = context
        self._workspace = workspace
        self._identity = identity
        self.name = inner.name
        self.version = inner.version
        self.dim = inner.dim

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        ledger = self._context.ledger
        hashes = [content_hash(text) for text in texts]
        kept = ledger.results_get(self._workspace, self._identity, list(dict.fromkeys(hashes)))
        missing = {h: text for h, text in zip(hashes, texts, strict=True) if h not in kept}
        if missing:
            rows = np.ascontiguousarray(self._inner.encode(list(missing.values())), np.float32)
            ledger.results_put(
                self._workspace, self._identity, {h: row.tobytes() for h, row in zip(missing, rows, strict=True)}
            )
            # The first writer wins: what stands in the ledger is what every replay will see.
            kept |= ledger.results_get(self._workspace, self._identity, list(missing))
        return np.stack([np.frombuffer(kept[h], np.float32) for h in hashes])


class InstanceTools:
    """The backends pinned with an instance; ``keep=False`` (the read side) does not write results."""

    def __init__(self, context: Context, workspace: str, runtime: Runtime, *, keep: bool) -> None:
        self._context = context
        self._workspace = workspace
        self._identities = backend_identities(runtime.instance)
        self._key = runtime.key
        self._keep = keep
        self._made: dict[str, Any] = {}

    def _backend(self, kind: str) -> Any:
        if kind not in self._made:
            identity = self._identities.get(kind)
            if identity is None:
                raise ConfigError(f"policy {self._key} uses the backend {kind!r} without naming it in `backends`")
            backend = self._context.registry.make_backend(kind, identity)
            if self._keep and kind == "encoder":
                backend = self._wrapped(backend, backend_name(kind, identity))
            self._made[kind] = backend
        return self._made[kind]

    def _wrapped(self, encoder: Encoder, identity: str) -> Encoder:
        return KeptEncoder(encoder, self._context, self._workspace, identity)

    @property
    def encoder(self) -> Encoder:
        encoder: Encoder = self._backend("encoder")
        return encoder

    @property
    def chunker(self) -> Chunker:
        chunker: Chunker = self._backend("chunker")
        return chunker

    @property
    def extractor_id(self) -> str | None:
        identity = self._identities.get("extractor")
        return None if identity is None else extractor_id(identity)


class RecordingTools(InstanceTools):
    """Backends that note which kept results an event needs, and compute nothing."""

    def __init__(self, context: Context, workspace: str, runtime: Runtime) -> None:
        super().__init__(context, workspace, runtime, keep=True)
        self.used: set[tuple[str, bytes]] = set()

    def _wrapped(self, encoder: Encoder, identity: str) -> Encoder:
        return _RecordingEncoder(encoder, identity, self.used)


class _RecordingEncoder:
    def __init__(self, inner: Encoder, identity: str, used: set[tuple[str, bytes]]) -> None:
        self._identity = identity
        self._used = used
        self.name = inner.name
        self.version = inner.version
        self.dim = inner.dim

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self._used.update((self._identity, content_hash(text)) for text in texts)
        rows = np.zeros((len(texts), self.dim), np.float32)
        rows[:, 0] = 1.0
        return rows
