"""The system calls that generated code may make, as a seccomp filter (classic BPF) for x86_64 and aarch64.

An allow-list: what is not named fails with EPERM, and calls younger than this list with ENOSYS, so that libc falls back
to the older ones. Nothing here creates a process, starts a program, opens a connection, signals another process or
changes modes, owners and times of files (Landlock does not watch those). Numbers: asm/unistd_64.h and asm-generic/
unistd.h; filter format: https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

# name x86_64 aarch64, "-" where the architecture has no such call
PLAIN = """
read 0 63 write 1 64 readv 19 65 writev 20 66 preadv 295 69 pwritev 296 70 pread64 17 67 pwrite64 18 68 close 3 57
close_range 436 436 lseek 8 62 fstat 5 80 stat 4 - lstat 6 - newfstatat 262 79 statx 332 291 access 21 -
faccessat 269 48 faccessat2 439 439 open 2 - openat 257 56 creat 85 - getdents64 217 61 readlink 89 -
readlinkat 267 78 getcwd 79 17 chdir 80 49 fchdir 81 50 mkdir 83 - mkdirat 258 34 rmdir 84 - unlink 87 -
unlinkat 263 35 rename 82 - renameat 264 38 renameat2 316 276 symlink 88 - symlinkat 266 36 ftruncate 77 46
fallocate 285 47 fsync 74 82 fdatasync 75 83 flock 73 32 fadvise64 221 223 statfs 137 43 fstatfs 138 44 umask 95 166
sendfile 40 71 copy_file_range 326 285 dup 32 23 dup2 33 - dup3 292 24 pipe 22 - pipe2 293 59 select 23 -
pselect6 270 72 poll 7 - ppoll 271 73 epoll_create 213 - epoll_create1 291 20 epoll_ctl 233 21 epoll_wait 232 -
epoll_pwait 281 22 eventfd2 290 19 mmap 9 222 mprotect 10 226 munmap 11 215 mremap 25 216 madvise 28 233 brk 12 214
mincore 27 232 msync 26 227 membarrier 324 283 rseq 334 293 futex 202 98 set_robust_list 273 99
get_robust_list 274 100 set_tid_address 218 96 arch_prctl 158 - exit 60 93 exit_group 231 94 wait4 61 260
waitid 247 95 rt_sigaction 13 134 rt_sigprocmask 14 135 rt_sigreturn 15 139 rt_sigpending 127 136
rt_sigtimedwait 128 137 rt_sigsuspend 130 133 sigaltstack 131 132 restart_syscall 219 128 alarm 37 - setitimer 38 103
getitimer 36 102 timer_create 222 107 timer_settime 223 110 timer_gettime 224 108 timer_delete 226 111
timer_getoverrun 225 109 timerfd_create 283 85 timerfd_settime 286 86 timerfd_gettime 287 87 nanosleep 35 101
clock_nanosleep 230 115 clock_gettime 228 113 clock_getres 229 114 gettimeofday 96 169 time 201 - times 100 153
getrusage 98 165 sysinfo 99 179 uname 63 160 getrandom 318 278 getpid 39 172 gettid 186 178 getppid 110 173
getpgrp 111 - getpgid 121 155 getsid 124 156 getuid 102 174 geteuid 107 175 getgid 104 176 getegid 108 177
getresuid 118 148 getresgid 120 150 getgroups 115 158 getrlimit 97 163 getpriority 140 141 sched_yield 24 124
sched_getaffinity 204 123 sched_getparam 143 121 sched_getscheduler 145 120 sched_get_priority_max 146 125
sched_get_priority_min 147 126 getcpu 309 168 capget 125 90 recvfrom 45 207 shutdown 48 210 getsockopt 55 209
setsockopt 54 208 getsockname 51 204 getpeername 52 205
"""
YOUNGEST = 450
"""Numbers above it are answered with ENOSYS."""
ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> (column of the tables, AUDIT_ARCH value)."""

EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, AND, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ABOVE, RETURN = 0x20, 0x54, 0x15, 0x35, 0x25, 0x06
NUMBER_OFFSET, ARCH_OFFSET, ARGS_OFFSET = 0, 4, 16
X32_BIT = 0x40000000
WORD = 0xFFFFFFFF

