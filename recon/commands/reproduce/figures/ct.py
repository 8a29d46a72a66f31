"""The talk's comparison for CT: filtered back-projection, TV, ICNN (bilevel and adversarial), LPD and U-Net.

``recon compare`` makes it, with ``configs/ct/compare_quick.yaml`` (random ellipses) or, at paper scale,
``configs/ct/compare.yaml`` on the slices in ``$RECON_DATA/ct_chest_dicom`` or ``data/ct_chest_dicom``.
"""

from __future__ import annotations

from pathlib import Path

from recon.commands.compare import main as compare
from recon.commands.reproduce.listing import data_folder

CONFIGS = Path(__file__).resolve().parents[4] / "configs" / "ct"
SLICES = "ct_chest_dicom"


def run(scale: str, output: Path) -> None:
    """Compare into ``output``; finished methods are kept.

    Raises
    ------
    ValueError
        there are no slices, or the folder has the results of other settings.
    OSError
        a file is missing, or cannot be written.
    """
    if scale == "quick":
        compare.main(["--config", str(CONFIGS / "compare_quick.yaml"), "--output", str(output)])
        return
    train = str(data_folder(SLICES))
    compare.main(["--config", str(CONFIGS / "compare.yaml"), "--train", train, "--output", str(output)])
