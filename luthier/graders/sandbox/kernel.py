"""The few calls to the kernel that Python has no function for: prctl, capset, unshare, Landlock, seccomp.

Landlock: https://docs.kernel.org/userspace-api/landlock.html. Its calls have the same numbers on all architectures.
All raise OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from functools import cache

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
SECCOMP = {"x86_64": 317, "aarch64": 277}
CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITIES_V3 = 0x20080522

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_REG, MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in (7, 8, 12, 13, 14, 15))
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: int | ctypes.Array | None) -> int:
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc().syscall(ctypes.c_long(number), *passed), what)


def prctl(option: int, value: int) -> None:
    """prctl(option, value, 0, 0, 0)."""
    zero = ctypes.c_ulong(0)
    _checked(_libc().prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl({option})")


def unshare(flags: int) -> None:
    """Moves this process (for PID namespaces: its children) into new namespaces."""
    _checked(_libc().unshare(flags), "unshare")


def drop_capabilities(machine: str) -> None:
    """Gives up every effective, permitted and inheritable capability."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITIES_V3, 0))
    _syscall("capset", CAPSET[machine], header, ctypes.create_string_buffer(24))


def landlock_abi() -> int:
    """Version of Landlock in this kernel; 0 when there is none (or it is switched off at boot)."""
    try:
        return _syscall("landlock", LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def landlock_rights(abi: int) -> int:
    """All file rights that this version knows, as bits."""
    newest = 13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16
    return (1 << newest) - 1


def landlock(rules: Sequence[tuple[int, int]]) -> None:
    """Restricts this process to `rules`: (open file descriptor, rights below it). Needs no_new_privs.

    TCP (version 4), abstract sockets and signals to outside (version 6) are denied where the kernel knows them.
    """
    abi = landlock_abi()
    rights = landlock_rights(abi)
    fields = [rights, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0]
    attributes = struct.pack("=3Q", *fields)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = _syscall(
        "landlock", LANDLOCK_CREATE, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0
    )
    for descriptor, wanted in rules:
        rule = struct.pack("=Qi", wanted & rights, descriptor)
        _syscall("landlock", LANDLOCK_ADD, ruleset, 1, ctypes.create_string_buffer(rule, len(rule)), 0)
    _syscall("landlock", LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def seccomp(machine: str, filter_bytes: bytes) -> None:
    """Installs a filter (array of struct sock_filter) for good. Needs no_new_privs."""
    code = ctypes.create_string_buffer(filter_bytes, len(filter_bytes))
    program = struct.pack("@HP", len(filter_bytes) // 8, ctypes.addressof(code))
    _syscall("seccomp", SECCOMP[machine], 1, 0, ctypes.create_string_buffer(program, len(program)))
