"""The tasks of ``recon reconstruct``: one class each, with the files it takes, its options and how problems are made.

``TASKS`` has them by the name that ``--task`` takes. The last one that takes a file is its task; the first takes all.
"""

from recon.commands.reconstruct.tasks.ct import CT
from recon.commands.reconstruct.tasks.images import Images
from recon.commands.reconstruct.tasks.mri import MRI
from recon.commands.reconstruct.tasks.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Images, CT, MRI)}
