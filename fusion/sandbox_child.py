"""The inner side of the sandbox: makes the walls, gives up all rights, and starts the program behind them.

fusion.sandbox starts this file as a script of its own, with nothing but the standard library. Three processes: the
first enters new namespaces and keeps the time; the second, process 1 of its own process namespace, builds a root of
its own and waits; the third gives up its rights and becomes the program. When process 1 dies, the kernel kills
whatever else is in its namespace, and lets it be waited for only then.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
from typing import Any, NoReturn

NAMESPACES = {  # what is isolated: flag of unshare(2), name below /proc/self/ns
    "network": (0x40000000, "net"),
    "files": (0x00020000, "mnt"),
    "processes": (0x20000000, "pid_for_children"),
    "ipc": (0x08000000, "ipc"),
    "host name": (0x04000000, "uts"),
}
CLONE_NEWUSER = 0x10000000
ANY_NAMESPACE = 0x7E020000

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
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

ZERO = ctypes.c_ulong(0)

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The machine does not let a wall be made; holds what is missing and why."""

    def __init__(self, missing: dict[str, str]) -> None:
        super().__init__(missing)
        self.missing = missing


def main() -> None:
    """Read the order from standard input, run the program, and write one line of JSON to the file descriptor given."""
    report = int(sys.argv[1])
    os.set_inheritable(report, False)
    (length,) = struct.unpack("<Q", _read(8))
    order = json.loads(_read(length))
    try:
        answer = contain(order)
    except Refused as refusal:
        answer = {"refused": refusal.missing}
    os.write(report, json.dumps(answer).encode())


def contain(order: dict[str, Any]) -> dict[str, Any]:
    """Run the program of ``order``; when this returns, none of its processes is alive. Refused if that cannot be."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.umask(0o022)
    own = FIRST_OWN_UID + os.getpid()
    if order["way"] == "user":
        _enter_user_namespace(own)
    _enter_namespaces()
    told, tell = os.pipe()
    alive, keep_alive = os.pipe()  # breaks when this process dies
    try:
        first = os.fork()
    except OSError as error:
        raise Refused({"processes": f"fork: {error.strerror}"}) from None
    if first == 0:
        os.close(told)
        os.close(keep_alive)
        _supervise(order, own, tell, alive)
    os.close(tell)
    os.close(alive)
    events = select.poll()
    events.register(told, select.POLLIN)
    events.register(0, 0)  # hangs up when the caller gives up or dies
    woken = events.poll(order["wall_seconds"] * 1000)
    answer: dict[str, Any] = {"timeout": True}
    if any(at == told for at, _ in woken):
        with open(told, "rb") as lines:
            line = lines.readline()
        answer = json.loads(line) if line else {"signal": int(signal.SIGKILL), "cpu": 0.0}
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)  # comes back only when the whole namespace is dead
    if "refused" in answer:
        raise Refused(answer["refused"])
    return answer


def _enter_user_namespace(own: int) -> None:
    """Become all-powerful in a namespace that maps nobody to this user, who may be any but the machine's root."""
    try:
        if os.geteuid() == 0:  # the kernel holds root to no number of processes
            _become(own)
            _prctl(PR_SET_DUMPABLE, 1)  # or /proc/self belongs to root
        uid, gid = os.geteuid(), os.getegid()
        _check("unshare of a user namespace", _libc.unshare(CLONE_NEWUSER))
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{NOBODY} {uid} 1"),
            ("gid_map", f"{NOBODY} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise Refused({"user": _words(error)}) from None


def _enter_namespaces() -> None:
    missing = {}
    for what, (flag, name) in NAMESPACES.items():
        try:
            before = os.stat(f"/proc/self/ns/{name}").st_ino if what != "processes" else None
            _check("unshare", _libc.unshare(flag))
            if before is not None and os.stat(f"/proc/self/ns/{name}").st_ino == before:
                missing[what] = "unshare: did nothing"
        except OSError as error:
            missing[what] = _words(error)
    if missing:
        raise Refused(missing)


def _supervise(order: dict[str, Any], own: int, tell: int, alive: int) -> NoReturn:
    """Be process 1: build the root, start the program, wait for it, tell how it ended."""
    try:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(PR_SET_DUMPABLE, 0)
        if select.select([alive], [], [], 0)[0] or os.getpid() != 1:
            os._exit(1)
        try:
            _build_root(order, own)
        except OSError as error:
            raise Refused({"files": _words(error)}) from None
        start = time.monotonic()
        program = os.fork()
        if program == 0:
            _become_program(order, own, tell)
        cpu = 0.0
        while True:
            process, status, usage = os.wait4(-1, 0)
            cpu += usage.ru_utime + usage.ru_stime
            if process == program:
                break
        code = os.waitstatus_to_exitcode(status)
        answer = {"seconds": time.monotonic() - start, "cpu": cpu, "exit" if code >= 0 else "signal": abs(code)}
        os.write(tell, json.dumps(answer).encode() + b"\n")
    except Refused as refusal:
        os.write(tell, json.dumps({"refused": refusal.missing}).encode() + b"\n")
    finally:
        os._exit(0)


def _build_root(order: dict[str, Any], own: int) -> None:
    """Make a root of Python's own files, read-only, and one bounded folder in memory; leave the old one behind."""
    root: str = order["folder"]
    program = order["program"].encode("utf-8", "surrogatepass")
    _mount("none", "/", None, REC | PRIVATE)
    _mount("tmpfs", root, "tmpfs", NOSUID | NODEV, f"mode=0755,size={len(program) + (1 << 20)}")
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
    _mount("tmpfs", box, "tmpfs", NOSUID | NODEV, f"mode=0700,size={order['folder_size']},nr_inodes=4096")
    if order["way"] == "root":
        try:
            os.chown(box, own, own)
        except OSError:  # not all numbers are users in this container
            os.chown(box, NOBODY, NOBODY)
    _mount("none", root, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    os.chdir(root)
    _check("pivot_root", _libc.pivot_root(b".", b"."))
    _check("umount of the old root", _libc.umount2(b".", MNT_DETACH))
    os.chdir("/box")


def _become_program(order: dict[str, Any], own: int, tell: int) -> NoReturn:
    try:
        os.setsid()
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        _drop_capability_bounds()
        if order["way"] == "root":
            _become(own)
        _drop_capabilities()
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        # In the user's own namespace the two processes outside this one count too.
        processes = order["processes"] + (2 if order["way"] == "user" else 0)
        for kind, limit in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, order["file_size"]),
            (resource.RLIMIT_NOFILE, order["open_files"]),
            (resource.RLIMIT_NPROC, processes),
            (resource.RLIMIT_MEMLOCK, 0),
        ):
            resource.setrlimit(kind, (limit, limit))
        _filter_calls()  # a second wall: the first ones stand without it
        resource.setrlimit(resource.RLIMIT_CPU, (order["cpu_seconds"], order["cpu_seconds"] + 1))
        resource.setrlimit(resource.RLIMIT_AS, (order["memory"], order["memory"]))
        python = order["python"]
        os.execve(python, [python, "-I", "-S", "-B", "-X", "utf8", "/program.py"], {})  # noqa: S606
    except OSError as error:
        os.write(tell, json.dumps({"refused": {"privileges": _words(error)}}).encode() + b"\n")
    finally:
        os._exit(126)


