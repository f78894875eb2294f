/* recorder: a preloaded library that writes down what a process changes and syncs below one directory, and fails calls.
 *
 * How it works      It stands before libc's calls that change, sync, open or read files. Each call on a file below the
 *                   root is made (by a raw system call) and appended with its data to the log, under one lock, so the
 *                   order of the log is the order of the effects. A sync is noted when it begins and when it ends, and
 *                   made in between without the lock. What is stored in shared mappings makes no call: before
 *                   each record, every mapping is compared with a copy of it, and the 512-byte sectors that differ are
 *                   appended first. Files are known by inode, so it does not matter through which descriptor.
 * Switches          RECORDER_ROOT and RECORDER_LOG start it with the process; a process that has it loaded can call
 *                   recorder_begin and recorder_end itself. RECORDER_FAULT="KIND K ERRNO EVER PART" (recorder_fault)
 *                   fails the K-th call of a kind on paths that contain PART, or all from there on. RECORDER_SYNC_US
 *                   makes syncs that much longer. RECORDER_DELAY="KIND US EVERY PART" makes each EVERY-th call of a kind
 *                   ("any": of all but reads) on paths that contain PART begin that much later, without the lock.
 *                   RECORDER_KILL names a file of two 64-bit numbers, which is mapped: the first counts calls (all but reads), and
 *                   before the call whose number is the second one the process kills itself; whoever started it may set
 *                   the second one meanwhile. RECORDER_GOES_ON=N: the log goes on, for the N-th time.
 *                   RECORDER_BOOT_ID names a file to be read as the host's boot id.
 * What it misses    Calls that do not go through libc's public names (a raw system call, io_uring); calls not listed
 *                   here (link, copy_file_range, sendfile, splice). A test replays a whole log and compares, which finds these.
 * Log               Records as `struct record` below, then `payload` bytes: data, or paths from the root on.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SECTOR 512
#define LOG_FD 1000 /* where the log's descriptor is put, out of the way */

enum { KNOWN = 1, CREATE, WRITE, TRUNCATE, ZERO, ALLOCATE, SYNC_BEGIN, SYNC_END, RENAME, UNLINK, MKDIR, RMDIR };

struct record {
    uint8_t kind, flag; /* KNOWN: 1 a directory. SYNC_END: 1 it failed. WRITE: 1 through a mapping */
    uint16_t reserved;
    uint32_t file;
    uint64_t offset, length;
    uint32_t payload, token; /* the token pairs SYNC_BEGIN and SYNC_END */
};

struct known { ino_t inode; uint32_t file; struct known *next; };
struct mapping { char *start, *shadow; size_t length; uint64_t offset; uint32_t file; ino_t inode; struct mapping *next; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile int active; /* a root is set: calls are looked at */
static char root[PATH_MAX];
static size_t root_length;
static dev_t root_device;
static int log_fd = -1; /* -1: nothing is recorded, faults only */
static uint32_t files, tokens;
static unsigned sync_us, goes_on;
static struct known *known_by_inode[1024];
static struct mapping *mappings;

static struct { char kind[16], part[128]; long at, count; int error, ever; } fault;
static struct { char kind[16], part[128]; long us, every, count; } delay;
static long *calls; /* how many there were, and before which one the process is killed; NULL: nobody asks */

/* What is known of files. All under the lock. */

static uint32_t find(ino_t inode) {
    for (struct known *one = known_by_inode[inode % 1024]; one; one = one->next)
        if (one->inode == inode) return one->file;
    return 0;
}

static void forget(ino_t inode) {
    for (struct known **at = &known_by_inode[inode % 1024]; *at; at = &(*at)->next)
        if ((*at)->inode == inode) {
            struct known *gone = *at;
            *at = gone->next;
            free(gone);
            return;
        }
}

static uint32_t add(ino_t inode) {
    forget(inode);
    struct known *one = malloc(sizeof *one);
    *one = (struct known){inode, ++files, known_by_inode[inode % 1024]};
    known_by_inode[inode % 1024] = one;
    return one->file;
}

/* The file of a descriptor, 0 if it is not below the root. */
static uint32_t file_of(int fd, struct stat *status) {
    if (fd < 0 || syscall(SYS_newfstatat, fd, "", status, AT_EMPTY_PATH) != 0) return 0;
    return status->st_dev == root_device ? find(status->st_ino) : 0;
}

/* A path from the root on, or NULL if it leads elsewhere. */
static const char *below(int dir, const char *path, char *buffer) {
    if (!active || !path) return NULL;
    if (path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir);
        long length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
        if (length <= 0 || length + strlen(path) + 2 > PATH_MAX) return NULL;
        buffer[length] = '/';
        strcpy(buffer + length + 1, path);
        path = buffer;
    }
    if (strncmp(path, root, root_length) != 0) return NULL;
    if (path[root_length] == 0) return "";
    return path[root_length] == '/' ? path + root_length + 1 : NULL;
}

