/* Makes the N-th call that changes a file below a folder fail, or end the process. Loaded by
   LD_PRELOAD; what is to happen stands in environment variables (see shim.py). */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static char trace[PATH_MAX];
static long at;
static int error_number;
static int for_good;
static int also_reads;
static long *counter;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const char *setting(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* Called when the process starts, and by the tests after a fork. */
__attribute__((constructor)) void fail_arm(void) {
    snprintf(root, sizeof root, "%s", setting("FAIL_BELOW"));
    snprintf(trace, sizeof trace, "%s", setting("FAIL_TRACE"));
    at = atol(setting("FAIL_AT"));
    error_number = atoi(setting("FAIL_ERRNO"));
    for_good = atoi(setting("FAIL_FOR_GOOD"));
    also_reads = atoi(setting("FAIL_READS"));
    counter = NULL;
    if (!root[0] || !setting("FAIL_COUNTER")[0]) return;

    /* Shared by all processes of a command. */
    int fd = syscall(SYS_openat, AT_FDCWD, setting("FAIL_COUNTER"), O_RDWR);
    if (fd < 0) return;
    void *page = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) counter = page;
    syscall(SYS_close, fd);
}

static int is_below(int folder, const char *path, char *whole) {
    if (!path) return 0;
    if (path[0] == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
    } else {
        char link[64], base[PATH_MAX];
        ssize_t length;
        if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
        int written = snprintf(whole, PATH_MAX, "%s%s%s", base, path[0] ? "/" : "", path);
        if (written >= PATH_MAX) return 0;
    }
    size_t length = strlen(root);
    return !strncmp(whole, root, length) && (whole[length] == '/' || !whole[length]);
}

/* The error that this call is to fail with; 0: none. */
static int verdict(const char *call, int folder, const char *path, int changes) {
    char whole[PATH_MAX];
    if (!counter || !is_below(folder, path, whole)) return 0;

    long number = changes || also_reads ? __sync_add_and_fetch(counter, 1) : *counter;
    if (trace[0] && (changes || also_reads)) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %s %s\n", number, call, whole);
        int fd = syscall(SYS_openat, AT_FDCWD, trace, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (fd >= 0) {
            syscall(SYS_write, fd, line, length);
            syscall(SYS_close, fd);
        }
    }
    int is_hit = for_good ? number >= at : number == at && (changes || also_reads);
    if (!at || !is_hit) return 0;
    if (!error_number) {
        syscall(SYS_kill, getpid(), SIGKILL);
        pause();
    }
    return error_number;
}

#define REFUSE(call, folder, path, changes, failed)              \
    do {                                                         \
        int refused = verdict(call, folder, path, changes);      \
        if (refused) { errno = refused; return failed; }         \
    } while (0)

#define CHANGING (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_APPEND)

#define MODE_OF(flags)                                           \
    mode_t mode = 0;                                             \
    if (flags & (O_CREAT | O_TMPFILE)) {                         \
        va_list rest;                                            \
        va_start(rest, flags);                                   \
        mode = va_arg(rest, mode_t);                             \
        va_end(rest);                                            \
    }

