// What a shell cannot do to its neighbours: trace them, fill the key quota, talk to a socket.
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// What a process executes, as far as we may know.
static const char *program(int pid) {
    static char text[4096];
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    ssize_t length = readlink(path, text, sizeof text - 1);
    if (length < 0)
        return errno == ENOENT ? "gone" : "hidden";
    text[length] = 0;
    return text;
}

static int is_ours(const char *exe) {
    return strncmp(exe, "/bin/", 5) == 0 || strcmp(exe, "gone") == 0;
}

static long looks, ours, traced;

// The effective capabilities of a process.
static unsigned long long capabilities(int pid) {
    char path[64], line[256];
    unsigned long long set = 0;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof line, status))
        sscanf(line, "CapEff: %llx", &set);
    if (status)
        fclose(status);
    return set;
}

// Whether a process that stands still has what the container has not.
static void search(int pid) {
    char path[64], name[400], text[256];
    if (capabilities(pid) & ~capabilities(getpid()))
        printf("BREACH capabilities %llx of %d\n", capabilities(pid), pid);
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *all = opendir(path);
    struct dirent *entry;
    while (all && (entry = readdir(all))) {
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        ssize_t length = readlink(name, text, sizeof text - 1);
        text[length < 0 ? 0 : length] = 0;
        if (text[0] == '/' && strcmp(text, "/dev/null") != 0)
            printf("BREACH descriptor %s of %d\n", text, pid);
    }
    if (all)
        closedir(all);
}

static void look_at(int pid, const char *canary) {
    char path[4200];
    looks++;
    snprintf(path, sizeof path, "/proc/%d/root%s", pid, canary);
    int file = open(path, O_RDONLY);
    if (file >= 0) {
        printf("BREACH root of %d leads to the host\n", pid);
        close(file);
    }
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    file = open(path, O_RDWR);
    if (file >= 0) {
        const char *exe = program(pid);
        if (is_ours(exe))
            ours++;
        else
            printf("BREACH memory of %d, %s\n", pid, exe);
        close(file);
    }
    if (ptrace(PTRACE_SEIZE, pid, 0, 0) == 0) {
        int status = 0;
        ptrace(PTRACE_INTERRUPT, pid, 0, 0);
        if (waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status)) {
            const char *exe = program(pid);
            if (is_ours(exe))
                traced++;
            else
                printf("BREACH traced %d, %s\n", pid, exe);
            search(pid);
            ptrace(PTRACE_DETACH, pid, 0, 0);
        }
    }
}

// Looks at every process but the known ones, as fast as it can.
static void trace(const char *canary) {
    time_t told = time(NULL);
    signal(SIGCHLD, SIG_DFL);
    puts("ready");
    for (;;) {
        DIR *all = opendir("/proc");
        struct dirent *entry;
        while (all && (entry = readdir(all))) {
            int pid = isdigit(entry->d_name[0]) ? atoi(entry->d_name) : 0;
            if (pid > 1 && pid != getpid())
                look_at(pid, canary);
        }
        if (all)
            closedir(all);
        if (time(NULL) != told) {
            told = time(NULL);
            printf("looks %ld memory %ld traced %ld\n", looks, ours, traced);
        }
    }
}

// Adds keys until there is no room for more, and stays.
static int keys(void) {
    long count = 0;
    char name[32];
    for (;;) {
        snprintf(name, sizeof name, "key%ld", count);
        // Into the user's keyring.
        if (syscall(SYS_add_key, "user", name, "x", 1L, -4L) < 0)
            break;
        count++;
    }
    printf("keys %ld: %s\n", count, strerror(errno));
    pause();
    return 0;
}

// Connects to a socket, sends bytes and tells what becomes of it.
static int talk(const char *path, const char *hex) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char answer[256];
    int socket_ = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (connect(socket_, (void *)&address, sizeof address) < 0) {
        printf("not connected: %s\n", strerror(errno));
        return 0;
    }
    char bytes[256];
    size_t size = 0;
    for (unsigned byte; size < sizeof bytes && sscanf(hex + 2 * size, "%2x", &byte) == 1; size++)
        bytes[size] = (char)byte;
    send(socket_, bytes, size, MSG_NOSIGNAL);
    ssize_t length = recv(socket_, answer, sizeof answer, 0);
    printf("%s\n", length > 0 ? "answered" : "shown out");
    return 0;
}

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count == 3 && strcmp(words[1], "trace") == 0)
        trace(words[2]);
    if (count == 2 && strcmp(words[1], "keys") == 0)
        return keys();
    if (count == 4 && strcmp(words[1], "talk") == 0)
        return talk(words[2], words[3]);
    return 2;
}
