"""What a sandboxed program may do: a user that owns nothing, no capabilities, and a filter of system calls."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from fusion.sandbox_kernel import PR_CAPBSET_DROP, PR_SET_SECCOMP, ZERO, check, libc

ANY_NAMESPACE = 0x7E020000
CAPABILITY_VERSION_3 = 0x20080522
NOBODY = 65534
FIRST_OWN_UID = 0x70000000  # a user of its own for each run, or runs at one time would count each other's processes

# System calls that a unit test has no need of: each a way out, a way to memory that no limit counts, or a large piece
# of the kernel. Numbers: x86-64, AArch64. socketpair stays, since asyncio's loop needs it.
REFUSED_CALLS = {
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "bind": (49, 200), "listen": (50, 201),
    "accept4": (288, 242), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "vmsplice": (278, 75), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272), "pidfd_getfd": (438, 438),
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41), "mount": (165, 40),
    "umount2": (166, 39), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "personality": (135, 92), "syslog": (103, 116),
    "fanotify_init": (300, 262), "quotactl": (179, 60), "acct": (163, 89), "swapon": (167, 224), "reboot": (169, 142),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
}  # fmt: skip
MACHINES = {"x86_64": (0xC000003E, 0, 56), "aarch64": (0xC00000B7, 1, 220)}  # audit's number, column above, clone
SYS_CLONE3 = 435


def become(own: int) -> None:
    """Stop being root: no groups, and a user that owns nothing."""
    os.setgroups([])
    try:
        os.setresgid(own, own, own)
        os.setresuid(own, own, own)
    except OSError:  # not all numbers are users in this container
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capability_bounds() -> None:
    """See to it that no program that is started can have a capability again."""
    for capability in range(64):
        if (
            libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), ZERO, ZERO, ZERO) != 0
            and ctypes.get_errno() == errno.EINVAL
        ):
            break  # the kernel has no more


def drop_capabilities() -> None:
    """Give up all capabilities."""
    header = struct.pack("<Ii", CAPABILITY_VERSION_3, 0)
    check("capset", libc.capset(header, bytes(24)))


def filter_calls() -> None:
    """Refuse REFUSED_CALLS and new namespaces to this process and its children, where the kernel has filters."""
    if platform.machine() not in MACHINES:
        return
    audit, column, clone = MACHINES[platform.machine()]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, no, unknown = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    code = [(load, 0, 0, 4), (equal, 1, 0, audit), (answer, 0, 0, kill), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, no)]  # x86-64's second table of calls
    for numbers in REFUSED_CALLS.values():
        code += [(equal, 0, 1, numbers[column]), (answer, 0, 0, no)]
    code += [(equal, 0, 1, SYS_CLONE3), (answer, 0, 0, unknown)]  # its flags cannot be seen; libc falls back to clone
    code += [(equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 0, 1, ANY_NAMESPACE), (answer, 0, 0, no)]
    code += [(answer, 0, 0, allow)]
    text = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in code))
    filters = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(text)))
    libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.c_void_p(ctypes.addressof(filters)), ZERO, ZERO)