/* The log. */

static void append(struct record record, const void *payload, size_t length) {
    if (log_fd < 0) return;
    record.payload = length;
    struct iovec parts[2] = {{&record, sizeof record}, {(void *)payload, length}};
    long wrote = syscall(SYS_writev, log_fd, parts, 2);
    if (wrote != (long)(sizeof record + length)) abort(); /* a log with a gap would prove nothing */
}

static void append_paths(int kind, uint32_t file, const char *one, const char *other) {
    char both[2 * PATH_MAX];
    size_t length = strlen(one) + 1;
    memcpy(both, one, length);
    if (other) {
        strcpy(both + length, other);
        length += strlen(other) + 1;
    }
    append((struct record){.kind = kind, .file = file}, both, length);
}

static void append_stored(struct mapping *map) {
    size_t begin = 0, end = 0; /* the run of sectors that differ */
    for (size_t at = 0; at <= map->length; at += SECTOR) {
        size_t length = map->length - at < SECTOR ? map->length - at : SECTOR;
        if (length && memcmp(map->start + at, map->shadow + at, length) != 0) {
            memcpy(map->shadow + at, map->start + at, length);
            if (end == begin) begin = at;
            end = at + length;
        } else if (end > begin) {
            append((struct record){.kind = WRITE, .flag = 1, .file = map->file, .offset = map->offset + begin,
                                   .length = end - begin}, map->shadow + begin, end - begin);
            begin = end = 0;
        }
        if (length < SECTOR) break;
    }
    if (end > begin)
        append((struct record){.kind = WRITE, .flag = 1, .file = map->file, .offset = map->offset + begin,
                               .length = end - begin}, map->shadow + begin, end - begin);
}

/* Begins a call: takes the lock and appends what was stored before it. */
static void enter(void) {
    pthread_mutex_lock(&lock);
    if (log_fd >= 0)
        for (struct mapping *map = mappings; map; map = map->next) append_stored(map);
}

static void leave(void) { int kept = errno; pthread_mutex_unlock(&lock); errno = kept; }

/* Whether the path of a call contains `part`. `path` NULL: it is that of `fd`. */
static int contains(int fd, const char *path, const char *part) {
    char link[64], buffer[PATH_MAX];
    if (!path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        long length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, sizeof buffer - 1);
        buffer[length > 0 ? length : 0] = 0;
        path = buffer;
    }
    return strstr(path, part) != NULL;
}

/* A call is about to be made, and nothing is locked yet: kills the process if it is its turn, or waits. */
static void before(const char *kind, int fd, const char *path) {
    int kept = errno;
    if (calls && __atomic_add_fetch(&calls[0], 1, __ATOMIC_SEQ_CST) == __atomic_load_n(&calls[1], __ATOMIC_SEQ_CST))
        for (;;) kill(getpid(), SIGKILL);
    if (delay.us && (!strcmp(delay.kind, "any") || !strcmp(delay.kind, kind)) && contains(fd, path, delay.part) &&
        __atomic_add_fetch(&delay.count, 1, __ATOMIC_RELAXED) % delay.every == 0)
        usleep(delay.us);
    errno = kept;
}

