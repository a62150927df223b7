/*
 * Preloaded into the agent: a disk that fails on demand, and a wall clock that jumps.
 *
 * The disk makes calls on files below one directory fail while a control file exists. For machines whose kernel has no
 * device that can do it (dm-flakey).
 *
 * FAULT_DIR      the directory, an absolute path without links
 * FAULT_CONTROL  the control file: "CLASS ERRNO", as "sync EIO"; missing or empty: everything works
 *
 * CLASS is one of
 *   sync   fsync, fdatasync, sync_file_range
 *   write  what puts bytes into a file
 *   space  write, and what makes files and directories: a full disk
 *   all    space, and what changes or removes them, and opening for writing: a read-only file system
 *   lie    syncs do nothing and report success; ERRNO does not matter
 *
 * Each refused call adds a line with its name to FAULT_CONTROL.hits. Only raw system calls are used for that, so that
 * the shim never meets itself.
 *
 * The clock:
 *
 * FAULT_CLOCK    a file with the seconds by which the wall clock is ahead (below 0: behind); it is read at each look
 *
 * Waits until a time on the wall clock behave as the kernel's do when it is set: set back, they last longer. (This is
 * why it is not libfaketime, which leaves the C11 waits of librdkafka to the real clock.)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

enum class { NOTHING, SYNC, WRITE, SPACE, ALL, LIE };

struct order {
  enum class class;
  int error;
};

static int number_of(const char *name) {
  if (!strcmp(name, "EIO")) return EIO;
  if (!strcmp(name, "ENOSPC")) return ENOSPC;
  if (!strcmp(name, "EROFS")) return EROFS;
  if (!strcmp(name, "EDQUOT")) return EDQUOT;
  return EIO;
}

/* What fails now, and with which error. */
static struct order order(void) {
  struct order now = {NOTHING, 0};
  const char *control = getenv("FAULT_CONTROL");
  char text[64], class[16] = "", name[16] = "";
  if (!control) return now;
  int saved = errno;
  long fd = syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC);
  long count = fd < 0 ? -1 : syscall(SYS_read, fd, text, sizeof text - 1);
  if (fd >= 0) syscall(SYS_close, fd);
  errno = saved;
  if (count <= 0) return now;
  text[count] = 0;
  sscanf(text, "%15s %15s", class, name);
  now.error = number_of(name);
  if (!strcmp(class, "sync")) now.class = SYNC;
  if (!strcmp(class, "write")) now.class = WRITE;
  if (!strcmp(class, "space")) now.class = SPACE;
  if (!strcmp(class, "all")) now.class = ALL;
  if (!strcmp(class, "lie")) now.class = LIE;
  return now;
}

/* Syncs fail on their own order only; the other classes hold each other. */
static int asks_for(struct order now, enum class least) {
  return least == SYNC ? now.class == SYNC : now.class >= least && now.class != LIE;
}

static int is_below(const char *path) {
  const char *dir = getenv("FAULT_DIR");
  size_t length = dir ? strlen(dir) : 0;
  return length && !strncmp(path, dir, length) && (path[length] == '/' || !path[length]);
}

static int fd_is_below(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  int saved = errno;
  long count = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
  errno = saved;
  if (count < 0) return 0;
  path[count] = 0;
  return is_below(path);
}

/* A relative name is below when its directory is. */
static int name_is_below(int dirfd, const char *path) {
  if (path[0] == '/') return is_below(path);
  return dirfd != AT_FDCWD && fd_is_below(dirfd);
}

static void note(const char *call) {
  const char *control = getenv("FAULT_CONTROL");
  char path[PATH_MAX], line[64];
  snprintf(path, sizeof path, "%s.hits", control);
  int length = snprintf(line, sizeof line, "%s\n", call);
  long fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) return;
  syscall(SYS_write, fd, line, (size_t)length);
  syscall(SYS_close, fd);
}

