"""The only package that replaces or deletes anything on disk, and the rules for it.

1. Only an artifact of the kind that is about to be written is replaced: its manifest says so; an
   unfinished run or store is recognized by its layout (`UNFINISHED_LAYOUTS`). Anything else at the
   path, or a symbolic link there, is rejected.
2. No foreign file is deleted: a folder is rejected if it contains a file that neither a manifest
   lists nor the layout knows.
3. An existing artifact, finished or not, is replaced only on request (`--overwrite`).
4. The new artifact is complete before the old one is removed: it is written to a staging folder,
   then exchanged atomically (`renameat2(RENAME_EXCHANGE)`), or, if the file system cannot, by two
   renames; `recover` restores the old one after a crash between them. A run is written in place, so
   that it can be resumed: the old one is renamed to NAME~ meanwhile.
5. Only listed files are deleted, one by one; a folder is removed when it is empty. Files that
   appeared in the meantime stay.

layouts.py       files of each kind of artifact
target.py        what exists at a path
checks.py        may it be written?
replacement.py   staging folder, exchange
removal.py       deletes what phisense wrote
backup.py        the old run as NAME~
recovery.py      leftovers of dead processes
"""

from .backup import back_up, drop_backup
from .checks import check_can_write, check_can_write_file, unused_path
from .layouts import MANIFEST, PARTIAL_MARKER, RESOLVED_RECIPE_HEADER
from .recovery import recover, remove_leftovers
from .removal import (
    discard,
    mark_unfinished,
    remove,
    remove_file,
    remove_files,
    remove_journal,
)
from .replacement import commit, staging_folder, swap_folders
from .target import ExistingTarget, inspect_target

__all__ = [
    "MANIFEST",
    "PARTIAL_MARKER",
    "RESOLVED_RECIPE_HEADER",
    "ExistingTarget",
    "back_up",
    "check_can_write",
    "check_can_write_file",
    "commit",
    "discard",
    "drop_backup",
    "inspect_target",
    "mark_unfinished",
    "recover",
    "remove",
    "remove_file",
    "remove_files",
    "remove_journal",
    "remove_leftovers",
    "staging_folder",
    "swap_folders",
    "unused_path",
]
