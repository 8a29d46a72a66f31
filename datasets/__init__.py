"""Data: readers of pictures, patches, simulated measurements, and the LightningDataModules that serve them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from datasets.kspace.files import read_kspace
from datasets.noise import gaussian_noise
from datasets.readers.dicom.output import write_dicom
from datasets.readers.dicom.slices import DicomFolder, DicomSlice, read_dicom
from datasets.readers.hdf5 import LoDoPaB, read_fastmri
from datasets.readers.pictures import SUFFIXES, DataError, read_image
from datasets.scans.reading import read_sinogram
from datasets.scans.rotation import estimate_rotation_centre
from datasets.scans.scan import Scan, lodopab_geometry
from datasets.sources.fastmri import FastMRIFolder
from datasets.sources.images import (
    BuiltinImages,
    ColourFolder,
    ImageFolder,
    ImageSource,
    center_crop,
    resize,
    stack_images,
)
from datasets.sources.measurements import MeasuredImages, Measurement, MeasurementDataset, Sample, SimulatedMeasurements
from datasets.sources.medical import BrainSlice, BuiltinSlices
from datasets.sources.patches import random_patches
from datasets.sources.phantoms import RandomEllipses, SheppLogan
from datasets.sources.splits import split_by_patient

if TYPE_CHECKING:
    from datasets.modules.denoising import DenoisingDataModule
    from datasets.modules.groups import Batches, PatchPictures, PatientPictures, Pictures
    from datasets.modules.kspace import KSpaceDataModule, SensitivityOptions, Undersampling
    from datasets.modules.lodopab import LoDoPaBDataModule
    from datasets.modules.mri import MRIDataModule, Sampling
    from datasets.modules.simulated import SimulatedDataModule
    from datasets.modules.sinograms import SinogramDataModule, Views
    from datasets.modules.tomography import SimulatedScan, SinogramNoise, TomographyDataModule, TomographyDataset

__all__ = [
    "SUFFIXES",
    "Batches",
    "BrainSlice",
    "BuiltinImages",
    "BuiltinSlices",
    "ColourFolder",
    "DataError",
    "DenoisingDataModule",
    "DicomFolder",
    "DicomSlice",
    "FastMRIFolder",
    "ImageFolder",
    "ImageSource",
    "KSpaceDataModule",
    "LoDoPaB",
    "LoDoPaBDataModule",
    "MRIDataModule",
    "MeasuredImages",
    "Measurement",
    "MeasurementDataset",
    "PatchPictures",
    "PatientPictures",
    "Pictures",
    "RandomEllipses",
    "Sample",
    "Sampling",
    "Scan",
    "SensitivityOptions",
    "SheppLogan",
    "SimulatedDataModule",
    "SimulatedMeasurements",
    "SimulatedScan",
    "SinogramDataModule",
    "SinogramNoise",
    "TomographyDataModule",
    "TomographyDataset",
    "Undersampling",
    "Views",
    "center_crop",
    "estimate_rotation_centre",
    "gaussian_noise",
    "lodopab_geometry",
    "random_patches",
    "read_dicom",
    "read_fastmri",
    "read_image",
    "read_kspace",
    "read_sinogram",
    "resize",
    "split_by_patient",
    "stack_images",
    "write_dicom",
]

# Lightning takes seconds to import, and readers need none of it
_MODULES = {
    "Batches": "groups",
    "DenoisingDataModule": "denoising",
    "KSpaceDataModule": "kspace",
    "LoDoPaBDataModule": "lodopab",
    "MRIDataModule": "mri",
    "PatchPictures": "groups",
    "PatientPictures": "groups",
    "Pictures": "groups",
    "Sampling": "mri",
    "SensitivityOptions": "kspace",
    "SimulatedDataModule": "simulated",
    "SimulatedScan": "tomography",
    "SinogramDataModule": "sinograms",
    "SinogramNoise": "tomography",
    "TomographyDataModule": "tomography",
    "TomographyDataset": "tomography",
    "Undersampling": "kspace",
    "Views": "sinograms",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"datasets.modules.{_MODULES[name]}"), name)
