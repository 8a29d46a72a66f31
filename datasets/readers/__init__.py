"""Readers of files: pictures, DICOM, NIfTI, HDF5, MATLAB; their limits."""