/* Whether the call that is about to be made is to fail; then errno is set. Under the lock. */
static int fails(const char *kind, int fd, const char *path) {
    if (!fault.at || strcmp(kind, fault.kind) != 0 || !contains(fd, path, fault.part)) return 0;
    fault.count++;
    if (fault.count != fault.at && !(fault.ever && fault.count > fault.at)) return 0;
    errno = fault.error;
    return 1;
}

/* Switches. */

static int note_known(const char *path, const struct stat *status, int kind, struct FTW *unused) {
    (void)unused;
    if (kind != FTW_D && !S_ISREG(status->st_mode)) return 0;
    const char *name = path[root_length] ? path + root_length + 1 : "";
    uint32_t file = add(status->st_ino);
    append((struct record){.kind = KNOWN, .flag = kind == FTW_D, .file = file}, name, strlen(name) + 1);
    /* Where an earlier process was killed, its last stores into mappings are not in the log yet. */
    if (goes_on && kind == FTW_F && status->st_size > 0 && status->st_size <= 1 << 20) {
        char *data = malloc(status->st_size);
        int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY);
        long length = syscall(SYS_pread64, fd, data, status->st_size, 0);
        if (length > 0)
            append((struct record){.kind = WRITE, .flag = 1, .file = file, .length = length}, data, length);
        syscall(SYS_close, fd);
        free(data);
    }
    return 0;
}

void recorder_begin(const char *directory, const char *log) {
    pthread_mutex_lock(&lock);
    snprintf(root, sizeof root, "%s", directory);
    root_length = strlen(root);
    struct stat status;
    if (stat(root, &status) != 0) abort();
    root_device = status.st_dev;
    files = tokens = goes_on << 24;
    if (log && *log) {
        int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | (goes_on ? 0 : O_TRUNC) | O_APPEND | O_CLOEXEC, 0600);
        log_fd = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, LOG_FD);
        if (log_fd < 0) abort();
        syscall(SYS_close, fd);
    }
    nftw(root, note_known, 16, FTW_PHYS);
    active = 1;
    pthread_mutex_unlock(&lock);
}

void recorder_end(void) {
    enter();
    active = 0;
    if (log_fd >= 0) syscall(SYS_close, log_fd);
    log_fd = -1;
    while (mappings) {
        struct mapping *gone = mappings;
        mappings = gone->next;
        free(gone->shadow);
        free(gone);
    }
    for (int at = 0; at < 1024; at++)
        while (known_by_inode[at]) forget(known_by_inode[at]->inode);
    pthread_mutex_unlock(&lock);
}

void recorder_fault(const char *kind, long at, int error, int ever, const char *part) {
    pthread_mutex_lock(&lock);
    snprintf(fault.kind, sizeof fault.kind, "%s", kind);
    snprintf(fault.part, sizeof fault.part, "%s", part);
    fault.at = at, fault.count = 0, fault.error = error, fault.ever = ever;
    pthread_mutex_unlock(&lock);
}

long recorder_counted(void) { return fault.count; }

