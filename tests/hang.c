/* A file system that does not answer: whoever reads a file, or lists a folder, whose name holds "hung" waits for ever,
 * and no signal wakes it. Whoever reads a file whose name holds "broken" is told of an input/output error. Loaded into a process with LD_PRELOAD. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* Makes the file $HANG_TOLD, so that a test knows when to begin. */
static void wait_for_ever(void) {
    sigset_t all;
    const char *told = getenv("HANG_TOLD");
    if (told) close(creat(told, 0600));
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (;;) sleep(1000);
}

/* 0, or -1 with errno set. */
static int answer(int fd) {
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return 0;
    name[length] = 0;
    if (strstr(name, "hung")) wait_for_ever();
    if (!strstr(name, "broken")) return 0;
    errno = EIO;
    return -1;
}

ssize_t read(int fd, void *to, size_t size) {
    static ssize_t (*usual)(int, void *, size_t);
    if (!usual) usual = dlsym(RTLD_NEXT, "read");
    if (answer(fd)) return -1;
    return usual(fd, to, size);
}

ssize_t pread64(int fd, void *to, size_t size, off_t from) {
    static ssize_t (*usual)(int, void *, size_t, off_t);
    if (!usual) usual = dlsym(RTLD_NEXT, "pread64");
    if (answer(fd)) return -1;
    return usual(fd, to, size, from);
}

DIR *opendir(const char *name) {
    static DIR *(*usual)(const char *);
    if (!usual) usual = dlsym(RTLD_NEXT, "opendir");
    if (strstr(name, "hung")) wait_for_ever();
    return usual(name);
}