#define OPEN(name)                                               \
    int name(const char *path, int flags, ...) {                 \
        MODE_OF(flags)                                           \
        REFUSE("open", AT_FDCWD, path, flags & CHANGING, -1);    \
        return REAL(name)(path, flags, mode);                    \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                             \
    int name(int folder, const char *path, int flags, ...) {     \
        MODE_OF(flags)                                           \
        REFUSE("open", folder, path, flags & CHANGING, -1);      \
        return REAL(name)(folder, path, flags, mode);            \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                              \
    FILE *name(const char *path, const char *mode) {             \
        REFUSE("open", AT_FDCWD, path, mode[0] != 'r', NULL);    \
        return REAL(name)(path, mode);                           \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
    REFUSE("write", fd, "", 1, -1);
    return REAL(write)(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    REFUSE("write", fd, "", 1, -1);
    return REAL(pwrite64)(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REFUSE("write", fd, "", 1, -1);
    return REAL(writev)(fd, parts, count);
}

ssize_t copy_file_range(int from, off64_t *in, int to, off64_t *out, size_t size, unsigned flags) {
    REFUSE("write", to, "", 1, -1);
    return REAL(copy_file_range)(from, in, to, out, size, flags);
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) {
    REFUSE("write", to, "", 1, -1);
    ssize_t (*real)(int, int, off64_t *, size_t) = dlsym(RTLD_NEXT, "sendfile64");
    return real(to, from, offset, size);
}

ssize_t read(int fd, void *data, size_t size) {
    if (for_good || also_reads) REFUSE("read", fd, "", 0, -1);
    return REAL(read)(fd, data, size);
}

int fsync(int fd) {
    REFUSE("fsync", fd, "", 1, -1);
    return REAL(fsync)(fd);
}

int ftruncate64(int fd, off64_t size) {
    REFUSE("truncate", fd, "", 1, -1);
    return REAL(ftruncate64)(fd, size);
}

int mkdir(const char *path, mode_t mode) {
    REFUSE("mkdir", AT_FDCWD, path, 1, -1);
    return REAL(mkdir)(path, mode);
}

int rmdir(const char *path) {
    REFUSE("rmdir", AT_FDCWD, path, 1, -1);
    return REAL(rmdir)(path);
}

int unlink(const char *path) {
    REFUSE("unlink", AT_FDCWD, path, 1, -1);
    return REAL(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REFUSE("unlink", folder, path, 1, -1);
    return REAL(unlinkat)(folder, path, flags);
}

int rename(const char *from, const char *to) {
    REFUSE("rename", AT_FDCWD, to, 1, -1);
    return REAL(rename)(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REFUSE("rename", to_folder, to, 1, -1);
    return REAL(renameat)(from_folder, from, to_folder, to);
}

int symlink(const char *target, const char *path) {
    REFUSE("symlink", AT_FDCWD, path, 1, -1);
    return REAL(symlink)(target, path);
}

int link(const char *target, const char *path) {
    REFUSE("link", AT_FDCWD, path, 1, -1);
    return REAL(link)(target, path);
}

int chmod(const char *path, mode_t mode) {
    REFUSE("chmod", AT_FDCWD, path, 1, -1);
    return REAL(chmod)(path, mode);
}

int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    REFUSE("chmod", folder, path, 1, -1);
    return REAL(fchmodat)(folder, path, mode, flags);
}

int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
    REFUSE("utime", folder, path, 1, -1);
    return REAL(utimensat)(folder, path, times, flags);
}

int futimens(int fd, const struct timespec times[2]) {
    REFUSE("utime", fd, "", 1, -1);
    return REAL(futimens)(fd, times);
}

DIR *opendir(const char *path) {
    REFUSE("list", AT_FDCWD, path, 0, NULL);
    return REAL(opendir)(path);
}

ssize_t readlink(const char *path, char *target, size_t size) {
    REFUSE("readlink", AT_FDCWD, path, 0, -1);
    return REAL(readlink)(path, target, size);
}

int access(const char *path, int mode) {
    REFUSE("access", AT_FDCWD, path, 0, -1);
    return REAL(access)(path, mode);
}

#define STAT(name, type)                                         \
    int name(const char *path, type *status) {                   \
        REFUSE("stat", AT_FDCWD, path, 0, -1);                   \
        return REAL(name)(path, status);                         \
    }
STAT(stat, struct stat)
STAT(lstat, struct stat)
STAT(stat64, struct stat64)
STAT(lstat64, struct stat64)

#define STATAT(name, type)                                           \
    int name(int folder, const char *path, type *status, int flags) { \
        REFUSE("stat", folder, path, 0, -1);                         \
        return REAL(name)(folder, path, status, flags);              \
    }
STATAT(fstatat, struct stat)
STATAT(fstatat64, struct stat64)