__attribute__((constructor)) static void start(void) {
    const char *directory = getenv("RECORDER_ROOT"), *told = getenv("RECORDER_FAULT");
    sync_us = getenv("RECORDER_SYNC_US") ? atoi(getenv("RECORDER_SYNC_US")) : 0;
    goes_on = getenv("RECORDER_GOES_ON") ? atoi(getenv("RECORDER_GOES_ON")) : 0;
    char kind[16], part[128] = "";
    long at;
    int error, ever;
    if (told && sscanf(told, "%15s %ld %d %d %127s", kind, &at, &error, &ever, part) >= 4)
        recorder_fault(kind, at, error, ever, part);
    const char *delays = getenv("RECORDER_DELAY"), *kills = getenv("RECORDER_KILL");
    if (delays && sscanf(delays, "%15s %ld %ld %127s", delay.kind, &delay.us, &delay.every, delay.part) < 3) abort();
    if (kills) {
        int fd = syscall(SYS_openat, AT_FDCWD, kills, O_RDWR | O_CLOEXEC);
        calls = (long *)syscall(SYS_mmap, NULL, 2 * sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (fd < 0 || calls == MAP_FAILED) abort();
        syscall(SYS_close, fd);
    }
    if (directory) recorder_begin(directory, getenv("RECORDER_LOG"));
    unsetenv("LD_PRELOAD"); /* programs that this one starts are not recorded */
    unsetenv("RECORDER_ROOT");
}

/* Opening and making. */

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    char buffer[PATH_MAX];
    const char *boot = path && !strcmp(path, "/proc/sys/kernel/random/boot_id") ? getenv("RECORDER_BOOT_ID") : NULL;
    const char *name = boot ? NULL : below(dir, path, buffer);
    if (!name) return syscall(SYS_openat, dir, boot ? boot : path, flags, mode);
    before("open", -1, name);
    enter();
    int fd = -1;
    if (!fails("open", -1, name)) {
        struct stat before, status;
        int was = syscall(SYS_newfstatat, dir, path, &before, 0) == 0;
        fd = syscall(SYS_openat, dir, path, flags, mode);
        if (fd >= 0 && !was && (flags & O_CREAT) && fstat(fd, &status) == 0)
            append_paths(CREATE, add(status.st_ino), name, NULL);
        else if (fd >= 0 && was && (flags & O_TRUNC) && find(before.st_ino))
            append((struct record){.kind = TRUNCATE, .file = find(before.st_ino)}, NULL, 0);
    }
    leave();
    return fd;
}

static mode_t mode_of(int flags, va_list list) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
}

int open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = mode_of(flags, list);
    va_end(list);
    return open_at(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) __attribute__((alias("open")));
int openat(int dir, const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = mode_of(flags, list);
    va_end(list);
    return open_at(dir, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) __attribute__((alias("openat")));
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }

int mkdirat(int dir, const char *path, mode_t mode) {
    char buffer[PATH_MAX];
    const char *name = below(dir, path, buffer);
    if (!name) return syscall(SYS_mkdirat, dir, path, mode);
    before("mkdir", -1, name);
    enter();
    struct stat status;
    int result = fails("mkdir", -1, name) ? -1 : syscall(SYS_mkdirat, dir, path, mode);
    if (result == 0 && syscall(SYS_newfstatat, dir, path, &status, 0) == 0)
        append_paths(MKDIR, add(status.st_ino), name, NULL);
    leave();
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* Changing names. */

static void forget_named(int dir, const char *path) {
    struct stat status;
    if (syscall(SYS_newfstatat, dir, path, &status, AT_SYMLINK_NOFOLLOW) != 0 || status.st_nlink > 1) return;
    for (struct mapping *map = mappings; map; map = map->next)
        if (map->inode == status.st_ino) map->length = 0; /* nobody will see what is stored there */
    forget(status.st_ino);
}

int unlinkat(int dir, const char *path, int flags) {
    char buffer[PATH_MAX];
    const char *name = below(dir, path, buffer);
    if (!name) return syscall(SYS_unlinkat, dir, path, flags);
    before("unlink", -1, name);
    enter();
    int result = -1;
    if (!fails("unlink", -1, name)) {
        struct stat status;
        int was = syscall(SYS_newfstatat, dir, path, &status, AT_SYMLINK_NOFOLLOW) == 0;
        uint32_t file = was && status.st_dev == root_device ? find(status.st_ino) : 0;
        if (was && !(flags & AT_REMOVEDIR) && status.st_nlink == 1) forget_named(dir, path);
        result = syscall(SYS_unlinkat, dir, path, flags);
        if (result == 0) append_paths(flags & AT_REMOVEDIR ? RMDIR : UNLINK, file, name, NULL);
        if (result == 0 && (flags & AT_REMOVEDIR)) forget(status.st_ino);
    }
    leave();
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    int result = unlink(path);
    return result == 0 || (errno != EISDIR && errno != EPERM) ? result : rmdir(path);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char buffer[PATH_MAX], other[PATH_MAX];
    const char *old = below(from_dir, from, buffer), *new = below(to_dir, to, other);
    if (!old || !new) return syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    before("rename", -1, old);
    enter();
    int result = -1;
    if (!fails("rename", -1, old)) {
        forget_named(to_dir, to);
        result = syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
        if (result == 0) append_paths(RENAME, 0, old, new);
    }
    leave();
    return result;
}
int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return renameat2(from_dir, from, to_dir, to, 0);
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

/* Writing. */

static ssize_t write_parts(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    struct stat status;
    uint32_t file;
    if (!active || !(file = file_of(fd, &status)))
        return offset < 0 ? syscall(SYS_writev, fd, parts, count)
                          : syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags);
    before("write", fd, NULL);
    enter();
    ssize_t wrote = -1;
    file = file_of(fd, &status); /* its size, now that nobody changes it */
    if (!fails("write", fd, NULL)) {
        off_t at = offset;
        if (offset < 0) at = fcntl(fd, F_GETFL) & O_APPEND ? status.st_size : lseek(fd, 0, SEEK_CUR);
        wrote = offset < 0 ? syscall(SYS_writev, fd, parts, count)
                           : syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags);
        size_t left = wrote > 0 ? wrote : 0;
        for (int part = 0; part < count && left && file; part++) {
            size_t length = parts[part].iov_len < left ? parts[part].iov_len : left;
            append((struct record){.kind = WRITE, .file = file, .offset = at, .length = length},
                   parts[part].iov_base, length);
            at += length, left -= length;
        }
    }
    leave();
    return wrote;
}

ssize_t write(int fd, const void *data, size_t length) {
    struct iovec part = {(void *)data, length};
    struct stat status;
    if (!active || !file_of(fd, &status)) return syscall(SYS_write, fd, data, length);
    return write_parts(fd, &part, 1, -1, 0);
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    struct iovec part = {(void *)data, length};
    return offset < 0 ? syscall(SYS_pwrite64, fd, data, length, offset) : write_parts(fd, &part, 1, offset, 0);
}
ssize_t pwrite64(int, const void *, size_t, off64_t) __attribute__((alias("pwrite")));
ssize_t writev(int fd, const struct iovec *parts, int count) { return write_parts(fd, parts, count, -1, 0); }
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    return write_parts(fd, parts, count, offset, flags);
}
ssize_t pwritev64v2(int, const struct iovec *, int, off64_t, int) __attribute__((alias("pwritev2")));
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return write_parts(fd, parts, count, offset, 0);
}
ssize_t pwritev64(int, const struct iovec *, int, off64_t) __attribute__((alias("pwritev")));

int ftruncate(int fd, off_t length) {
    struct stat status;
    uint32_t file;
    if (!active || !(file = file_of(fd, &status))) return syscall(SYS_ftruncate, fd, length);
    before("truncate", fd, NULL);
    enter();
    int result = fails("truncate", fd, NULL) ? -1 : syscall(SYS_ftruncate, fd, length);
    if (result == 0) append((struct record){.kind = TRUNCATE, .file = file, .length = length}, NULL, 0);
    leave();
    return result;
}
int ftruncate64(int, off64_t) __attribute__((alias("ftruncate")));

