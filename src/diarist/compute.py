"""Where and in which precision the networks run, decided by asking the hardware.

Matrix products dominate everything here, so this module also prepares them: `linear` packs a weight once into the
layout that the device's library wants and fuses what follows the product (GELU, residual) where it can.
"""

import ctypes
import mmap
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from diarist import native
from diarist.errors import ComputeError, OptionError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.float32}
_SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


T = TypeVar("T")


class Recorder(Protocol):
    """Turns work on fixed tensors into something that can be done again at once."""

    def __call__(self, work: Callable[[], T]) -> Callable[[], T]:
        """Record work.

        Args:
            work: Reads and writes tensors that stay where they are; waits for nothing and decides nothing by their
                values. It has been done before, so that libraries are loaded.

        Returns:
            Does it again and returns the same tensors, with new contents. What other recordings returned may be
            overwritten.
        """


class Linear(Protocol):
    """A prepared product: x [..., in] to [..., out], then GELU, or a residual [..., out] added."""

    def __call__(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Compute:
    """A device and the precision to use on it."""

    device: torch.device
    dtype: torch.dtype
    """Type of activations, caches and unpacked weights."""
    int8: bool = False
    """Weights of products quantised to 8 bits, activations quantised on the fly. Where all of a model is computed so,
    `dtype` is float32."""

    @property
    def name(self) -> str:
        """As a person writes it: cpu bfloat16, cuda:0 float16, cpu int8."""
        return f"{self.device} {'int8' if self.int8 else str(self.dtype).removeprefix('torch.')}"


def choose(device: str = "auto", dtype: str = "auto") -> Compute:
    """Pick a device and a precision that are fast here and lose no accuracy that matters.

    float16 on CUDA; bfloat16 with AMX; int8 with float32 activations where `native` is compiled; bfloat16 with AVX512-BF16;
    int8 on other x86 processors; float32 elsewhere. float16 is never chosen on a CPU: there it is slow.

    Raises:
        OptionError: An unknown name.
        ComputeError: The device is not there, or cannot do that precision.
    """
    where = _choose_device(device)
    name = _SHORT_NAMES.get(dtype, dtype)
    if name == "auto":
        name = _fastest_dtype(where)
    if name not in _DTYPES:
        raise OptionError("dtype", f"{dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    if name == "int8" and where.type != "cpu":
        raise ComputeError("int8 runs on the CPU only; on CUDA use --dtype float16 or bfloat16")
    if name == "float16" and where.type == "cpu":
        raise ComputeError("float16 is slower than float32 on a CPU; use --dtype bfloat16, int8 or float32")
    return Compute(where, _DTYPES[name], int8=name == "int8")


def rough(compute: Compute) -> Compute:
    """The same with 8-bit weights where the device multiplies them: for what only has to be nearly right.

    At a few rows a product takes as long as its weights take to be read.
    """
    return replace(compute, int8=compute.int8 or (compute.device.type == "cpu" and _packs_int8()))


def unquantised(compute: Compute) -> Compute:
    """What suits networks beside a model in 8 bits: bfloat16 where the processor multiplies it."""
    if not compute.int8:
        return compute
    return Compute(compute.device, torch.bfloat16 if multiplies_bfloat16() else torch.float32)


def for_few_rows(compute: Compute) -> Compute:
    """What suits products of a few rows: 8-bit weights where bfloat16 is precise enough for all others.

    Such products are made of float32 and come in it, so it stays so from one to the next: less is rounded (logits from
    16 to 32 would have steps of 1/8), and turning a few rows from type to type takes as long as half a product.
    """
    if compute.dtype != torch.bfloat16:
        return compute
    few = rough(compute)
    return replace(few, dtype=torch.float32) if few.int8 else compute


def _packs_int8() -> bool:
    return "x86" in torch.backends.quantized.supported_engines


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError:
        raise OptionError("device", f"{device!r} is not one of auto, cpu, cuda, cuda:N") from None
    if where.type not in ("cpu", "cuda"):
        raise OptionError("device", f"{device!r} is not one of auto, cpu, cuda, cuda:N")
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ComputeError("no CUDA device is available here; use --device cpu, or install a CUDA build of torch")
    return where


def _fastest_dtype(device: torch.device) -> str:
    if device.type == "cuda":
        return "float16"
    if multiplies_bfloat16() and (has_amx() or not native.is_available()):
        return "bfloat16"
    return "int8" if _packs_int8() else "float32"


def multiplies_bfloat16() -> bool:
    """Whether this processor has bfloat16 products in hardware, and oneDNN is not told to leave them alone."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit and "AMX" not in limit and "BF16" not in limit and limit != "DEFAULT":
        return False
    return has_amx() or bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001


def has_amx() -> bool:
    """Whether this processor has AMX, and oneDNN is not told to leave it alone."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    return (limit == "DEFAULT" or "AMX" in limit) and bool(torch.cpu._is_amx_tile_supported())  # noqa: SLF001


def free_bytes(compute: Compute) -> int | None:
    """Memory that an accelerator has left; None on a processor."""
    return torch.cuda.mem_get_info(compute.device)[0] if compute.device.type == "cuda" else None


def hand_back(tensor: Tensor) -> None:
    """Let the system have the memory of a tensor until it is written again; what it holds is lost. On processors only."""
    if tensor.device.type != "cpu" or sys.platform != "linux":
        return
    first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first, last = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def recorder(compute: Compute) -> Recorder | None:
    """What records work on this device; None where that would bring nothing."""
    return _CudaGraphs() if compute.device.type == "cuda" else None


class _CudaGraphs:
    """CUDA graphs that share their memory, for they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], T]) -> Callable[[], T]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = work()

        def replay() -> T:
            graph.replay()
            return result

        return replay


def linear(weight: Tensor, bias: Tensor | None, compute: Compute, rows: int = 16) -> Linear:
    """Prepare the product x @ weight.T + bias.

    Args:
        weight: Shape (out, in), any float type.
        bias: Shape (out,) or None.
        compute: Where it will run.
        rows: About how many rows x will have; the CPU packing is tuned to it and right for any number.
    """
    if compute.int8:
        if native.is_available() and compute.dtype == torch.float32 and not weight.shape[1] % native.INPUTS:
            return native.Product(weight, bias)
        return _Int8Linear(weight, bias, rows, compute.dtype)
    weight = weight.to(compute.device, compute.dtype)
    bias = None if bias is None else bias.to(compute.device, compute.dtype)
    if compute.device.type == "cpu" and compute.dtype == torch.bfloat16 and packs_bfloat16():
        return _PackedLinear(weight, bias, rows)
    return _PlainLinear(weight, bias)


def packs_bfloat16() -> bool:
    """Whether oneDNN takes bfloat16 weights in its own layout on this processor."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001


class _PlainLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if gelu:
            y = F.gelu(y)
        return y if residual is None else y.add_(residual)


_ROW_STEP = 16
_MANY_ROWS = 1024  # an encoder is tuned to more, a decoder to fewer


class _PackedLinear:
    """oneDNN bfloat16 product with the weight reordered once and GELU or residual fused (1.5-2.5 x at few rows).

    oneDNN makes a program for every number of rows that it meets and keeps it, which takes a millisecond and up to a
    megabyte. So where rows are few, and any number may come, numbers above `_ROW_STEP` are filled up to a multiple of it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)  # noqa: SLF001
        self.bias = bias
        self._fills = rows < _MANY_ROWS
        self._product = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
        self._product_add = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001

    def __call__(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        rows = x.shape[:-1].numel()
        if self._fills and rows > _ROW_STEP and rows % _ROW_STEP:
            filled = F.pad(x.reshape(rows, -1), (0, 0, 0, -rows % _ROW_STEP))
            y = self(filled, gelu=gelu)[:rows].view(*x.shape[:-1], -1)
            return y if residual is None else y.add_(residual)
        if residual is not None:
            return self._product_add(x, residual, self.weight, self.bias, "add")  # type: ignore[no-any-return]
        return self._product(x, self.weight, self.bias, "gelu" if gelu else "none", [], "none")  # type: ignore[no-any-return]


_STEPS = 127  # of 8 bits, on either side of zero


def _weight_steps() -> int:
    """Without VNNI the sums of two products have 16 bits, which 255 times 127 twice would exceed."""
    return _STEPS if torch.cpu._is_vnni_supported() else _STEPS // 2  # noqa: SLF001


class _Int8Linear:
    """Per-channel 8-bit weights, float32 inside (VNNI or AVX2).

    Activations, of any float type, are quantised on the fly. Each row of a few has a scale of its own, so that what
    comes of it does not depend on its company; many share one, which saves two passes over them.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int, dtype: torch.dtype) -> None:
        weight = weight.detach().float().cpu()
        scale = (weight.abs().amax(dim=1) / _weight_steps()).clamp_min_(1e-12)
        with warnings.catch_warnings():  # deprecated, yet the packed product has no other way in
            warnings.simplefilter("ignore", UserWarning)
            zero = torch.zeros(len(scale), dtype=torch.long)
            quantised = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
        self.bias = torch.zeros(len(scale)) if bias is None else bias.float().cpu()
        self.dtype = dtype
        self._by_row = rows < _MANY_ROWS
        self.packed = torch.ops.quantized.linear_prepack(quantised, None if self._by_row else self.bias)

    def __call__(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        y = (self._product_by_row if self._by_row else self._product)(x.float()).to(self.dtype)
        if gelu:
            y = F.gelu(y)
        return y if residual is None else y.add_(residual)

    def _product(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(x, self.packed, reduce_range=False)  # type: ignore[no-any-return]

    def _product_by_row(self, x: Tensor) -> Tensor:
        loudest = x.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-12)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return torch.addcmul(self.bias, product(x / loudest, 1 / _STEPS, _STEPS + 1, self.packed), loudest)
