/* The web servers of the test images: answers every connection with 200 and a small page.
 *
 * usage: webserver PORT [PIDFILE [TITLE]]
 *
 * TITLE becomes argv[0], as real servers show themselves: a spec looks for "master process" in
 * /proc/1/cmdline. The process name stays that of the file. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void stop(int signal) {
    (void)signal;
    _exit(0);
}

static int listen_on(int port) {
    int one = 1, zero = 0;
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
        if (bind(fd, (struct sockaddr *)&any, sizeof any) == 0 && listen(fd, 64) == 0)
            return fd;
        close(fd);
    }
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any) != 0 || listen(fd, 64) != 0) {
        perror("webserver");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    if (argc > 3 && strcmp(argv[0], argv[3]) != 0) {
        char *again[] = {argv[3], argv[1], argv[2], argv[3], NULL};
        execv(argv[0], again);
        perror("webserver: exec");
        return 1;
    }
    signal(SIGTERM, stop);
    signal(SIGQUIT, stop);
    signal(SIGINT, stop);
    signal(SIGPIPE, SIG_IGN);
    int fd = listen_on(atoi(argv[1]));
    if (argc > 2) {
        FILE *pid = fopen(argv[2], "w");
        if (pid) {
            fprintf(pid, "%d\n", getpid());
            fclose(pid);
        }
    }
    printf("httpd: listening on port %s\n", argv[1]);
    fflush(stdout);
    static const char page[] = "<html><body><h1>It works!</h1></body></html>\n";
    for (;;) {
        int client = accept(fd, NULL, NULL);
        if (client < 0)
            continue;
        struct timeval limit = {.tv_sec = 5};
        char request[4096];
        setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        if (read(client, request, sizeof request) > 0)
            dprintf(client,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
                    sizeof page - 1, page);
        shutdown(client, SHUT_WR);
        while (read(client, request, sizeof request) > 0)
            ;
        close(client);
    }
}
