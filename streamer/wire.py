"""Objects full of arrays from one process to another: the arrays through shared memory, the rest in a few bytes."""

import mmap
import os
import pickle
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

_ALIGN = 64  # bytes: a cache line, and more than any dtype asks for
_MIN_BYTES = mmap.PAGESIZE


class Message(NamedTuple):
    """What the reader of a segment needs: the object without its arrays' bytes, and how long each of these is."""

    head: bytes
    lengths: tuple[int, ...]


class Segment:
    """Memory that two processes share, for one object at a time; it grows with what is put into it.

    It has no name, only a descriptor that the child inherits: nothing can be left behind in ``/dev/shm``, whoever is
    killed, and a container's small ``/dev/shm`` does not bound it. Pickles only into a process that is being started.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = _anonymous_file() if descriptor is None else descriptor
        self._memory: mmap.mmap | None = None

    def __reduce__(self) -> tuple[Callable[[Any], "Segment"], tuple[Any]]:
        return _received, (DupFd(self._descriptor),)

    def memory(self, n_bytes: int) -> mmap.mmap:
        """The memory, at least so many bytes of it, zeros where nothing was written."""
        if self._memory is None or len(self._memory) < n_bytes:
            size = max(os.fstat(self._descriptor).st_size, n_bytes, _MIN_BYTES)
            # In powers of two: untouched pages cost nothing, mapping anew does.
            size = 1 << (size - 1).bit_length()
            os.ftruncate(self._descriptor, size)
            # Arrays that still lie in the old mapping keep it.
            self._memory = mmap.mmap(self._descriptor, size)
        return self._memory

    def write(self, content: object) -> Message:
        """Copy the arrays in. Contiguous ones are copied once; others travel, correct but slow, in the head."""
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        raw = [buffer.raw() for buffer in buffers]
        lengths = tuple(one.nbytes for one in raw)
        starts, end = _places(lengths)
        memory = memoryview(self.memory(end))
        for start, one in zip(starts, raw, strict=True):
            memory[start : start + one.nbytes] = one
        return Message(head, lengths)

    def read(self, message: Message) -> Any:
        """The object; its arrays lie in the shared memory, valid until the other side writes again."""
        starts, end = _places(message.lengths)
        memory = memoryview(self.memory(end))
        views = [memory[start : start + n] for start, n in zip(starts, message.lengths, strict=True)]
        return pickle.loads(message.head, buffers=views)  # noqa: S301 - from our own child, or our own parent

    def close(self) -> None:
        """Let go of it; arrays read from it stay valid as long as they live."""
        self._memory = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _places(lengths: tuple[int, ...]) -> tuple[list[int], int]:
    """Where each array starts, and where the last one ends."""
    starts, end = [], 0
    for n_bytes in lengths:
        starts.append(end)
        end += -(-n_bytes // _ALIGN) * _ALIGN
    return starts, end


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("anabranch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _received(duplicate: Any) -> Segment:
    return Segment(duplicate.detach())
