/* A file system that does not answer: whoever reads a file, or lists a folder, whose name holds "hung" waits for ever,
 * and no signal wakes it. Loaded into a process with LD_PRELOAD. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
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

static void answer(int fd) {
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return;
    name[length] = 0;
    if (strstr(name, "hung")) wait_for_ever();
}

ssize_t read(int fd, void *to, size_t size) {
    static ssize_t (*usual)(int, void *, size_t);
    if (!usual) usual = dlsym(RTLD_NEXT, "read");
    answer(fd);
    return usual(fd, to, size);
}

ssize_t pread64(int fd, void *to, size_t size, off_t from) {
    static ssize_t (*usual)(int, void *, size_t, off_t);
    if (!usual) usual = dlsym(RTLD_NEXT, "pread64");
    answer(fd);
    return usual(fd, to, size, from);
}

DIR *opendir(const char *name) {
    static DIR *(*usual)(const char *);
    if (!usual) usual = dlsym(RTLD_NEXT, "opendir");
    if (strstr(name, "hung")) wait_for_ever();
    return usual(name);
}