def _become(own: int) -> None:
    """Stop being root: no groups, and a user that owns nothing."""
    os.setgroups([])
    try:
        os.setresgid(own, own, own)
        os.setresuid(own, own, own)
    except OSError:  # not all numbers are users in this container
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _drop_capability_bounds() -> None:
    for capability in range(64):
        if (
            _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), ZERO, ZERO, ZERO) != 0
            and ctypes.get_errno() == errno.EINVAL
        ):
            break  # the kernel has no more


def _drop_capabilities() -> None:
    header = struct.pack("<Ii", CAPABILITY_VERSION_3, 0)
    _check("capset", _libc.capset(header, bytes(24)))


def _filter_calls() -> None:
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
    _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.c_void_p(ctypes.addressof(filters)), ZERO, ZERO)


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
    if _libc.syscall(*setattr_call) == 0:
        return
    # Linux before 5.12: one mount at a time, keeping what it had.
    with open("/proc/self/mountinfo") as mounts:
        if any(line.split()[4].startswith(f"{target}/") for line in mounts):
            raise OSError(errno.ENOTSUP, f"{source} has other file systems mounted below it, and Linux is before 5.12")
    _mount("none", target, None, REMOUNT | BIND | attributes | (os.statvfs(target).f_flag & (NOSUID | NODEV | NOEXEC)))


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    kind_bytes = kind.encode() if kind else None
    done = _libc.mount(os.fsencode(source), os.fsencode(target), kind_bytes, ctypes.c_ulong(flags), options.encode())
    _check(f"mount of {source}", done)


def _prctl(option: int, value: int) -> None:
    _check("prctl", _libc.prctl(option, ctypes.c_ulong(value), ZERO, ZERO, ZERO))


def _check(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _words(error: OSError) -> str:
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)


def _read(length: int) -> bytes:
    parts = []
    while length:
        part = os.read(0, length)
        if not part:
            raise EOFError("the order ended early")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    main()
