"""Peak FLOP/s of devices, and peak memory of a run."""

import resource
import sys

import torch

PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "V100": 112e12,
    "T4": 65e12,
}
"""FLOP/s of dense bf16 (V100 and T4: fp16) products with fp32 accumulation, from the vendor's
data sheets, by a part of the device's name."""


def find_peak(device: torch.device, *, is_half: bool) -> float | None:
    """A device's peak in FLOP/s; None if unknown, and then no utilisation (MFU) is reported."""
    if device.type != "cuda" or not is_half:
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """The peak of a device by its name; the longest known name that is part of it counts."""
    words = f" {name} ".replace("-", " ")
    if " Laptop " in words:  # another chip under the same name
        return None
    known = [key for key in PEAKS if f" {key} " in words]
    return PEAKS[max(known, key=len)] if known else None


def peak_memory(device: torch.device) -> int:
    """Peak memory so far in bytes: GPU memory of tensors, else main memory of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
