/* Preloaded into a process, it breaks the storage below one folder: the N-th call that matches fails, tears or kills.

   Also a clock of the wall that runs backwards, a system that allows so many more threads, and file systems that lack
   what ext4 has. Nothing happens before one of the functions without a namesake in the C library is called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { WRITE = 1, RENAME = 2, TRUNCATE = 4, SYNC = 8, ALLOCATE = 16 };
enum action { SHORT = -1, TORN = -2, KILL_BEFORE = -3, KILL_AFTER = -4, SLOW = -5 }; /* positive: the error to fail with */

static char folder[PATH_MAX];
static unsigned kinds;
static long nth;
static int what, lasting;
static atomic_long matched, calls[5], moments;
static long seconds_back;
static int threads_are_few;
static atomic_long threads_left;
enum lack { LOCKS, FOLDER_SYNC, RESERVATION, NAMELESS, LINKS, SYNC_ALL, LACKS }; /* which error a call fails with, or 0 */
static int lacking[LACKS], no_space_told, no_proc;

/* From now on: the nth call of `kinds` below `path`, and if it lasts all later ones, end as `action` says. */
void inject(const char *path, unsigned of_kinds, long n, int action, int lasts) {
    strncpy(folder, path, sizeof folder - 1);
    kinds = of_kinds, nth = n, what = action, lasting = lasts;
    atomic_store(&matched, 0);
}

/* How many calls there were of one kind. */
long calls_of(unsigned kind) { return atomic_load(&calls[__builtin_ctz(kind)]); }

/* From now on each look at the clock of the wall finds it so many seconds further back. */
void turn_back(long seconds) { seconds_back = seconds; }

/* From now on: so many more threads can be there at once. */
void allow_threads(long number) {
    atomic_store(&threads_left, number);
    threads_are_few = 1;
}

/* From now on: calls that need what the file system lacks fail with an error. */
void lack(int what, int error) { lacking[what] = error; }

/* From now on: file systems say that they have no blocks at all, as some do that do not know. */
void tell_no_space(void) { no_space_told = 1; }

/* From now on: nothing is found in /proc. */
void lack_proc(void) { no_proc = 1; }

static void die(void) {
    kill(getpid(), SIGKILL);
    pause();
}

static int is_below(const char *path) {
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) && path[length] == '/';
}

/* What is to happen to a call: 0 nothing, else an action; KILL_BEFORE has happened. */
static int fate_of_path(enum kind kind, const char *path) {
    if (!is_below(path))
        return 0;
    atomic_fetch_add(&calls[__builtin_ctz(kind)], 1);
    if (!(kinds & kind))
        return 0;
    long call = atomic_fetch_add(&matched, 1) + 1;
    if (call != nth && !(lasting && nth && call > nth))
        return 0;
    if (what == KILL_BEFORE)
        die();
    if (what == SLOW)
        usleep(50000);
    return what == SLOW ? 0 : what;
}

static int fate_of(enum kind kind, int fd) {
    char link[64], path[PATH_MAX];
    if (!*folder)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return fate_of_path(kind, path);
}

/* `call` is the real one; a write gives its count of bytes, which is halved to tear it. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(fate) (errno = (fate), -1)
#define SIMPLE(fate, call)                                                                                             \
    if ((fate) > 0)                                                                                                    \
        return FAIL(fate);                                                                                             \
    __typeof__(call) result = (call);                                                                                  \
    if ((fate) < 0 && (fate) != SHORT)                                                                                 \
        die();                                                                                                         \
    return result
#define HALVED(fate, count) ((fate) == SHORT || (fate) == TORN ? ((count) + 1) / 2 : (count))

ssize_t write(int fd, const void *data, size_t count) {
    int fate = fate_of(WRITE, fd);
    SIMPLE(fate, REAL(write)(fd, data, HALVED(fate, count)));
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) {
    int fate = fate_of(WRITE, fd);
    SIMPLE(fate, REAL(pwrite)(fd, data, HALVED(fate, count), offset));
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset) {
    return pwrite(fd, data, count, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    int fate = fate_of(WRITE, fd);
    SIMPLE(fate, REAL(writev)(fd, parts, HALVED(fate, count)));
}

/* The first of the buffers is the one that is halved: the rest comes after a short write. */
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    int fate = fate_of(WRITE, fd);
    if (fate == SHORT || fate == TORN) {
        size_t size = parts[0].iov_len;
        SIMPLE(fate, REAL(pwrite)(fd, parts[0].iov_base, HALVED(fate, size), offset));
    }
    SIMPLE(fate, REAL(pwritev)(fd, parts, count, offset));
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return pwritev(fd, parts, count, offset);
}

