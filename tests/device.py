"""A device that is not there: its tensors compute on the CPU, refuse to meet CPU tensors, and count trips to the host.

    with Device() as device:
        model = build().to(device.place)
        batch = upload(batch, device.place)
        with device.trips() as trips:
            step(model, batch)
    assert len(trips) <= 3, trips

A trip is whatever makes a host wait for a GPU: reading a number (`item`, `tolist`, `nonzero`, an index of booleans, a
suppression, which returns as many boxes as it finds), and copying something that was made on the host (`new_tensor`,
`torch.tensor(..., device=)`, `.to(device)` without `non_blocking`). Each knows the line of this library it came from.
"""

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
PLACE = torch.device("privateuseone", 0)
# What PyTorch's C++ believes: a kind of device that nobody registers and that autograd serves from the calling thread.
_INSIDE = torch.device("lazy", 0)
_READS = {
    aten._local_scalar_dense.default: "item",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.nonzero_numpy.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.bincount.default: "bincount",
}
_STRICT = {aten.cat.default, aten.stack.default}  # take no number from the host either
_HERE = Path(__file__).resolve()
_ROOT = _HERE.parent.parent


def _ours(device):
    return device is not None and torch.device(device).type in (PLACE.type, _INSIDE.type)


def _way():
    "The lines of this library, and of tests, that led here, innermost first, and the functions they are in."
    frame, way = sys._getframe(1), []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if _ROOT in path.parents and path != _HERE and "site-packages" not in path.parts:
            way.append((f"{path.relative_to(_ROOT)}:{frame.f_lineno}", frame.f_code.co_name))
        frame = frame.f_back
    return way or [("elsewhere", "")]


def _line():
    return _way()[0][0]


class Trips(list):
    "What made the host wait: kind and line of each; how much was sent without waiting; how much was launched."

    def __init__(self):
        super().__init__()
        self.sent = self.launches = 0
        self.ways = []

    def during(self, function):
        "Those that happened inside a function of this name."
        return [trip for trip, way in zip(self, self.ways, strict=True) if function in way]

    def __repr__(self):
        return f"{len(self)} trips:\n  " + "\n  ".join(f"{line}  {kind}" for kind, line in self)


_open: list[Trips] = []


def _trip(kind):
    way = _way()
    for trips in _open:
        trips.append((kind, way[0][0]))
        trips.ways.append({function for _, function in way})


def _sent():
    for trips in _open:
        trips.sent += 1


def _launch():
    for trips in _open:
        trips.launches += 1


class DeviceTensor(torch.Tensor):
    "A tensor that says it lies on the device; `inside` is where it lies."

    @staticmethod
    def __new__(cls, inside):
        with torch.inference_mode(False):  # what is made there may be a view of what was made before
            self = torch.Tensor._make_wrapper_subclass(
                cls, inside.shape, strides=inside.stride(), storage_offset=inside.storage_offset(), dtype=inside.dtype,
                device=_INSIDE)
        self.inside = inside
        return self

    device = property(lambda self: PLACE)
    is_cpu = property(lambda self: False)

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *args, **options):
        raise TypeError(f"can't convert a tensor on {PLACE} to numpy; call .cpu() first")

    __array__ = numpy

    def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
        made = torch.tensor(data, dtype=dtype or self.dtype)
        return (made.to(PLACE) if device is None or _ours(device) else made).requires_grad_(requires_grad)

    def __repr__(self):
        return f"DeviceTensor{tuple(self.shape)}"

    def __format__(self, spec):
        return format(self.item(), spec) if self.ndim == 0 else repr(self)

    def __reduce_ex__(self, protocol):
        return self.detach().cpu().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        copied = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _inside(x):
    return x.inside if isinstance(x, DeviceTensor) else x


def _indexed(args):
    "The tensors of an index that are no whole numbers."
    return [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]


def _watch(func, args, kwargs, tensors):
    "Count what this operation costs the host; raise if tensors meet that may not."
    name = func.overloadpacket.__name__
    if func in _READS:
        _trip(_READS[func])
    elif func is torch.ops.torchvision.nms.default:
        _trip("nms")
    elif func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        _trip("repeat_interleave")
    elif func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
        filled = func is not aten.index.Tensor and args[2].ndim == 0
        if isinstance(args[0], DeviceTensor) and _indexed(args) and not filled:
            _trip("index of booleans")
        elif any(i is not None and not isinstance(i, DeviceTensor) for i in args[1]):
            _trip("index from the host")
            return
    strangers = [t for t in tensors if not isinstance(t, DeviceTensor) and (t.ndim or func in _STRICT)]
    if strangers and any(isinstance(t, DeviceTensor) for t in tensors):
        raise RuntimeError(f"{name}: expected all tensors on one device, found {PLACE} and cpu, at {_line()}")


def _copied(func, args, kwargs):
    "Copies, which may cross over, and cost the host a wait unless they are sent ahead."
    if func is aten.copy_.default:
        to, of, ahead = isinstance(args[0], DeviceTensor), isinstance(args[1], DeviceTensor), args[2:] == (True,)
        here = args[0]
    else:
        of, device = isinstance(args[0], DeviceTensor), kwargs.get("device")
        to, ahead = of if device is None else _ours(device), kwargs.get("non_blocking", False)
        kwargs, here = {**kwargs, "device": None}, None
    if to and not of:
        _sent() if ahead else _trip("copy from the host")
    elif of and not to:
        _trip("copy to the host")
    done = func(*map(_inside, args), **kwargs)
    return here if here is not None else DeviceTensor(done) if to else done


def _run(func, args, kwargs):
    if func in (aten._to_copy.default, aten.copy_.default):
        _launch()
        return _copied(func, args, kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_device = any(isinstance(t, DeviceTensor) for t in tensors) or _ours(kwargs.get("device"))
    if not on_device:
        return func(*args, **kwargs)
    if func.namespace == "lesa_nb":  # our own operators are seen through: what they do is done on the device
        with _Dispatch():
            return OPDEFS[f"{func.namespace}::{func._opname}"]._init_fn(*args, **kwargs)
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with _Dispatch():
            return func.decompose(*args, **kwargs)
    _launch()
    _watch(func, args, kwargs, tensors)
    if _ours(kwargs.get("device")):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(t.inside): t for t in tensors if isinstance(t, DeviceTensor)}
    out = func(*tree_map(_inside, args), **tree_map(_inside, kwargs))

    def wrapped(x):
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else DeviceTensor(x)

    return tree_map(wrapped, out)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    "Makes tensors from Python's numbers on the host, and copies them."

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _ours(kwargs.get("device")):
            options = {name: value for name, value in kwargs.items() if name != "device"}
            return func(*args, **options).to(PLACE)
        return func(*args, **kwargs)


_MODULE = SimpleNamespace(
    is_available=lambda: False, is_initialized=lambda: False, _initialized=False, _is_in_bad_fork=lambda: False,
    device_count=lambda: 1, current_device=lambda: 0, manual_seed_all=lambda seed: None,
    get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16])


class Device(contextlib.ExitStack):
    "While it is open, tensors can be made on `place`, and their trips counted."

    place = PLACE

    def __enter__(self):
        if not hasattr(torch, PLACE.type):
            torch._register_device_module(PLACE.type, _MODULE)
        self.enter_context(_Functions())
        self.enter_context(_Dispatch())
        return super().__enter__()

    @contextlib.contextmanager
    def trips(self):
        trips = Trips()
        _open.append(trips)
        try:
            yield trips
        finally:
            _open.remove(trips)
