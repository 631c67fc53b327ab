"""What a sandboxed program can see: namespaces of its own, and a root that is made for it."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any

from fusion.sandbox_kernel import PR_SET_DUMPABLE, Refused, check, libc, prctl, words
from fusion.sandbox_rights import NOBODY, become

NAMESPACES = {  # what is isolated: flag of unshare(2), name below /proc/self/ns
    "network": (0x40000000, "net"),
    "files": (0x00020000, "mnt"),
    "processes": (0x20000000, "pid_for_children"),
    "ipc": (0x08000000, "ipc"),
    "host name": (0x04000000, "uts"),
}
CLONE_NEWUSER = 0x10000000

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000


def enter_user_namespace(own: int) -> None:
    """Become all-powerful in a namespace that maps nobody to this user, who may be any but the machine's root."""
    try:
        if os.geteuid() == 0:  # the kernel holds root to no number of processes
            become(own)
            prctl(PR_SET_DUMPABLE, 1)  # or /proc/self belongs to root
        uid, gid = os.geteuid(), os.getegid()
        check("unshare of a user namespace", libc.unshare(CLONE_NEWUSER))
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{NOBODY} {uid} 1"),
            ("gid_map", f"{NOBODY} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise Refused({"user": words(error)}) from None


def enter_namespaces() -> None:
    """Enter NAMESPACES; Refused, with what the machine does not give."""
    missing = {}
    for what, (flag, name) in NAMESPACES.items():
        try:
            before = os.stat(f"/proc/self/ns/{name}").st_ino if what != "processes" else None
            check("unshare", libc.unshare(flag))
            if before is not None and os.stat(f"/proc/self/ns/{name}").st_ino == before:
                missing[what] = "unshare: did nothing"
        except OSError as error:
            missing[what] = words(error)
    if missing:
        raise Refused(missing)


def build_root(order: dict[str, Any], own: int) -> None:
    """Make a root of Python's own files, read-only, and one bounded folder in memory; leave the old one behind."""
    root: str = order["folder"]
    program, given = (order[name].encode("utf-8", "surrogatepass") for name in ("program", "input"))
    _mount("none", "/", None, REC | PRIVATE)
    _mount("tmpfs", root, "tmpfs", NOSUID | NODEV, f"mode=0755,size={len(program) + len(given) + (1 << 20)}")
    for path in order["paths"]:
        if os.path.islink(path):
            os.makedirs(root + os.path.dirname(path), exist_ok=True)
            os.symlink(os.readlink(path), root + path)
        else:
            _bind(path, root + path, RDONLY | NOSUID | NODEV)
    for device in ("null", "zero", "random", "urandom"):
        _bind(f"/dev/{device}", f"{root}/dev/{device}", RDONLY | NOSUID | NOEXEC)
    box = f"{root}/box"
    os.mkdir(box)
    os.symlink("box", f"{root}/tmp")  # noqa: S108  (of the program's own root)
    with open(f"{root}/program.py", "wb") as file:
        file.write(program)
    for name, text in order["files"].items():
        os.makedirs(os.path.dirname(f"{root}/{name}"), exist_ok=True)
        with open(f"{root}/{name}", "w", encoding="utf-8") as part:
            part.write(text)
    with open(f"{root}/input", "wb") as file:
        file.write(given)
    os.dup2(os.open(f"{root}/input", os.O_RDONLY), 0)  # which nothing else leads to
    os.unlink(f"{root}/input")
    _mount("tmpfs", box, "tmpfs", NOSUID | NODEV, f"mode=0700,size={order['folder_size']},nr_inodes=4096")
    if order["way"] == "root":
        try:
            os.chown(box, own, own)
        except OSError:  # not all numbers are users in this container
            os.chown(box, NOBODY, NOBODY)
    _mount("none", root, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    os.chdir(root)
    check("pivot_root", libc.pivot_root(b".", b"."))
    check("umount of the old root", libc.umount2(b".", MNT_DETACH))
    os.chdir("/box")


def _bind(source: str, target: str, attributes: int) -> None:
    """Show ``source`` at ``target`` with these attributes, and all that is mounted below it."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w"):
            pass
    _mount(source, target, None, BIND | REC)
    request = struct.pack("<QQQQ", attributes, 0, 0, 0)  # the four attributes have the numbers of mount(2)'s flags
    setattr_call = (SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), AT_RECURSIVE, request, ctypes.c_size_t(32))
    if libc.syscall(*setattr_call) == 0:
        return
    # Linux before 5.12: one mount at a time, keeping what it had.
    with open("/proc/self/mountinfo") as mounts:
        if any(line.split()[4].startswith(f"{target}/") for line in mounts):
            raise OSError(errno.ENOTSUP, f"{source} has other file systems mounted below it, and Linux is before 5.12")
    _mount("none", target, None, REMOUNT | BIND | attributes | (os.statvfs(target).f_flag & (NOSUID | NODEV | NOEXEC)))


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    kind_bytes = kind.encode() if kind else None
    done = libc.mount(os.fsencode(source), os.fsencode(target), kind_bytes, ctypes.c_ulong(flags), options.encode())
    check(f"mount of {source}", done)
