"""Which names flow into which tensors, seen below every operation of torch.

Names stick to storages. So views share them, an in-place operation hands them on to whoever sees
the storage, and nothing that a module computes is lost, in whatever language it is written. Pyro's
``ProvenanceTensor`` wraps values instead, and forgets writes into plain tensors. Where the values
decide on the shape (``x[x > 0]``), their names flow into that, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["Names", "Provenance"]

Names = frozenset[str]
NOTHING = Names()

# Operations that take from their tensors only dtype and device, or the shape as well.
SHAPE_ONLY = {
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("randint_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
}
# Functions that look at values where no operation tells.
OPAQUE = {
    *(Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.new_tensor),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__complex__, Tensor.__index__),
    *(torch.tensor, torch.as_tensor, torch.asarray),
}
# Functions that tell Python how large a tensor is.
SIZES = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    *(Tensor.size, Tensor.__len__, Tensor.numel, Tensor.nelement),
    *(torch.numel, Tensor.unbind, torch.unbind),
}


class _Entry(NamedTuple):
    """The names that flowed into the values of a storage, and those that decided on its size."""

    values: Names
    sizes: Names
    owner: weakref.ref[Any]


class Provenance:
    """While it is active, tensors hand their names on to what is computed from them.

    Where Python looks at a value (``if x > 0``, ``int(x)``, ``x.numpy()``), names leave the
    tensors. They go to the innermost :meth:`reading` block.

    **Example**

    >>> import torch
    >>> with Provenance() as provenance:
    ...     x = provenance.mark(torch.zeros(2), {"x"})
    ...     y = torch.ones(3)
    ...     y[:2] = 2 * x
    ...     with provenance.reading() as read:
    ...         larger = bool((y > x.new_zeros(3)).any())
    >>> sorted(provenance.of(y)), sorted(provenance.of(torch.ones(3))), sorted(read)
    (['x'], [], ['x'])
    """

    def __init__(self) -> None:
        # By address of the storage, as long as that lives: then the address may be used again.
        self._entries: dict[int, _Entry] = {}
        self._readers: list[set[str]] = [set()]

    def __enter__(self) -> Self:
        self._modes = ExitStack()
        self._modes.enter_context(_Operations(self))
        self._modes.enter_context(_Functions(self))
        return self

    def __exit__(self, *exc: Any) -> None:
        self._modes.__exit__(*exc)

    def of(self, *values: Any) -> Names:
        """The names that flowed into tensors, or into containers of them."""
        return frozenset[str]().union(*(entry.values for entry in self._found(values)))

    def sizes_of(self, *values: Any) -> Names:
        """The names of the values that decided on the shape of tensors."""
        return frozenset[str]().union(*(entry.sizes for entry in self._found(values)))

    def mark(self, value: Tensor, names: Names | set[str]) -> Tensor:
        """A copy of the tensor that bears these names and no others."""
        copy = value.clone()
        self._set(copy, frozenset(names), NOTHING)
        return copy

    def add(self, names: Names | set[str], *values: Any, sizes: Names = NOTHING) -> None:
        """Let names flow into tensors, and into the shape of tensors."""
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self._set(leaf, self.of(leaf) | names, self.sizes_of(leaf) | sizes)

    def _found(self, values: Any) -> Iterator[_Entry]:
        for leaf in tree_leaves(values) if self._entries else ():
            if isinstance(leaf, Tensor) and (entry := self._entries.get(_storage(leaf)[0])):
                yield entry

    def _set(self, tensor: Tensor, values: Names, sizes: Names) -> None:
        address, owner = _storage(tensor)
        entries = self._entries
        gone = weakref.ref(owner, lambda _: entries.pop(address, None))
        entries[address] = _Entry(values, sizes, gone)

    @contextmanager
    def reading(self) -> Iterator[set[str]]:
        """Collect the names of the values that Python looks at within the block."""
        self._readers.append(set())
        try:
            yield self._readers[-1]
        finally:
            self._readers.pop()

    def read(self, names: Names | set[str]) -> None:
        """Note that Python has looked at values with these names."""
        self._readers[-1] |= names

    @property
    def read_outside(self) -> Names:
        """The names of the values that Python has looked at outside of all such blocks."""
        return frozenset(self._readers[0])


class _Operations(TorchDispatchMode):
    """Hand names on at each operation, whoever calls it: Python, C++ or TorchScript."""

    def __init__(self, provenance: Provenance) -> None:
        super().__init__()
        self.provenance = provenance

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        names, sizes = self.provenance.of(args, kwargs), self.provenance.sizes_of(args, kwargs)
        result = func(*args, **kwargs)
        kind, tags = func.__name__.split(".")[0], getattr(func, "tags", ())
        if kind in SHAPE_ONLY:
            names = sizes if kind.endswith("_like") else NOTHING
        if not names:
            return result
        if torch.Tag.data_dependent_output in tags:
            self.provenance.read(names)
        self.provenance.add(names, result, _written(func, args))
        if torch.Tag.dynamic_output_shape in tags and (kind != "index" or _has_mask(args[1])):
            self.provenance.add(names, result, sizes=names)
        elif sizes:
            self.provenance.add(names, self._shaped((args, kwargs), result), sizes=sizes)
        return result

    def _shaped(self, args: Any, result: Any) -> list[Tensor]:
        """The results whose shape may be due to that of arguments whose values decide on it."""
        inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        own = [leaf for leaf in inputs if leaf.layout == torch.strided and 0 not in leaf.stride()]
        known = {leaf.shape for leaf in own if not self.provenance.sizes_of(leaf)}
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.dim()]
        return [leaf for leaf in results if leaf.shape not in known]


class _Functions(TorchFunctionMode):
    """Tell a function of torch that looks at a value on its way from Python that does.

    ``weights[k]`` and ``one_hot(k, 3)`` look at k, but give a tensor, which then bears its names.
    """

    def __init__(self, provenance: Provenance) -> None:
        super().__init__()
        self.provenance = provenance

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self.provenance.reading() as names:
            result = func(*args, **kwargs)
        if func in OPAQUE:
            names |= self.provenance.of(args, kwargs)
        if func in SIZES:
            self.provenance.read(self.provenance.sizes_of(args))
        if not names:
            return result
        if result is None:  # x[i] = y
            self.provenance.add(names, args[0])
        elif any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            return tree_map_only(Tensor, partial(self._hand_on, names, args), result)
        else:
            self.provenance.read(names)
        return result

    def _hand_on(self, names: set[str], args: Any, result: Tensor) -> Tensor:
        """Let a result bear names; a view of an argument must not give them to the whole of it."""
        inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if not any(result is leaf for leaf in inputs):
            own = self.provenance.of(result)
            if any(_storage(result)[0] == _storage(leaf)[0] for leaf in inputs):
                result = self.provenance.mark(result, own)
        self.provenance.add(names, result)
        return result


def _storage(tensor: Tensor) -> tuple[int, Any]:
    """What tells tensors that share their memory, and the object that lives as long as that."""
    with torch._C.DisableTorchFunction():
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse, or wrapped by a function transform
            return id(tensor), tensor
    return storage._cdata, storage


def _has_mask(indices: Any) -> bool:
    """Whether an index selects by true and false, whose number decides on the shape."""
    return any(i.dtype in (torch.bool, torch.uint8) for i in tree_leaves(indices) if i is not None)


def _written(func: Any, args: Any) -> list[Any]:
    """The arguments that an operation writes into."""
    schema = getattr(func, "_schema", None)
    pairs = [] if schema is None else zip(schema.arguments, args, strict=False)
    return [value for a, value in pairs if a.alias_info and a.alias_info.is_write]
