"""The tasks of ``recon reconstruct``: one class each, with the files it takes, its options and how problems are made.

``TASKS`` has them by the name that ``--task`` takes. The last one that takes a file is its task; the first takes all.
What they declare is imported at once, what they do by ``load()``; a whole class of :class:`Task` may stand there, too.
"""

from recon.commands.reconstruct.tasks.declared import CTFiles, Declared, ImageFiles, MRIFiles

TASKS: dict[str, type[Declared]] = {task.name: task for task in (ImageFiles, CTFiles, MRIFiles)}
