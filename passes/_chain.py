# SPDX-License-Identifier: Apache-2.0
"""A float model run section by section, with errors in it and without, by several threads."""

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace

import onnx

from qhyvit_onnx.facts import Grids
from qhyvit_onnx.passes._sections import Section
from qhyvit_onnx.passes._twins import stirred, twin_model
from qhyvit_onnx.runtime import Arrays, Options, Session

_ALONE = Options(fuse_qdq=False, threads=1, arena=False)
"""One thread: sections run side by side. Arenas of all of them would add up to 0.4 GB."""

_ONCE = replace(_ALONE, optimize=False)
"""For what runs once a sample: to optimize it would take longer."""


@dataclass(slots=True)
class Chain:
    """The sections of a model that hold what is wanted of it, opened when the first sample runs."""

    model: onnx.ModelProto
    sections: Sequence[Section]
    grids: Grids
    pool: Executor
    _plain: list[Session] = field(default_factory=list)
    _stirred: list[Future[Session]] = field(default_factory=list)
    _twins: list[Future[Session]] = field(default_factory=list)

    def clean(self, feeds: Arrays) -> tuple[Arrays, list[Future[Arrays]]]:
        """Return what sections read and write when nothing is perturbed, and what perturbs them.

        The latter by section: what quantizing each of its units alone adds to their outputs. It is
        found side by side with the former.
        """
        clean, deltas = dict(feeds), []
        for at, section in enumerate(self.sections):
            if at == len(self._plain):
                self._open(section, clean)
            known = {name: clean[name] for name in section.reads}
            deltas.append(self.pool.submit(self._deltas, at, known))
            clean |= self._plain[at].run(known)
        return clean, deltas

    def dirty(self, clean: Arrays, deltas: Arrays, start: int, stop: int) -> Arrays:
        """Return ``clean`` as it is before section ``stop`` with ``deltas`` added in ``start``.

        Nothing else runs than the sections from ``start`` to ``stop``. Threads may call it
        side by side.
        """
        reads = self.sections[start].reads
        dirty = clean | self._stirred[start].result().run({n: clean[n] for n in reads} | deltas)
        for at in range(start + 1, stop):
            dirty |= self._plain[at].run({name: dirty[name] for name in self.sections[at].reads})
        return dirty

    def _open(self, section: Section, clean: Arrays) -> None:
        """Open a section, of which ``clean`` is what it reads."""
        part = section.model(self.model, clean)
        twins = self.pool.submit(
            lambda: Session(twin_model(part, section.probes, self.grids), _ONCE)
        )
        self._twins.append(twins)
        self._stirred.append(
            self.pool.submit(lambda: Session(stirred(part, section.perturbed), _ALONE))
        )
        self._plain.append(Session(part, _ALONE))

    def _deltas(self, at: int, known: Arrays) -> Arrays:
        return self._twins[at].result().run(known)
