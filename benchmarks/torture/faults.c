/* Faults at the file events of one process: preloaded (LD_PRELOAD), armed from inside by ctypes.

An event is a call that changes something under `prefix`: open for writing, write, rename, link, unlink, mkdir, rmdir,
truncate, fsync. At event number `at` (from 1) the process dies, dies after half a write, gets an error, or a signal.
It sits below Python, Rust and C++ alike, which an audit hook does not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, DIE, TORN, ERROR_ONCE, ERROR_FROM, SIGNAL };

static char prefix[PATH_MAX];
static int mode = OFF, number = 0, log_fd = -1;
static long at = 0, seen = 0;
static __thread int inside = 0;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void faults_arm(const char *under, int how, long when, int value, int log) {
    strncpy(prefix, under, sizeof prefix - 1);
    mode = how; at = when; number = value; log_fd = log; seen = 0;
}

long faults_seen(void) { return seen; }

static int path_of(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, out, PATH_MAX - 1);
    if (size < 0) return 0;
    out[size] = 0;
    return 1;
}

static int is_ours(const char *path) { return !strncmp(path, prefix, strlen(prefix)); }

/* 0 = go on, 1 = fail with `number`, 2 = write half, then die */
static int event(const char *what, const char *path, int can_fail) {
    if (mode == OFF || inside || !is_ours(path)) return 0;
    inside = 1;
    seen++;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%ld %s %s\n", seen, what, path + strlen(prefix));
        ssize_t ignored = REAL(write)(log_fd, line, size);
        (void)ignored;
    }
    int verdict = 0;
    if (mode == DIE && seen == at) kill(getpid(), SIGKILL);
    if (mode == TORN && seen == at) verdict = 2;
    if (mode == SIGNAL && seen == at) kill(getpid(), number);
    int takes_room = strcmp(what, "unlink") && strcmp(what, "rmdir") && strcmp(what, "rename");
    if (number == ENOSPC && !takes_room) can_fail = 0; /* a full disk still lets go of files */
    if (can_fail && ((mode == ERROR_ONCE && seen == at) || (mode == ERROR_FROM && seen >= at))) verdict = 1;
    inside = 0;
    if (verdict == 1) errno = number;
    return verdict;
}

static int event_fd(const char *what, int fd) {
    char path[PATH_MAX];
    if (mode == OFF || inside || !path_of(fd, path)) return 0;
    return event(what, path, 1);
}

static int event_at(const char *what, int dir, const char *path) {
    char whole[2 * PATH_MAX];
    if (mode == OFF || inside) return 0;
    if (path[0] != '/' && dir != AT_FDCWD) {
        if (!path_of(dir, whole)) return 0;
        strcat(whole, "/");
        strncat(whole, path, PATH_MAX - 2);
        path = whole;
    }
    return event(what, path, 1);
}

static int writes(int flags) { return (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) != 0; }

#define OPEN(name, args, dir, path)                                                             \
    int name args {                                                                             \
        mode_t bits = 0;                                                                        \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); bits = va_arg(rest, mode_t); va_end(rest); } \
        if (writes(flags) && event_at("open", dir, path)) return -1;

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path) return REAL(open)(path, flags, bits); }
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path) return REAL(open64)(path, flags, bits); }
OPEN(openat, (int dir, const char *path, int flags, ...), dir, path) return REAL(openat)(dir, path, flags, bits); }
OPEN(openat64, (int dir, const char *path, int flags, ...), dir, path) return REAL(openat64)(dir, path, flags, bits); }

ssize_t write(int fd, const void *data, size_t size) {
    int verdict = event_fd("write", fd);
    if (verdict == 1) return -1;
    if (verdict == 2) {
        ssize_t ignored = REAL(write)(fd, data, size / 2);
        (void)ignored;
        kill(getpid(), SIGKILL);
    }
    return REAL(write)(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    int verdict = event_fd("write", fd);
    if (verdict == 1) return -1;
    if (verdict == 2) {
        ssize_t ignored = REAL(write)(fd, parts[0].iov_base, parts[0].iov_len / 2);
        (void)ignored;
        kill(getpid(), SIGKILL);
    }
    return REAL(writev)(fd, parts, count);
}

#define PWRITE(name, type)                                              \
    ssize_t name(int fd, const void *data, size_t size, type offset) {  \
        int verdict = event_fd("write", fd);                            \
        if (verdict == 1) return -1;                                    \
        if (verdict == 2) {                                             \
            ssize_t ignored = REAL(name)(fd, data, size / 2, offset);   \
            (void)ignored;                                              \
            kill(getpid(), SIGKILL);                                    \
        }                                                               \
        return REAL(name)(fd, data, size, offset);                      \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

int fsync(int fd) { return event_fd("fsync", fd) == 1 ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return event_fd("fsync", fd) == 1 ? -1 : REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t size) { return event_fd("truncate", fd) == 1 ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return event_fd("truncate", fd) == 1 ? -1 : REAL(ftruncate64)(fd, size); }
int rename(const char *from, const char *to) { return event_at("rename", AT_FDCWD, to) == 1 ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) { return event_at("rename", b, to) == 1 ? -1 : REAL(renameat)(a, from, b, to); }
int link(const char *from, const char *to) { return event_at("link", AT_FDCWD, to) == 1 ? -1 : REAL(link)(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return event_at("link", b, to) == 1 ? -1 : REAL(linkat)(a, from, b, to, flags); }
int unlink(const char *path) { return event_at("unlink", AT_FDCWD, path) == 1 ? -1 : REAL(unlink)(path); }
int unlinkat(int dir, const char *path, int flags) { return event_at(flags ? "rmdir" : "unlink", dir, path) == 1 ? -1 : REAL(unlinkat)(dir, path, flags); }
int rmdir(const char *path) { return event_at("rmdir", AT_FDCWD, path) == 1 ? -1 : REAL(rmdir)(path); }
int mkdir(const char *path, mode_t bits) { return event_at("mkdir", AT_FDCWD, path) == 1 ? -1 : REAL(mkdir)(path, bits); }
int mkdirat(int dir, const char *path, mode_t bits) { return event_at("mkdir", dir, path) == 1 ? -1 : REAL(mkdirat)(dir, path, bits); }
