/* A CNI plugin that runs the real one of the same name from REAL and appends to LOG how long it
 * took, by its own clock: `COMMAND CONTAINER NANOSECONDS`. One write, so that lines stay whole. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    (void)argc;
    const char *slash = strrchr(argv[0], '/');
    const char *name = slash ? slash + 1 : argv[0];
    char real[4096], line[512];
    snprintf(real, sizeof real, "%s/%s", REAL, name);
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    pid_t child = vfork();
    if (child < 0)
        return 100;
    if (child == 0) {
        execv(real, argv);
        _exit(127);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        ;
    clock_gettime(CLOCK_MONOTONIC, &ended);
    const char *command = getenv("CNI_COMMAND"), *container = getenv("CNI_CONTAINERID");
    long long took = (ended.tv_sec - began.tv_sec) * 1000000000LL + (ended.tv_nsec - began.tv_nsec);
    int length = snprintf(line, sizeof line, "%s %.128s %lld\n", command ? command : "-",
                          container && *container ? container : "-", took);
    int log = open(LOG, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log >= 0 && length > 0 && write(log, line, (size_t)length) != length)
        perror("cni-clock");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}