/* Whether the call fails: errno is set then, and the call noted. */
static int refused(const char *call, struct order now, enum class least, int is_there) {
  if (!asks_for(now, least) || !is_there) return 0;
  note(call);
  errno = now.error;
  return 1;
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* A sync may also lie: a disk that reports what it did not do. */
#define SYNCS(name, arguments, values, fd)                                \
  int name arguments {                                                    \
    REAL(name);                                                           \
    struct order now = order();                                           \
    if (now.class == LIE && fd_is_below(fd)) {                            \
      note(#name);                                                        \
      return 0;                                                           \
    }                                                                     \
    if (refused(#name, now, SYNC, fd_is_below(fd))) return -1;            \
    return real values;                                                   \
  }

SYNCS(fsync, (int fd), (fd), fd)
SYNCS(fdatasync, (int fd), (fd), fd)
SYNCS(sync_file_range, (int fd, off64_t at, off64_t count, unsigned flags), (fd, at, count, flags), fd)

#define ON_FD(type, name, least, arguments, values, fd)                   \
  type name arguments {                                                   \
    REAL(name);                                                           \
    if (refused(#name, order(), least, fd_is_below(fd))) return -1;         \
    return real values;                                                   \
  }

ON_FD(ssize_t, write, WRITE, (int fd, const void *bytes, size_t count), (fd, bytes, count), fd)
ON_FD(ssize_t, pwrite, WRITE, (int fd, const void *bytes, size_t count, off_t at), (fd, bytes, count, at), fd)
ON_FD(ssize_t, pwrite64, WRITE, (int fd, const void *bytes, size_t count, off64_t at), (fd, bytes, count, at), fd)
ON_FD(ssize_t, writev, WRITE, (int fd, const struct iovec *parts, int count), (fd, parts, count), fd)
ON_FD(ssize_t, pwritev, WRITE, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at), fd)
ON_FD(int, fallocate, WRITE, (int fd, int mode, off_t at, off_t count), (fd, mode, at, count), fd)
ON_FD(int, fallocate64, WRITE, (int fd, int mode, off64_t at, off64_t count), (fd, mode, at, count), fd)
ON_FD(int, ftruncate, ALL, (int fd, off_t length), (fd, length), fd)
ON_FD(int, ftruncate64, ALL, (int fd, off64_t length), (fd, length), fd)

#define ON_NAME(name, least, arguments, values, dirfd, path)                          \
  int name arguments {                                                                \
    REAL(name);                                                                       \
    if (refused(#name, order(), least, name_is_below(dirfd, path))) return -1;          \
    return real values;                                                               \
  }

ON_NAME(mkdir, SPACE, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
ON_NAME(rename, ALL, (const char *from, const char *to), (from, to), AT_FDCWD, from)
ON_NAME(unlink, ALL, (const char *path), (path), AT_FDCWD, path)
ON_NAME(rmdir, ALL, (const char *path), (path), AT_FDCWD, path)
ON_NAME(unlinkat, ALL, (int dir, const char *path, int flags), (dir, path, flags), dir, path)

/* A new file needs space, an old one only the right to write. */
static int opening_is_refused(const char *call, int dirfd, const char *path, int flags) {
  struct stat found;
  int saved = errno;
  int is_new = (flags & O_CREAT) && syscall(SYS_newfstatat, dirfd, path, &found, 0) != 0;
  errno = saved;
  int is_write = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
  if (!is_write) return 0;
  return refused(call, order(), is_new ? SPACE : ALL, name_is_below(dirfd, path));
}

#define OPENS(name)                                                           \
  int name(const char *path, int flags, ...) {                                \
    REAL(name);                                                               \
    va_list rest;                                                             \
    va_start(rest, flags);                                                    \
    mode_t mode = va_arg(rest, mode_t);                                       \
    va_end(rest);                                                             \
    if (opening_is_refused(#name, AT_FDCWD, path, flags)) return -1;          \
    return real(path, flags, mode);                                           \
  }

#define OPENS_AT(name)                                                        \
  int name(int dir, const char *path, int flags, ...) {                       \
    REAL(name);                                                               \
    va_list rest;                                                             \
    va_start(rest, flags);                                                    \
    mode_t mode = va_arg(rest, mode_t);                                       \
    va_end(rest);                                                             \
    if (opening_is_refused(#name, dir, path, flags)) return -1;               \
    return real(dir, path, flags, mode);                                      \
  }

OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

static long long ahead(void) {
  const char *clock = getenv("FAULT_CLOCK");
  char text[32];
  if (!clock) return 0;
  int saved = errno;
  long fd = syscall(SYS_openat, AT_FDCWD, clock, O_RDONLY | O_CLOEXEC);
  long count = fd < 0 ? -1 : syscall(SYS_read, fd, text, sizeof text - 1);
  if (fd >= 0) syscall(SYS_close, fd);
  errno = saved;
  if (count <= 0) return 0;
  text[count] = 0;
  return atoll(text);
}

static struct timespec wall(void) {
  struct timespec now;
  syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
  return now;
}

int clock_gettime(clockid_t id, struct timespec *now) {
  REAL(clock_gettime);
  int result = real(id, now);
  if (!result && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI)) now->tv_sec += ahead();
  return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec found = wall();
  now->tv_sec = found.tv_sec + ahead();
  now->tv_usec = found.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *into) {
  time_t now = wall().tv_sec + ahead();
  if (into) *into = now;
  return now;
}

int timespec_get(struct timespec *now, int base) {
  if (base != TIME_UTC) return 0;
  *now = wall();
  now->tv_sec += ahead();
  return base;
}

/* In slices, so that a jump is noticed. The mutex is held between two slices: no signal is missed. */
int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
  static const long long SLICE_NS = 20 * 1000 * 1000;
  REAL(cnd_timedwait);
  for (;;) {
    struct timespec end = wall();
    long long left = (until->tv_sec - end.tv_sec - ahead()) * 1000000000LL + until->tv_nsec - end.tv_nsec;
    if (left <= 0) return thrd_timedout;
    end.tv_nsec += left < SLICE_NS ? left : SLICE_NS;
    if (end.tv_nsec >= 1000000000) {
      end.tv_nsec -= 1000000000;
      end.tv_sec += 1;
    }
    int result = real(condition, mutex, &end);
    if (result != thrd_timedout) return result;
  }
}
