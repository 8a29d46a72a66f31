"""What Lightning says that nobody needs to read."""

from __future__ import annotations

import logging
import warnings

MESSAGES = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    "(?s).*jsonargparse.*|.*JSONARGPARSE.*|.*instantiate_classes.*deprecated.*",
)


def quiet() -> None:
    """Silence Lightning's advertisements and its remarks about settings that are chosen on purpose."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message)