CLONE_THREAD = 0x00010000
CLONE_NEW = 0x7E020080
"""CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET, TIME."""
PLAIN_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
"""F_DUPFD to F_SETLKW, open file locks, F_DUPFD_CLOEXEC, F_GETPIPE_SZ. F_SETOWN and F_SETSIG would send signals."""
PLAIN_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
PR_SET_NAME, PR_GET_NAME = 15, 16

Instruction = tuple[int, int, int, int]


@dataclass(frozen=True)
class Check:
    """(low or high 32 bits of argument `arg`) & mask must be one of `values`."""

    arg: int
    values: tuple[int, ...]
    mask: int = WORD
    high: bool = False


def _checked(pid: int) -> dict[str, tuple[int | None, int | None, tuple[Check, ...]]]:
    """Calls that are allowed with some arguments only: name -> (x86_64, aarch64, checks that must all hold)."""
    null = lambda arg: (Check(arg, (0,)), Check(arg, (0,), high=True))  # noqa: E731
    return {
        "clone": (56, 220, (Check(0, (0,), CLONE_NEW), Check(0, (CLONE_THREAD,), CLONE_THREAD))),
        "tgkill": (234, 131, (Check(0, (pid,)),)),
        "fcntl": (72, 25, (Check(1, PLAIN_FCNTL),)),
        "ioctl": (16, 29, (Check(1, PLAIN_IOCTL),)),
        "prctl": (157, 167, (Check(0, (PR_SET_NAME, PR_GET_NAME)),)),
        "prlimit64": (302, 261, (Check(0, (0,)), *null(2))),
        "socketpair": (53, 199, (Check(0, (1,)), Check(1, (1,), 0xF))),  # AF_UNIX, SOCK_STREAM: what asyncio needs
        "sendto": (44, 206, null(4)),
    }


def _plain(column: int) -> dict[str, int]:
    words = PLAIN.split()
    table = zip(words[::3], words[1 + column :: 3], strict=True)
    return {name: int(number) for name, number in table if number != "-"}


def _load(offset: int) -> Instruction:
    return (LOAD, 0, 0, offset)


def _check(check: Check) -> list[Instruction]:
    """Falls through when the check holds, returns EPERM when not."""
    code = [_load(ARGS_OFFSET + 8 * check.arg + 4 * check.high)]
    if check.mask != WORD:
        code.append((AND, 0, 0, check.mask))
    count = len(check.values)
    code += [(JUMP_EQUAL, count - i, 0, value) for i, value in enumerate(check.values)]
    return [*code, (RETURN, 0, 0, ERRNO | EPERM)]


def filter_program(machine: str, pid: int) -> list[Instruction]:
    """(code, jump if true, jump if false, constant) per instruction. pid: the only process that may be signalled.

    Raises KeyError for a machine that has no table here.
    """
    column, arch = ARCHES[machine]
    program = [
        _load(ARCH_OFFSET),
        (JUMP_EQUAL, 1, 0, arch),
        (RETURN, 0, 0, KILL_PROCESS),
        _load(NUMBER_OFFSET),
        (JUMP_AT_LEAST, 0, 1, X32_BIT),
        (RETURN, 0, 0, KILL_PROCESS),
    ]
    for number in _plain(column).values():
        program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    for *numbers, checks in _checked(pid).values():
        block = [line for check in checks for line in _check(check)] + [(RETURN, 0, 0, ALLOW)]
        program += [(JUMP_EQUAL, 0, len(block), numbers[column]), *block]
    for number in (435, 437):  # clone3, openat2: libc falls back to calls that can be checked
        program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | ENOSYS)]
    return [*program, (JUMP_ABOVE, 0, 1, YOUNGEST), (RETURN, 0, 0, ERRNO | ENOSYS), (RETURN, 0, 0, ERRNO | EPERM)]


def packed(program: Sequence[Instruction]) -> bytes:
    """As an array of struct sock_filter."""
    return b"".join(struct.pack("=HBBI", *line) for line in program)
