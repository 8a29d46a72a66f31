"""Data: readers of pictures, patches, simulated measurements, and the LightningDataModules that serve them."""

from datasets.denoising import DenoisingDataModule
from datasets.dicom import DicomFolder, DicomSlice, read_dicom
from datasets.dicom_output import write_dicom
from datasets.fastmri import FastMRIFolder
from datasets.hdf5 import LoDoPaB, read_fastmri
from datasets.images import BuiltinImages, ImageFolder, ImageSource, center_crop, resize, stack_images
from datasets.kspace import KSpaceDataModule
from datasets.kspace_files import read_kspace
from datasets.lodopab import LoDoPaBDataModule
from datasets.measurements import MeasuredImages, Measurement, MeasurementDataset, Sample, SimulatedMeasurements
from datasets.medical import BrainSlice, BuiltinSlices
from datasets.mri import MRIDataModule
from datasets.noise import gaussian_noise
from datasets.patches import random_patches
from datasets.phantoms import RandomEllipses, SheppLogan
from datasets.reading import SUFFIXES, DataError, read_image
from datasets.rotation import estimate_rotation_centre
from datasets.scan_data import SinogramDataModule
from datasets.scans import Scan, lodopab_geometry
from datasets.sinograms import read_sinogram
from datasets.splits import split_by_patient
from datasets.tomography import TomographyDataModule, TomographyDataset

__all__ = [
    "SUFFIXES",
    "BrainSlice",
    "BuiltinImages",
    "BuiltinSlices",
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
    "RandomEllipses",
    "Sample",
    "Scan",
    "SheppLogan",
    "SimulatedMeasurements",
    "SinogramDataModule",
    "TomographyDataModule",
    "TomographyDataset",
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
