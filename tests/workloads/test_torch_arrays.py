import gc

import ml_dtypes
import numpy as np
import pytest
import torch

from fedloom.core.records import Array
from fedloom.workloads._torch.arrays import as_array, as_tensor

KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tensors_and_arrays_share_memory_both_ways(kind: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 0]]).to(kind)
    array = as_array(tensor)
    assert array.dtype.name == str(kind).removeprefix("torch.") and array.shape == (2, 2)
    back = as_tensor(array)
    assert back.dtype == kind and back.data_ptr() == tensor.data_ptr() == array.ctypes.data
    array[0, 0] = 1
    assert bool(tensor[0, 0]) and bool(back[0, 0])


def test_bfloat16_values_survive() -> None:
    values = np.array([1.5, -2.0, 3.0e38], ml_dtypes.bfloat16)
    assert as_tensor(values).tolist() == [float(value) for value in values]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16])
def test_read_only_arrays_need_no_copy_and_stay_alive(shape: tuple[int, ...], kind: type) -> None:
    array: Array = np.full(shape, 4, kind)
    array.flags.writeable = False
    address, tensor = array.ctypes.data, as_tensor(array)
    del array
    gc.collect()
    assert tuple(tensor.shape) == shape and tensor.tolist() == np.full(shape, 4.0).tolist()
    assert not tensor.numel() or tensor.data_ptr() == address
