"""Data: readers of pictures, patches, simulated measurements, and the LightningDataModules that serve them."""

from datasets.denoising import DenoisingDataModule
from datasets.images import BuiltinImages, ImageFolder, ImageSource, center_crop, resize, stack_images
from datasets.kspace import KSpaceDataModule, read_kspace
from datasets.measurements import MeasuredImages, Measurement, MeasurementDataset, Sample, SimulatedMeasurements
from datasets.mri import MRIDataModule
from datasets.noise import gaussian_noise
from datasets.patches import random_patches
from datasets.reading import SUFFIXES, DataError, read_image

__all__ = [
    "SUFFIXES",
    "BuiltinImages",
    "DataError",
    "DenoisingDataModule",
    "ImageFolder",
    "ImageSource",
    "KSpaceDataModule",
    "MRIDataModule",
    "MeasuredImages",
    "Measurement",
    "MeasurementDataset",
    "Sample",
    "SimulatedMeasurements",
    "center_crop",
    "gaussian_noise",
    "random_patches",
    "read_image",
    "read_kspace",
    "resize",
    "stack_images",
]
