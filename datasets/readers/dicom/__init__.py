"""DICOM slices: reading and writing."""
