"""Tests of what only a GPU can show; `ci/gpu.sh` runs them. They use the server of the end-to-end tests."""

import ctypes
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))


class Gpu:
    """The first GPU, asked through the driver."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.device, context = ctypes.c_int(), ctypes.c_void_p()
        self.check(self.cuda.cuInit(0))
        self.check(self.cuda.cuDeviceGet(ctypes.byref(self.device), 0))
        self.check(self.cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), self.device))
        self.check(self.cuda.cuCtxSetCurrent(context))

    def check(self, result: int) -> None:
        assert result == 0, f"the driver answers {result}"

    def free_bytes(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.check(self.cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
        return free.value

    def uuid(self) -> str:
        raw = (ctypes.c_ubyte * 16)()
        self.check(self.cuda.cuDeviceGetUuid_v2(raw, self.device))
        h = bytes(raw).hex()
        return f"GPU-{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    return Gpu()