int rename(const char *from, const char *to) {
    int fate = fate_of_path(RENAME, to);
    SIMPLE(fate, REAL(rename)(from, to));
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    int fate = fate_of_path(RENAME, to);
    SIMPLE(fate, REAL(renameat2)(from_folder, from, to_folder, to, flags));
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    if (lacking[LINKS])
        return FAIL(lacking[LINKS]);
    if (no_proc && !strncmp(from, "/proc/", 6))
        return FAIL(ENOENT);
    int fate = fate_of_path(RENAME, to);
    SIMPLE(fate, REAL(linkat)(from_folder, from, to_folder, to, flags));
}

int ftruncate(int fd, off_t length) {
    int fate = fate_of(TRUNCATE, fd);
    SIMPLE(fate, REAL(ftruncate)(fd, length));
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

int fsync(int fd) {
    struct stat found;
    if (lacking[FOLDER_SYNC] && !fstat(fd, &found) && S_ISDIR(found.st_mode))
        return FAIL(lacking[FOLDER_SYNC]);
    int fate = fate_of(SYNC, fd);
    SIMPLE(fate, REAL(fsync)(fd));
}

int fdatasync(int fd) {
    int fate = fate_of(SYNC, fd);
    SIMPLE(fate, REAL(fdatasync)(fd));
}

int syncfs(int fd) {
    if (lacking[SYNC_ALL])
        return FAIL(lacking[SYNC_ALL]);
    int fate = fate_of(SYNC, fd);
    SIMPLE(fate, REAL(syncfs)(fd));
}

int fallocate(int fd, int mode, off_t offset, off_t length) {
    if (lacking[RESERVATION])
        return FAIL(lacking[RESERVATION]);
    int fate = fate_of(ALLOCATE, fd);
    SIMPLE(fate, REAL(fallocate)(fd, mode, offset, length));
}

int posix_fallocate(int fd, off_t offset, off_t length) {
    int fate = fate_of(ALLOCATE, fd);
    if (fate > 0)
        return fate;
    SIMPLE(fate, REAL(posix_fallocate)(fd, offset, length));
}

int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (clock == CLOCK_REALTIME && seconds_back)
        now->tv_sec -= seconds_back * (atomic_fetch_add(&moments, 1) + 1);
    return result;
}

int flock(int fd, int operation) { return lacking[LOCKS] ? FAIL(lacking[LOCKS]) : REAL(flock)(fd, operation); }

/* The names under which Python's `os` and `open` open files. */
#define OPENS(name)                                                                                                    \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(rest, mode_t) : 0;                                    \
        va_end(rest);                                                                                                  \
        if (lacking[NAMELESS] && (flags & O_TMPFILE) == O_TMPFILE)                                                     \
            return FAIL(lacking[NAMELESS]);                                                                            \
        if (no_proc && !strncmp(path, "/proc/", 6))                                                                    \
            return FAIL(ENOENT);                                                                                       \
        return REAL(name)(path, flags, mode);                                                                          \
    }
OPENS(open)
OPENS(open64)

#define TELLS(name, place, type)                                                                                       \
    int name(place what, struct type *found) {                                                                         \
        int result = REAL(name)(what, found);                                                                          \
        if (no_space_told)                                                                                             \
            found->f_blocks = found->f_bfree = found->f_bavail = 0;                                                    \
        return result;                                                                                                 \
    }
TELLS(statvfs, const char *, statvfs)
TELLS(statvfs64, const char *, statvfs64)
TELLS(fstatvfs, int, statvfs)
TELLS(fstatvfs64, int, statvfs64)

/* A thread that gives its place back when it ends. */
struct begin {
    void *(*start)(void *);
    void *argument;
};

static void *counted(void *given) {
    struct begin begin = *(struct begin *)given;
    free(given);
    void *result = begin.start(begin.argument);
    atomic_fetch_add(&threads_left, 1);
    return result;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *argument) {
    if (!threads_are_few)
        return REAL(pthread_create)(thread, how, start, argument);
    if (atomic_fetch_sub(&threads_left, 1) <= 0) {
        atomic_fetch_add(&threads_left, 1);
        return EAGAIN;
    }
    struct begin *given = malloc(sizeof *given);
    *given = (struct begin){start, argument};
    return REAL(pthread_create)(thread, how, counted, given);
}