int fallocate(int fd, int mode, off_t offset, off_t length) {
    struct stat status;
    uint32_t file;
    if (!active || !(file = file_of(fd, &status))) return syscall(SYS_fallocate, fd, mode, offset, length);
    before("allocate", fd, NULL);
    enter();
    int result = fails("allocate", fd, NULL) ? -1 : syscall(SYS_fallocate, fd, mode, offset, length);
    int zeroes = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
    if (result == 0)
        append((struct record){.kind = zeroes ? ZERO : ALLOCATE, .file = file, .offset = offset, .length = length,
                               .flag = !!(mode & FALLOC_FL_KEEP_SIZE)}, NULL, 0);
    leave();
    return result;
}
int fallocate64(int, int, off64_t, off64_t) __attribute__((alias("fallocate")));
int posix_fallocate(int fd, off_t offset, off_t length) { return fallocate(fd, 0, offset, length) ? errno : 0; }
int posix_fallocate64(int, off64_t, off64_t) __attribute__((alias("posix_fallocate")));

/* Syncing. */

static int sync_by(long number, int fd) {
    struct stat status;
    uint32_t file;
    if (!active || !(file = file_of(fd, &status))) return syscall(number, fd);
    before("sync", fd, NULL);
    enter();
    uint32_t token = ++tokens;
    int failed = fails("sync", fd, NULL), kept = errno;
    append((struct record){.kind = SYNC_BEGIN, .file = file, .token = token}, NULL, 0);
    leave();
    if (sync_us) usleep(sync_us);
    int result = failed ? -1 : syscall(number, fd);
    if (result != 0 && !failed) kept = errno;
    enter();
    append((struct record){.kind = SYNC_END, .flag = result != 0, .file = file, .token = token}, NULL, 0);
    leave();
    errno = result == 0 ? errno : kept;
    return result;
}
int fsync(int fd) { return sync_by(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_by(SYS_fdatasync, fd); }

/* Mapping. */

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    struct stat status;
    uint32_t file = 0;
    int shared = (flags & MAP_SHARED) && (protection & PROT_WRITE) && !(flags & MAP_ANONYMOUS);
    if (!active || !shared || !(file = file_of(fd, &status)))
        return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
    before("map", fd, NULL);
    enter();
    void *start = MAP_FAILED;
    if (!fails("map", fd, NULL))
        start = (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
    if (start != MAP_FAILED && log_fd >= 0) {
        struct mapping *map = malloc(sizeof *map);
        *map = (struct mapping){start, malloc(length), length, offset, file, status.st_ino, mappings};
        memcpy(map->shadow, start, length);
        mappings = map;
    }
    leave();
    return start;
}
void *mmap64(void *, size_t, int, int, int, off64_t) __attribute__((alias("mmap")));

int munmap(void *start, size_t length) {
    if (!mappings) return syscall(SYS_munmap, start, length);
    enter();
    for (struct mapping **at = &mappings; *at; at = &(*at)->next)
        if ((*at)->start == start) {
            struct mapping *gone = *at;
            *at = gone->next;
            free(gone->shadow);
            free(gone);
            break;
        }
    int result = syscall(SYS_munmap, start, length);
    leave();
    return result;
}

/* Reading: only to be failed. */

static int read_fails(int fd) {
    struct stat status;
    if (!active || !fault.at || strcmp(fault.kind, "read") != 0 || !file_of(fd, &status)) return 0;
    pthread_mutex_lock(&lock);
    int failed = fails("read", fd, NULL);
    leave();
    return failed;
}

ssize_t read(int fd, void *data, size_t length) {
    return read_fails(fd) ? -1 : syscall(SYS_read, fd, data, length);
}
ssize_t pread(int fd, void *data, size_t length, off_t offset) {
    return read_fails(fd) ? -1 : syscall(SYS_pread64, fd, data, length, offset);
}
ssize_t pread64(int, void *, size_t, off64_t) __attribute__((alias("pread")));
ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    return read_fails(fd) ? -1 : syscall(SYS_preadv2, fd, parts, count, offset, 0, flags);
}
ssize_t preadv64v2(int, const struct iovec *, int, off64_t, int) __attribute__((alias("preadv2")));
