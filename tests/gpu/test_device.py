"""What is said where there is no GPU, and where it has no room."""

import builtins
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import lucid
from gpu.emulator import Emulator
from lucid._gpu import runtime
from lucid.device import DeviceError, check_device, device_of, gpu_status, is_on_gpu, moved, on_host


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine where nobody has asked for the GPU yet."""
    before = runtime.set_backend(None)
    yield monkeypatch
    runtime.set_backend(before)


def test_without_cupy(nothing: pytest.MonkeyPatch) -> None:
    nothing.setitem(sys.modules, "cupy", None)
    assert gpu_status() == (
        "not available: CuPy is not installed: pip install 'lucid-bert[gpu]' for CUDA 13, or 'lucid-bert[gpu12]' for CUDA 12"
    )
    with pytest.raises(DeviceError, match=r"^device 'gpu' is not available: CuPy is not installed: pip install .*\. Use device='cpu'\.$"):
        check_device("gpu")


def test_with_a_cupy_that_is_broken(nothing: pytest.MonkeyPatch) -> None:
    def broken(name: str, *args: Any, **options: Any) -> Any:
        if name == "cupy":
            raise ImportError("libcudart.so.13: cannot open\nshared object file", name="cupy._core")
        return before(name, *args, **options)

    before = builtins.__import__
    nothing.setattr(builtins, "__import__", broken)
    assert re.search(r"^not available: CuPy cannot be imported \(libcudart.so.13: cannot open shared object file\)", gpu_status())


def test_without_a_driver(nothing: pytest.MonkeyPatch) -> None:
    class NoDriver:
        def status(self) -> str:
            raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is\ninsufficient for CUDA runtime version")

    runtime.set_backend(NoDriver())  # type: ignore[arg-type]
    assert re.search(
        r"^not available: CuPy finds no GPU \(cudaErrorInsufficientDriver: .* version\): `nvidia-smi` must show one", gpu_status()
    )
    with pytest.raises(DeviceError, match="Use device='cpu'"):
        moved(np.ones(3), "gpu")


def test_import_of_lucid_imports_no_cupy() -> None:
    code = "import lucid, lucid.models, lucid.optim, sys; sys.exit(any(m.partition('.')[0] in ('cupy', 'ml_dtypes') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_moving(emulated: Emulator) -> None:
    host = np.arange(3)
    there = moved(host, "gpu")
    assert (device_of(host), device_of(there)) == ("cpu", "gpu")
    assert moved(host, "cpu") is on_host(host) is host
    assert moved(there, "gpu") is there
    assert np.array_equal(on_host(there), host)


def test_only_cupys_arrays_are_the_gpus(emulated: Emulator) -> None:
    class TorchTensor:
        """torch's have the interface wherever they are, and raise."""

        @property
        def __cuda_array_interface__(self) -> Any:
            raise AttributeError("not on the GPU")

    assert is_on_gpu(runtime.xp.zeros(3))
    assert not any(map(is_on_gpu, (np.ones(3), np.float32(1), [1], None, TorchTensor())))
    assert lucid.Tensor(runtime.xp.zeros(3)).device == "gpu"
