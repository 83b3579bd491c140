"""NVIDIA's driver as libraries of C: libcuda and libnvidia-ml, in place of `ctypes.CDLL`."""

from __future__ import annotations

from collections.abc import Sequence


class FakeDriver:
    """A driver with a GPU for each of `capabilities`; `status` is what cuInit answers, `failing` a call that fails."""

    def __init__(self, capabilities: Sequence[str] = ("8.6", "8.7"), *, status: int = 0, failing: str = "") -> None:
        self.capabilities = capabilities
        self.status = status
        self.failing = failing

    def __getattr__(self, name: str):
        if name == self.failing:
            return lambda *_: 999
        if not hasattr(type(self), f"do_{name}"):
            raise AttributeError(name)
        return lambda *arguments: getattr(self, f"do_{name}")(*arguments) or 0

    def do_cuInit(self, flags) -> int:  # noqa: N802
        return self.status

    def do_cuDeviceGetCount(self, count) -> None:  # noqa: N802
        count._obj.value = len(self.capabilities)

    def do_cuDriverGetVersion(self, version) -> None:  # noqa: N802
        version._obj.value = 12090

    def do_cuDeviceGet(self, device, number) -> None:  # noqa: N802
        device._obj.value = number + 10

    def do_cuDeviceGetName(self, name, size, device) -> None:  # noqa: N802
        name.value = f"NVIDIA GPU {device.value}".encode()

    def do_cuDeviceTotalMem_v2(self, memory, device) -> None:  # noqa: N802
        memory._obj.value = device.value << 30

    def do_cuDeviceGetAttribute(self, value, attribute, device) -> None:  # noqa: N802
        value._obj.value = int(self.capabilities[device.value - 10].split(".")[{75: 0, 76: 1}[attribute]])

    def do_nvmlInit_v2(self) -> None:  # noqa: N802
        pass

    def do_nvmlSystemGetDriverVersion(self, text, size) -> None:  # noqa: N802
        text.value = b"580.82.07"

    def do_nvmlShutdown(self) -> None:  # noqa: N802
        pass


def no_driver(name: str):
    """`ctypes.CDLL` on a machine without the driver."""
    raise OSError(f"{name}: cannot open shared object file")
