"""Data: readers of pictures, patches, simulated measurements, and the LightningDataModules that serve them."""

from datasets.kspace.files import read_kspace
from datasets.modules.denoising import DenoisingDataModule
from datasets.modules.groups import Batches, PatchPictures, PatientPictures, Pictures
from datasets.modules.kspace import KSpaceDataModule, SensitivityOptions, Undersampling
from datasets.modules.lodopab import LoDoPaBDataModule
from datasets.modules.mri import MRIDataModule, Sampling
from datasets.modules.simulated import SimulatedDataModule
from datasets.modules.sinograms import SinogramDataModule, Views
from datasets.modules.tomography import SimulatedScan, SinogramNoise, TomographyDataModule, TomographyDataset
from datasets.noise import gaussian_noise
from datasets.readers.dicom.output import write_dicom
from datasets.readers.dicom.slices import DicomFolder, DicomSlice, read_dicom
from datasets.readers.hdf5 import LoDoPaB, read_fastmri
from datasets.readers.pictures import SUFFIXES, DataError, read_image
from datasets.scans.reading import read_sinogram
from datasets.scans.rotation import estimate_rotation_centre
from datasets.scans.scan import Scan, lodopab_geometry
from datasets.sources.fastmri import FastMRIFolder
from datasets.sources.images import BuiltinImages, ImageFolder, ImageSource, center_crop, resize, stack_images
from datasets.sources.measurements import MeasuredImages, Measurement, MeasurementDataset, Sample, SimulatedMeasurements
from datasets.sources.medical import BrainSlice, BuiltinSlices
from datasets.sources.patches import random_patches
from datasets.sources.phantoms import RandomEllipses, SheppLogan
from datasets.sources.splits import split_by_patient

__all__ = [
    "SUFFIXES",
    "Batches",
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
