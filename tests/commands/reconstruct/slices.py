"""Files for the tests of ``recon reconstruct``: DICOM slices of a phantom, and how the program is run on a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import SheppLogan
from recon.commands.reconstruct.main import main


def write_slice(path: Path, size: int = 32, modality: str = "CT") -> np.ndarray:
    """A phantom as a slice with pixels of 2 mm: from air to 1000 HU, or from 0 to 500; returns its values."""
    pydicom = pytest.importorskip("pydicom", reason="needs the extra data")
    phantom = SheppLogan(size)[0][0].numpy()
    values = np.rint(2000 * phantom - 1000 if modality == "CT" else 500 * phantom)
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = pydicom.uid.CTImageStorage if modality == "CT" else pydicom.uid.MRImageStorage
    dataset.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path)])
    dataset.Modality, dataset.PatientID, dataset.SeriesInstanceUID = modality, "anna", "1.2.3"
    dataset.PixelSpacing = [2.0, 2.0]
    if modality == "CT":
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1000"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    stored = values + 1000 if modality == "CT" else values
    dataset.set_pixel_data(stored.astype(np.uint16), "MONOCHROME2", 16, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return np.asarray(values)


def run(data: Path, *more: str) -> tuple[int, Path, dict[str, Any]]:
    """Status, folder of the results, and the report with the entry of the first file on top."""
    output = data.parent / "results"
    status = main(["--data", str(data), "--output", str(output), *more])
    report = json.loads((output / "report.json").read_text())
    return status, output, {**report, **report["images"][0]}


def refused(match: str, data: Path, *more: str, kind: type[Exception] = ValueError) -> None:
    """The program ends with this message and leaves no file behind."""
    with pytest.raises(kind, match=match):
        run(data, *more)
    output = data.parent / "results"
    assert not output.exists() or not list(output.iterdir())
