"""Paces a Python program by an emulated GPU, through libtidepool_device.so (src/device/capi/tidepool_device.h).

    gpu = Device("emulated:h200")
    for batch in gpu.data(loader):                # time spent here counts as waiting for data
        gpu.copy_to_device(nbytes(batch))
        gpu.step("resnet50", batch=len(batch))    # queued; or gpu.step(microseconds=3500)
        gpu.keep_queued(2)                        # at most two steps ahead, as a training loop is
    gpu.synchronize()
    print(gpu.report())

The library is looked for in $TIDEPOOL_LIBRARY, then in the build folders of the checkout that this file lies in, then where the
system looks for libraries. It needs no PyTorch.
"""

import collections
import ctypes
import dataclasses
import os
import pathlib

_PHASES = {"forward": 0, "backward": 1, "step": 2, "optimizer": 3}


class TidepoolError(RuntimeError):
    """`code` is the number of gRPC: 3 invalid argument, 4 deadline exceeded, 5 not found, 8 resource exhausted, ..."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Report:
    """The fields of tidepool_report, in seconds and microseconds of the device's timeline."""

    elapsed_seconds: float
    compute_busy_seconds: float
    copy_busy_seconds: float
    data_wait_seconds: float
    host_idle_seconds: float
    utilisation: float
    lateness_p50_us: float
    lateness_p99_us: float
    lateness_max_us: float
    operations: int
    estimated_operations: int
    host_limited: bool


class _CReport(ctypes.Structure):
    _fields_ = (
        [
            (name, ctypes.c_double)
            for name in (
                "elapsed_seconds",
                "compute_busy_seconds",
                "copy_busy_seconds",
                "data_wait_seconds",
                "host_idle_seconds",
                "utilisation",
                "lateness_p50_us",
                "lateness_p99_us",
                "lateness_max_us",
            )
        ]
        + [("operations", ctypes.c_int64), ("estimated_operations", ctypes.c_int64), ("host_limited", ctypes.c_int32)]
    )


def _load():
    name = "libtidepool_device.so"
    named = os.environ.get("TIDEPOOL_LIBRARY")
    if named:
        places = [named]
    else:
        root = pathlib.Path(__file__).resolve().parents[2]
        places = [str(path) for build in ("release", "dev") if (path := root / "build" / build / name).exists()] + [name]
    try:
        library = ctypes.CDLL(places[0])
    except OSError as error:
        raise ImportError(f"{places[0]}: {error}; build it with './dev build', or name it in TIDEPOOL_LIBRARY") from error
    device, ticket = ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64)
    signatures = {
        "tidepool_device_open": [ctypes.c_char_p, ctypes.POINTER(device)],
        "tidepool_launch": [device, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64, ticket],
        "tidepool_launch_us": [device, ctypes.c_double, ticket],
        "tidepool_copy": [device, ctypes.c_int, ctypes.c_int64, ctypes.c_int, ticket],
        "tidepool_wait": [device, ctypes.c_int64, ctypes.c_double],
        "tidepool_synchronize": [device, ctypes.c_double],
        "tidepool_data_wait_begin": [device],
        "tidepool_data_wait_end": [device],
        "tidepool_device_report": [device, ctypes.POINTER(_CReport)],
    }
    for function, arguments in signatures.items():
        getattr(library, function).argtypes = arguments
    library.tidepool_device_close.argtypes = [device]
    library.tidepool_device_close.restype = None
    library.tidepool_last_error.restype = ctypes.c_char_p
    return library


class Device:
    """One emulated device. Methods may be called by any thread; the interpreter's lock is released while they wait."""

    def __init__(self, name, timeout_seconds=600.0):
        self._library = _load()
        self._handle = ctypes.c_void_p()
        self._timeout = timeout_seconds
        self._queued = collections.deque()
        self._call("tidepool_device_open", name.encode(), ctypes.byref(self._handle))

    def close(self):
        if self._handle:
            self._library.tidepool_device_close(self._handle)
            self._handle = ctypes.c_void_p()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        if getattr(self, "_handle", None):
            self.close()

    def step(self, model=None, batch=1, phase="step", microseconds=None):
        """Queues arithmetic: a phase of a network that the profile knows, or `microseconds` of it. Returns a ticket."""
        if (model is None) == (microseconds is None):
            raise ValueError("step takes either a model or microseconds")
        ticket = ctypes.c_int64()
        if microseconds is not None:
            self._on_device("tidepool_launch_us", microseconds, ctypes.byref(ticket))
        else:
            if phase not in _PHASES:
                raise ValueError(f"phase {phase!r}; allowed: {', '.join(_PHASES)}")
            self._on_device("tidepool_launch", model.encode(), _PHASES[phase], batch, ctypes.byref(ticket))
        self._queued.append(ticket.value)
        return ticket.value

    def copy_to_device(self, size_bytes, pinned=True):
        """Queues a copy; steps that are queued later wait for it."""
        self._on_device("tidepool_copy", 0, size_bytes, int(pinned), None)

    def copy_to_host(self, size_bytes, pinned=True):
        """Queues a copy of what was queued before. Returns a ticket."""
        ticket = ctypes.c_int64()
        self._on_device("tidepool_copy", 1, size_bytes, int(pinned), ctypes.byref(ticket))
        return ticket.value

    def wait(self, ticket):
        self._on_device("tidepool_wait", ticket, self._timeout)

    def keep_queued(self, steps):
        """Waits until no more than `steps` of the steps are unfinished."""
        while len(self._queued) > steps:
            self.wait(self._queued.popleft())

    def synchronize(self):
        self.keep_queued(0)
        self._on_device("tidepool_synchronize", self._timeout)

    def data(self, loader):
        """The items of `loader`; the time that each takes to come counts as waiting for data."""
        items = iter(loader)
        while True:
            self._on_device("tidepool_data_wait_begin")
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._on_device("tidepool_data_wait_end")
            yield item

    def report(self):
        report = _CReport()
        self._on_device("tidepool_device_report", ctypes.byref(report))
        values = {name: getattr(report, name) for name, _ in _CReport._fields_}
        values["host_limited"] = bool(values["host_limited"])
        return Report(**values)

    def _on_device(self, function, *arguments):
        if not self._handle:
            raise ValueError("the device is closed")
        self._call(function, self._handle, *arguments)

    def _call(self, function, *arguments):
        code = getattr(self._library, function)(*arguments)
        if code != 0:
            raise TidepoolError(code, self._library.tidepool_last_error().decode(errors="replace"))
