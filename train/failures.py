"""Which errors are for the user, in one line, and which are faults of the program, whose traceback is wanted."""

import errno
import os
import re
import signal
import sys

from safetensors import SafetensorError

OURS = ("modeling_edrl_mea", "train", "hub_card")  # whose own error classes say what is wrong and what to do
OUTSIDE = {  # what a disk, its owner or its limits say: never the program's fault
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE),
}
OF_TORCH_SAVE = ("inline_container", "iostream error")  # in what it says of a failed write, never why it failed
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def explained(error: BaseException) -> str | None:
    """What to tell the user instead of a traceback; None where it is a fault of ours."""
    if type(error).__module__.partition(".")[0] in OURS:
        return str(error)
    number, what = _of_the_outside(error)
    if what is None:
        return None
    remedy = "Make room" if number in FULL else "Put that right"
    return f"{what}. {remedy}, and run the same command again: what is done already is kept."


def end_by_ctrl_c(*_) -> None:
    """One line and an end at once: an exception might be swallowed by what is being imported."""
    print("Stopped by Ctrl-C. Run the same command again to go on.", file=sys.stderr, flush=True)
    os._exit(128 + signal.SIGINT)


def _of_the_outside(error: BaseException) -> tuple[int | None, str | None]:
    """(errno, "FILE: what the system said") of an error that a disk, its owner or its limits caused."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError):  # from Rust: no OSError
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
    if isinstance(error, RuntimeError) and any(word in str(error) for word in OF_TORCH_SAVE):
        return errno.ENOSPC, "A checkpoint could not be written: most likely the disk is full"
    if number not in OUTSIDE:
        return None, None
    file = getattr(error, "filename", None)
    return number, f"{os.fsdecode(file)}: {os.strerror(number)}" if file is not None else os.strerror(number)
