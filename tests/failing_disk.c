/* Loaded before the C library: while the file named by FAILING_DISK exists, flushing files fails with EIO, as on a disk
   that is about to die, and so does writing them when that file is not empty. Built by test_store_damage.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int failing(int writing) {
    struct stat status;
    const char *name = getenv("FAILING_DISK");
    return name && stat(name, &status) == 0 && (!writing || status.st_size > 0);
}

static int refuse(void) {
    errno = EIO;
    return -1;
}

int fsync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return failing(0) ? refuse() : real(file);
}

int fdatasync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    return failing(0) ? refuse() : real(file);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    return failing(1) ? refuse() : real(file, data, size, at);
}
