"""The talk's comparison for CT: filtered back-projection, TV, ICNN (bilevel and adversarial), LPD and U-Net.

``recon compare`` makes it, with ``configs/ct/compare_quick.yaml`` (random ellipses) or, at paper scale,
``configs/ct/compare.yaml`` on the slices in ``$RECON_DATA/ct_chest_dicom`` or ``data/ct_chest_dicom``.
"""

from __future__ import annotations

import os
from pathlib import Path

from recon.commands.compare import main as compare

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
    folders = [Path(os.environ["RECON_DATA"]) / SLICES] if os.environ.get("RECON_DATA") else []
    train = next((folder for folder in (*folders, Path("data") / SLICES) if folder.is_dir()), None)
    if train is None:
        raise ValueError(
            f"there is no folder {SLICES} in $RECON_DATA or data; set RECON_DATA to the folder that has it"
        )
    compare.main(["--config", str(CONFIGS / "compare.yaml"), "--train", str(train), "--output", str(output)])
